"""Practice where it is needed: an episode that goes well is cut short now and then, one that does not goes on."""

from __future__ import annotations

import torch
from torch import Tensor

# Share of the newest reward in a world's running mean: about the last fifty control steps.
NEWEST = 0.02


class Practice:
    """Decides which worlds stop what they can already do and begin anew.

    A world whose recent reward is above the mean of all worlds is cut short with a fixed probability per step. Where
    some starts are mastered and others are not, most of the experience thus comes from those that are not; where all
    are alike, starts are merely practised more often. The learner sees a truncation, which does not bias its values.

    Args:
        num_worlds: N, the worlds that are learnt from.
        rate: probability per control step of cutting a world that does well; 0 never does.
        device: of all tensors.

    Attributes:
        recent: (N,) running mean of each world's reward.
        draw: (N,) what chance has last drawn.
    """

    def __init__(self, num_worlds: int, rate: float, device: torch.device) -> None:
        self.rate = rate
        self.recent = torch.zeros(num_worlds, device=device)
        self.draw = torch.zeros(num_worlds, device=device)

    def cut(self, reward: Tensor, generator: torch.Generator) -> Tensor:
        """The worlds (N,) bool to cut after a control step that paid `reward` (N,)."""
        recent = self.recent.lerp_(reward, NEWEST)
        return (recent > recent.mean()) & (self.draw.uniform_(generator=generator) < self.rate)

    def begin(self, done: Tensor) -> None:
        """New episodes in `done` (N,): they begin as the worst of all, whatever sign rewards have."""
        torch.where(done, self.recent.min(), self.recent, out=self.recent)
