"""How a control step ends for every world: what it paid, whether its episode is over, and what is kept of that."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.episodes import Episodes
from envs.practice import Practice
from envs.step import Step


class Endings:
    """Closes each control step of W worlds, the first N of which are learnt from.

    Args:
        num_envs: N.
        num_worlds: W.
        length: control steps until the time limit.
        practice: probability per step of cutting short a world of the N that does well; see `Practice`.
        device: of all tensors.
    """

    def __init__(self, num_envs: int, num_worlds: int, length: int, practice: float, device: torch.device) -> None:
        self.episodes = Episodes(num_worlds, length, device)
        self.practice = Practice(num_envs, practice, device)

    def close(self, step: Step, reward: Tensor, failed: Tensor, lost: Tensor, generator: torch.Generator) -> Tensor:
        """Writes `reward`, `terminated` and `truncated` of `step`; returns who begins a new episode, (W,) bool.

        Args:
            step: the buffers.
            reward: what the task pays, (W,).
            failed: where the task ends the episode for good, (W,) bool.
            lost: the worlds that are no longer finite, (W,) bool: terminated and not paid.
            generator: draws who is cut short.
        """
        if reward.is_cuda:
            from envs.endings_kernel import close

            return close(self.episodes, self.practice, step, reward, failed, lost, generator)
        over = self.episodes.advance()
        step.reward.copy_(reward).masked_fill_(lost, 0.0)
        torch.logical_or(failed, lost, out=step.terminated)
        step.truncated.copy_(over)
        learners = slice(len(self.practice.recent))
        if self.practice.rate:
            step.truncated[learners].logical_or_(self.practice.cut(step.reward[learners], generator))
        done = step.terminated | step.truncated
        self.episodes.pay(step.reward, done, whole=step.terminated | over)
        if self.practice.rate:
            self.practice.begin(done[learners])
        return done


def close_once(num_envs: int, num_worlds: int, length: int, practice: float, device: torch.device) -> None:
    """Closes a step of worlds that nobody else has, of the sizes of `Endings`: all that it takes is compiled then."""
    endings = Endings(num_envs, num_worlds, length, practice, device)
    nobody, step = torch.zeros(num_worlds, dtype=torch.bool, device=device), Step.empty(num_worlds, 1, 1, device)
    endings.close(step, torch.zeros(num_worlds, device=device), nobody, nobody, torch.Generator(device))
