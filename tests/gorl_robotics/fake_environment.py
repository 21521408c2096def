"""An environment without physics: points that drift by their action and say who and when they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gorl_robotics.config import Config, resolve

TARGET = 0.5
DRIFT = 0.1


@dataclass(frozen=True)
class Buffers:
    observation: Tensor
    critic_observation: Tensor
    terminal_observation: Tensor
    terminal_critic_observation: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor


class FakeEnvironment:
    """x ← x + DRIFT·action, paid -Σ(action - TARGET)²; starts are drawn from N(0, I).

    The observation is (world, age, x), the critic's also has the number of episodes begun. World i's episode is
    terminated at the age `lifetimes[i]`, if that is given, and truncated at the age `episode_length`.
    """

    action_size = 2
    lost = 0
    observation_size = 4
    critic_observation_size = 5

    def __init__(
        self,
        num_envs: int = 6,
        monitors: int = 2,
        episode_length: int = 7,
        lifetimes: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        self.num_envs, self.num_worlds, self.episode_length = num_envs, num_envs + monitors, episode_length
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.refreshed = self.checked = 0
        self._lifetimes = torch.tensor(lifetimes or [10**9] * self.num_worlds, device=self.device)
        self._starts, self._x, self._action = self._zeros(2), self._zeros(2), self._zeros(2)
        self._age, self._episode, self.last_return = self._zeros(), self._zeros(), self._zeros()
        flags = (torch.zeros(self.num_worlds, dtype=torch.bool, device=self.device) for _ in range(2))
        self.buffers = Buffers(*(self._zeros(size) for size in (4, 5, 4, 5)), self._zeros(), next(flags), next(flags))
        self.draw_starts()
        self.restart()

    def refresh_starts(self) -> None:
        self.refreshed += 1

    def draw_starts(self) -> None:
        self._starts.normal_(generator=self.generator)

    def restart(self, random_phase: bool = True) -> None:
        self._x.copy_(self._starts)
        self._episode.fill_(1.0)
        self._age.zero_()
        if random_phase:
            self._age.random_(0, self.episode_length, generator=self.generator)
        self._observe(self.buffers.observation, self.buffers.critic_observation)

    def apply(self, action: Tensor) -> None:
        self._action.copy_(action)

    def physics(self) -> None:
        self._x.add_(DRIFT * self._action)
        self._age.add_(1.0)

    def finish(self) -> Buffers:
        step = self.buffers
        step.reward.copy_(-((self._action - TARGET) ** 2).sum(dim=1))
        step.terminated.copy_(self._age >= self._lifetimes)
        step.truncated.copy_(self._age >= self.episode_length)
        self._observe(step.terminal_observation, step.terminal_critic_observation)
        done = step.terminated | step.truncated
        self._starts.normal_(generator=self.generator)
        self._x.copy_(self._starts.where(done.unsqueeze(1), self._x))
        self._age.masked_fill_(done, 0.0)
        self._episode.add_(done)
        self._observe(step.observation, step.critic_observation)
        return step

    def faults(self) -> Tensor:
        return torch.ones(1, dtype=torch.int64, device=self.device)

    def judge(self, faults: Tensor) -> str:
        self.checked += int(faults)
        return ""

    def state_dict(self) -> dict[str, Tensor]:
        state = {"x": self._x, "age": self._age, "episode": self._episode}
        return {name: value.clone() for name, value in state.items()} | {"random": self.generator.get_state()}

    def load_state_dict(self, saved: Mapping[str, Tensor]) -> None:
        for mine, name in ((self._x, "x"), (self._age, "age"), (self._episode, "episode")):
            mine.copy_(saved[name])
        self.generator.set_state(saved["random"])
        self._observe(self.buffers.observation, self.buffers.critic_observation)

    def _zeros(self, *size: int) -> Tensor:
        return torch.zeros(self.num_worlds, *size, device=self.device)

    def _observe(self, observation: Tensor, critic_observation: Tensor) -> None:
        world = torch.arange(self.num_worlds, device=self.device)
        observation.copy_(torch.column_stack([world, self._age, self._x]))
        critic_observation.copy_(torch.column_stack([observation, self._episode]))


def small_config(**settings: Any) -> Config:
    """A configuration of small networks; `ppo__epochs=1` sets `ppo.epochs`."""
    small: dict[str, Any] = {
        "num_envs": 6,
        "ppo.rollout_steps": 8,
        "ppo.minibatches": 4,
        "networks.policy": [16],
        "networks.critic": [16],
        "networks.decoder": [32, 32],
    }
    return resolve({name.replace("__", "."): value for name, value in settings.items()}, small)
