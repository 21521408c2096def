"""The episodes of many worlds: how far each has come, what it has paid, and what the last whole one paid."""

from __future__ import annotations

import torch
from torch import Tensor


class Episodes:
    """Counts steps and rewards of W worlds, in tensors that are changed in place.

    Args:
        num_worlds: W.
        length: control steps until the time limit.
        device: of all tensors.

    Attributes:
        length: control steps until the time limit.
        step: (W,) control steps since the episode began.
        paid: (W,) rewards since then.
        last_return: (W,) of each world's last whole episode; NaN before the first.
        whole: (W,) bool, whether the episode has been counted from its first step on.
    """

    def __init__(self, num_worlds: int, length: int, device: torch.device) -> None:
        self.length = length
        self.step = torch.zeros(num_worlds, dtype=torch.int64, device=device)
        self.paid = torch.zeros(num_worlds, device=device)
        self.last_return = torch.zeros(num_worlds, device=device)
        self.whole = torch.zeros(num_worlds, dtype=torch.bool, device=device)

    def restart(self, random_phase: torch.Generator | None = None) -> None:
        """New episodes in every world, at their first step, or at one drawn from `random_phase`.

        Worlds at random phases do not reach the time limit together. What is then no whole episode counts in no
        statistics.
        """
        self.step.zero_()
        if random_phase is not None:
            size, device = (len(self.step),), self.step.device
            self.step.copy_(torch.randint(0, self.length, size, generator=random_phase, device=device))
        self.whole.copy_(self.step == 0)
        self.paid.zero_()
        self.last_return.fill_(float("nan"))

    def advance(self) -> Tensor:
        """Counts a control step; returns the worlds (W,) bool that have reached the time limit."""
        self.step.add_(1)
        return self.step >= self.length

    def pay(self, reward: Tensor, done: Tensor, whole: Tensor) -> None:
        """Counts the step's reward (W,) and begins anew where it was the last.

        Args:
            reward: (W,).
            done: (W,) bool, the worlds whose episode has ended.
            whole: (W,) bool, those that were not merely cut short.
        """
        self.paid.add_(reward)
        torch.where(whole & self.whole, self.paid, self.last_return, out=self.last_return)
        self.paid.masked_fill_(done, 0.0)
        self.step.masked_fill_(done, 0)
        self.whole.logical_or_(done)

    def named(self) -> dict[str, Tensor]:
        """The tensors themselves, as an environment saves them."""
        return {
            "episode_step": self.step,
            "episode_return": self.paid,
            "last_return": self.last_return,
            "whole_episode": self.whole,
        }
