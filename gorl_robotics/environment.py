"""All that the learner knows of an environment. `envs.vector_env.VectorEnv` is one; a test's may have ten lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor


class Step(Protocol):
    """Buffers of a control step over W worlds; see `envs.vector_env.Step`.

    Where no episode has ended, the observations are, to the bit, those that the step led to.
    """

    @property
    def observation(self) -> Tensor: ...  # noqa: D102
    @property
    def critic_observation(self) -> Tensor: ...  # noqa: D102
    @property
    def terminal_observation(self) -> Tensor: ...  # noqa: D102
    @property
    def terminal_critic_observation(self) -> Tensor: ...  # noqa: D102
    @property
    def reward(self) -> Tensor: ...  # noqa: D102
    @property
    def terminated(self) -> Tensor: ...  # noqa: D102
    @property
    def truncated(self) -> Tensor: ...  # noqa: D102


class Environment(Protocol):
    """W = num_worlds worlds: the first `num_envs` are learnt from, the others only watched."""

    num_envs: int
    num_worlds: int
    device: torch.device
    generator: torch.Generator  # what finish() draws from

    @property
    def observation_size(self) -> int: ...  # noqa: D102
    @property
    def critic_observation_size(self) -> int: ...  # noqa: D102
    @property
    def action_size(self) -> int: ...  # noqa: D102
    @property
    def last_return(self) -> Tensor: ...  # noqa: D102 - (W,) of the last whole episode, NaN before the first
    @property
    def buffers(self) -> Step: ...  # noqa: D102

    def refresh_starts(self) -> None:
        """Called before each rollout, outside of any captured graph."""

    def apply(self, action: Tensor) -> None:
        """Takes actions (W, action_size) in [-1, 1]."""

    def physics(self) -> None:
        """Advances the worlds by one control step."""

    def finish(self) -> Step:
        """Rewards, observations, resets."""

    def faults(self) -> Tensor:
        """What has gone wrong since the last call, (n,) on the device; called once per rollout."""

    def judge(self, faults: Tensor) -> str:
        """What a user should know of `faults`, now on the host; raises if the simulation could not be trusted."""

    @property
    def lost(self) -> int:
        """Times that a world's physics diverged and it had to begin anew, as far as `judge` has been told."""

    def state_dict(self) -> dict[str, Tensor]:
        """Everything needed to go on exactly from here."""

    def load_state_dict(self, saved: Mapping[str, Tensor]) -> None:
        """Restores `state_dict`."""
