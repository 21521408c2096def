"""What a control step of an environment gives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Step:
    """Fixed buffers that every control step writes anew; W worlds, monitor worlds last."""

    observation: Tensor  # (W, observation_size), of the next episode where one has ended
    critic_observation: Tensor  # (W, critic_observation_size)
    terminal_observation: Tensor  # (W, observation_size), what the step led to, before any reset
    terminal_critic_observation: Tensor
    reward: Tensor  # (W,)
    terminated: Tensor  # (W,) bool: the episode ended for good
    truncated: Tensor  # (W,) bool: the time limit was reached, or the episode was cut short for practice

    @staticmethod
    def empty(
        num_worlds: int, observation_size: int, critic_observation_size: int, device: torch.device, same: bool = False
    ) -> Step:
        """Buffers of zeros; those of the critic are the policy's if both see the `same`."""

        def zeros(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(num_worlds, *size, dtype=dtype, device=device)

        seen, terminal = zeros(observation_size), zeros(observation_size)
        return Step(
            observation=seen,
            critic_observation=seen if same else zeros(critic_observation_size),
            terminal_observation=terminal,
            terminal_critic_observation=terminal if same else zeros(critic_observation_size),
            reward=zeros(),
            terminated=zeros(dtype=torch.bool),
            truncated=zeros(dtype=torch.bool),
        )
