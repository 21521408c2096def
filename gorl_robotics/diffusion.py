"""The decoder by diffusion: deterministic denoising (DDIM, Song et al. 2021) from the latent z to the action.

Noise and action are mixed as x_t = √ᾱ·a + √(1 - ᾱ)·ε with ᾱ falling evenly from 1 at t = 0 to 0.001 at t = 1, where
hardly anything but noise is left: decoding may start from z ~ N(0, I). A DDIM step goes from x_t to what the same
predicted a and ε mix to at the next time. Here the network predicts that step, in units of what it measures where
a ~ N(0, I), instead of ε; the best prediction of either gives the same step, which is linear in x_t and ε. Thus a
network of zeros is the identity exactly, and no step counts for much more or less than another in the loss.
"""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor

from gorl_robotics.decoder import Decoder

LAST_SIGNAL = 1e-3  # ᾱ at t = 1


class DiffusionDecoder(Decoder):
    """Learns the steps of a denoising."""

    @staticmethod
    def divisors_of(steps: int) -> list[float]:
        """One over the length of each step for an action and noise of variance 1."""
        weights = [_weights(1 - step / steps) for step in range(steps + 1)]
        return [1 / math.dist(here, there) for here, there in pairwise(weights)]

    def loss(self, observation: Tensor, action: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Squared error of denoising steps in their units, at one of the decoding's times; see `Decoder.loss`."""
        step = (t * self.steps).long().clamp(max=self.steps - 1)
        here, there = (self.mixed(action, noise, 1 - index / self.steps) for index in (step, step + 1))
        target = (here - there) * self.divisor[step]
        return self.squared_error(observation, here, 1 - step / self.steps, target)

    @staticmethod
    def mixed(action: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t: (N, a), (N, a), (N, 1) -> (N, a)."""
        signal = 1 - (1 - LAST_SIGNAL) * t
        return signal.sqrt() * action + (1 - signal).sqrt() * noise


def _weights(t: float) -> tuple[float, float]:
    """√ᾱ and √(1 - ᾱ) at t."""
    signal = 1 - (1 - LAST_SIGNAL) * t
    return math.sqrt(signal), math.sqrt(1 - signal)
