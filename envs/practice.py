"""Practice where it is needed: an episode that goes well is cut short now and then, one that does not goes on."""

from __future__ import annotations

import torch
from torch import Tensor

# Share of the newest reward in a world's running mean: about the last fifty control steps.
_NEWEST = 0.02


class Practice:
    """Decides which worlds stop what they can already do and begin anew.

    A world does well whose recent reward is nearer to the best world's than to the worst one's. It is cut short with a
    probability that grows with the share of such worlds. Where some starts are mastered and others are not, most of
    the experience thus comes from those that are not; where hardly any world does well, those few go on: they are what
    there is to learn from. The learner sees a truncation, which does not bias its values.

    Args:
        num_worlds: N, the worlds that are learnt from.
        rate: probability per control step of cutting a world that does well, reached where half of the worlds or more
            do and in proportion to their number before; 0 never does.
        device: of all tensors.
    """

    def __init__(self, num_worlds: int, rate: float, device: torch.device) -> None:
        self.rate = rate
        self.recent = torch.zeros(num_worlds, device=device)  # running mean of each world's reward
        self._draw = torch.zeros(num_worlds, device=device)

    def cut(self, reward: Tensor, generator: torch.Generator) -> Tensor:
        """The worlds (N,) bool to cut after a control step that paid `reward` (N,)."""
        recent = self.recent.lerp_(reward, _NEWEST)
        well = recent > (recent.min() + recent.max()) / 2
        rate = self.rate * (2 * well.float().mean()).clamp(max=1)
        return well & (self._draw.uniform_(generator=generator) < rate)

    def begin(self, done: Tensor) -> None:
        """New episodes in `done` (N,): they begin as the worst of all, whatever sign rewards have."""
        torch.where(done, self.recent.min(), self.recent, out=self.recent)
