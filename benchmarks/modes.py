"""How many peaks a distribution of actions has, judged from samples of it.

The measure is Hartigan's dip (Hartigan and Hartigan 1985, The Annals of Statistics 13): the largest distance between
the samples' cumulative distribution and the nearest one with a single peak, from 0 to 0.25. Its p-value is the chance
of a dip as large from a uniform distribution, which of all with one peak is hardest to tell from two: skew, heavy tails
or a wide σ do not count as peaks. It is taken of pre-tanh actions, where a Gaussian policy has one peak by
construction; after tanh any wide Gaussian piles up at both limits, which says nothing about the policy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from diptest import diptest
from torch import Tensor

LEVEL = 0.01  # of the test, over all action dimensions of a state together
FIRM, SHARE = 0.5, 0.1  # an action is firm beyond ±0.5; a state has both ways where each takes a tenth of the actions


@dataclass(frozen=True)
class Modes:
    """What samples of the actions in S states say; NaN and False where nothing was sampled.

    Attributes:
        dip: (S, a) of each action dimension.
        p: (S, a) chance of that dip under one peak.
        mean: (S, a) pre-tanh action.
        std: (S,) standard deviation of the pre-tanh action, mean over its dimensions.
        both_ways: (S,) whether firm actions of either sign are common in any dimension; peaks do not matter to this.
    """

    dip: np.ndarray
    p: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    both_ways: np.ndarray

    @property
    def multimodal(self) -> np.ndarray:
        """(S,) whether one peak can be ruled out in any dimension; Bonferroni's correction holds LEVEL over all."""
        return (self.p < LEVEL / self.p.shape[1]).any(axis=1)

    def summary(self, chosen: np.ndarray) -> dict[str, float | int | list[float]]:
        """Shares and sizes over those of the `chosen` (S,) states that were sampled."""
        known = chosen & ~np.isnan(self.std)
        if not known.any():
            return {"states": 0}
        largest = self.dip[known].max(axis=1)
        return {
            "states": int(known.sum()),
            "multimodal": round(float(self.multimodal[known].mean()), 4),
            "both_ways": round(float(self.both_ways[known].mean()), 4),
            "dip_median": round(float(np.median(largest)), 4),
            "dip_largest": round(float(largest.max()), 4),
            "mean_median": [round(float(mean), 4) for mean in np.median(self.mean[known], axis=0)],
            "std_median": round(float(np.median(self.std[known])), 4),
        }


def measure(decoded: Tensor) -> Modes:
    """The modes of pre-tanh actions (S, n, a), n samples in each state; a state with any NaN counts as not sampled."""
    samples = decoded.double().numpy()
    states, _, actions = samples.shape
    dip, p = np.full((states, actions), np.nan), np.full((states, actions), np.nan)
    known = ~np.isnan(samples).any(axis=(1, 2))
    for i in np.flatnonzero(known):
        for j in range(actions):
            dip[i, j], p[i, j] = diptest(samples[i, :, j])
    limited = np.tanh(samples)
    left, right = (limited < -FIRM).mean(axis=1), (limited > FIRM).mean(axis=1)
    both_ways = (np.minimum(left, right) >= SHARE).any(axis=1) & known
    return Modes(dip, p, samples.mean(axis=1), samples.std(axis=1).mean(axis=1), both_ways)
