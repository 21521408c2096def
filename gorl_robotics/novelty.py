"""A bonus for what is new, where nothing else says which way to go: random network distillation (Burda et al. 2019).

A network learns to guess what another one, random and fixed, makes of an observation. Its guesses are bad where it has
seldom been. In states in which every action pays the same there is no gradient but that of this bonus.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gorl_robotics import distributed
from gorl_robotics.adam import Adam
from gorl_robotics.networks import fits_kernel, mlp

_HIDDEN = 64
_FEATURES = 16  # numbers to be guessed for an observation
_BOUND = 5.0  # normalised observations are clipped here: one that is far out is new for its size alone
_LARGEST = 5.0  # times the mean
# By which the mean follows an iteration's: guesses improve faster, so that bonuses soon are a few per cent of what they
# were at first. That is enough where nothing else is paid, and nearly nothing where something is.
_LAG = 0.01
# Nor does it follow all the way down: once guesses get no better it would catch up, and what is rare, such as falling,
# would be paid for as much as at first for the rest of the run.
_LEAST = 0.05  # times the largest there has been
_MINIBATCHES = 8
_SHARE = 4  # one in so many samples is learnt from: newness should last long enough to be followed
_RATE = 3e-4


class Novelty(nn.Module):
    """How new observations are, compared with what there was lately.

    Args:
        size: width of an observation.
        samples: of a rollout, T·N.
        device: where everything lives.
        generator: draws which samples are learnt from.
    """

    level: Tensor
    most: Tensor  # the largest level so far

    def __init__(self, size: int, samples: int, device: torch.device, generator: torch.Generator) -> None:
        super().__init__()
        self.target = mlp(size, [_HIDDEN] * 2, _FEATURES).to(device).requires_grad_(False)
        self.guess = mlp(size, [_HIDDEN] * 3, _FEATURES).to(device)
        self.register_buffer("level", torch.zeros((), device=device))
        self.register_buffer("most", torch.zeros((), device=device))
        self._generator = generator
        self._seen = torch.zeros(samples, size, device=device)
        rows = max(1, samples // (_SHARE * _MINIBATCHES))
        self._rows = torch.zeros(_MINIBATCHES, rows, dtype=torch.int64, device=device)
        self._turn = torch.zeros(1, dtype=torch.int64, device=device)
        self.optimizer = Adam(self.guess.parameters(), _RATE)

    @torch.no_grad()
    def bonus(self, observation: Tensor) -> Tensor:
        """How new normalised observations (T, N, size) are, (T, N), 1 on the mean at first. `learn` learns them."""
        self._seen.copy_(observation.clamp(-_BOUND, _BOUND).flatten(0, 1))
        error = ((_output(self.guess, self._seen) - _output(self.target, self._seen)) ** 2).mean(dim=-1)
        mean = error.mean()
        distributed.average(mean)
        level = torch.where(self.level > 0, self.level.lerp(mean, _LAG), mean)
        self.most.copy_(torch.maximum(self.most, level))
        self.level.copy_(torch.maximum(level, _LEAST * self.most))
        return (error / self.level).clamp(max=_LARGEST).view(observation.shape[:-1])

    def draw(self) -> None:
        """Chooses what `learn` learns from."""
        order = torch.randperm(len(self._seen), device=self._seen.device, generator=self._generator)
        self._rows.copy_(order[: self._rows.numel()].view_as(self._rows))
        self._turn.zero_()

    def learn(self) -> None:
        """Learns to guess what was chosen; `draw` comes first."""
        for _ in range(_MINIBATCHES):
            self._improve()

    def parts(self) -> list[Callable[[], object]]:
        """The parts of both that change nothing but gradients, as in `Learner.parts`."""

        def learn() -> None:
            seen = self._seen[self._rows[0]]
            self._loss(seen, _output(self.target, seen)).backward()

        return [partial(_output, self.guess, self._seen), partial(_output, self.target, self._seen), learn]

    def saved(self) -> dict[str, Any]:
        """Everything a resumed run needs."""
        return {"networks": self.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Restores what `saved` gave."""
        networks = saved["networks"]
        self.load_state_dict({"most": networks["level"], **networks})  # formerly there was no `most`
        self.optimizer.load_state_dict(saved["optimizer"])

    def _improve(self) -> None:
        seen = self._seen[self._rows.index_select(0, self._turn).squeeze(0)]
        self.guess.zero_grad(set_to_none=True)
        self._loss(seen, _output(self.target, seen)).backward()
        distributed.average_gradients(self.guess)
        self.optimizer.step()
        self._turn.add_(1)

    def _loss(self, seen: Tensor, features: Tensor) -> Tensor:
        if fits_kernel(self.guess):
            from gorl_robotics.mlp_kernel import squared_error

            return squared_error(self.guess, seen, features, 1.0)
        return nn.functional.mse_loss(self.guess(seen), features)


def _output(network: nn.Sequential, x: Tensor) -> Tensor:
    """What the network makes of x (N, size), in a single kernel where there is one; for no gradients."""
    if fits_kernel(network):
        from gorl_robotics.mlp_kernel import mlp as fused

        return fused(network, x).detach()
    with torch.no_grad():
        return network(x)
