"""Rollouts: the on-device buffer, and the collector that fills it without waiting for the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType

import torch
from torch import Tensor

from gorl_robotics.environment import Environment
from gorl_robotics.graphs import captured
from gorl_robotics.policy import Actor


@dataclass(frozen=True)
class Rollout:
    """T control steps of the N worlds that are learnt from; every tensor (T, N, ...), overwritten by each rollout.

    Where the critic sees what the policy sees, both observations are one tensor.
    """

    observation: Tensor
    critic_observation: Tensor
    terminal_observation: Tensor  # what each step led to, before any reset
    terminal_critic_observation: Tensor
    latent: Tensor  # what the decoding began from
    action: Tensor  # pre-tanh, as the decoder gave it
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    stored: dict[str, Tensor] = field(default_factory=dict)  # what else the method's loss reads, by name

    @staticmethod
    def empty(env: Environment, steps: int, reads: Mapping[str, tuple[int, ...]] = MappingProxyType({})) -> Rollout:
        """Buffers of zeros for `steps` control steps of `env`, with what `Policy.reads` names."""

        def zeros(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(steps, env.num_envs, *size, dtype=dtype, device=env.device)

        critic, nu = env.critic_observation_size, env.action_size
        seen, terminal = zeros(env.observation_size), zeros(env.observation_size)
        same = env.buffers.critic_observation is env.buffers.observation
        return Rollout(
            observation=seen,
            critic_observation=seen if same else zeros(critic),
            terminal_observation=terminal,
            terminal_critic_observation=terminal if same else zeros(critic),
            latent=zeros(nu),
            action=zeros(nu),
            reward=zeros(),
            terminated=zeros(dtype=torch.bool),
            truncated=zeros(dtype=torch.bool),
            stored={name: zeros(*size) for name, size in reads.items() if name not in ("latent", "action")},
        )

    def read(self, name: str) -> Tensor:
        """The tensor of that name in `Policy.reads`."""
        return self.stored[name] if name in self.stored else getattr(self, name)

    @property
    def samples(self) -> int:
        """Environment steps in it: T·N."""
        return self.reward.numel()

    def of_worlds(self, first: int, last: int) -> Rollout:
        """The part of it that worlds `first` to `last` - 1 make up; views of the same buffers."""
        views = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "stored"}
        return Rollout(
            **{name: tensor[:, first:last] for name, tensor in views.items()},
            stored={name: tensor[:, first:last] for name, tensor in self.stored.items()},
        )

    def recorded(self) -> dict[str, Tensor]:
        """The part of it that is stored for refits."""
        names = (
            "observation",
            "latent",
            "action",
            "reward",
            "terminated",
            "truncated",
            "terminal_observation",
        )
        return {name: getattr(self, name) for name in names}


class Collector:
    """Steps an environment with a policy. Each control step is two launches: the physics, and all around it.

    Args:
        env: its last `num_worlds - num_envs` worlds act without noise and are not part of the rollout.
        policy: acts on the whole batch.
        steps: T of a rollout.
        generator: draws the policy's noise; on the environment's device, and may be its own.
    """

    def __init__(self, env: Environment, policy: Actor, steps: int, generator: torch.Generator) -> None:
        self.env, self.policy, self.steps = env, policy, steps
        self.rollout = Rollout.empty(env, steps, policy.reads)
        self._generator = generator
        self._critic_sees_more = env.buffers.critic_observation is not env.buffers.observation
        self._t = torch.zeros(1, dtype=torch.int64, device=env.device)
        self._noise = torch.zeros(env.num_worlds, policy.noise_size, device=env.device)
        self._finish = captured(self._finish_step, env.device, [env.generator])
        self.recapture()

    def act_with(self, policy: Actor) -> None:
        """Another policy acts from now on, of the same method."""
        self.policy = policy
        self.recapture()

    def recapture(self) -> None:
        """To be called when the policy does something else than before, not when only its weights have changed."""
        self._act = captured(self._act_step, self.env.device, [self._generator])
        self._between = captured(self._between_steps, self.env.device, [self.env.generator, self._generator])

    def collect(self) -> Rollout:
        """T control steps of all worlds. The rollout's buffers are the same each time."""
        self.env.refresh_starts()
        self._t.zero_()
        self._act()
        for _ in range(self.steps - 1):
            self.env.physics()
            self._between()
        self.env.physics()
        self._finish()
        return self.rollout

    def _act_step(self) -> None:
        self._store({}, self._act_and_apply())

    def _finish_step(self) -> None:
        self._store(self._end_step(), {})
        self._t.add_(1)

    def _between_steps(self) -> None:
        self._store(self._end_step(), self._act_and_apply())
        self._t.add_(1)

    def _act_and_apply(self) -> dict[str, Tensor]:
        """Begins a control step; what is kept of that."""
        env, before = self.env, self.env.buffers
        self._noise[: env.num_envs].normal_(generator=self._generator)
        sample = self.policy.act(before.observation, self._noise, self._generator)
        env.apply(sample.action)
        values = {"observation": before.observation, "latent": sample.latent, "action": sample.decoded}
        if self._critic_sees_more:
            values["critic_observation"] = before.critic_observation
        return values | {name: sample.stored[name] for name in self.rollout.stored}

    def _end_step(self) -> dict[str, Tensor]:
        """Ends a control step; what is kept of that, in buffers that no beginning of the next one writes."""
        step = self.env.finish()
        names = ["terminal_observation", "reward", "terminated", "truncated"]
        if self._critic_sees_more:
            names.append("terminal_critic_observation")
        return {name: getattr(step, name) for name in names}

    def _store(self, ended: Mapping[str, Tensor], begun: Mapping[str, Tensor]) -> None:
        """Writes what step t leaves, and what a step begins with: t + 1 if another has just ended."""
        values = {**ended, **begun}
        targets = [self.rollout.read(name) for name in values]
        sources = [value[: self.env.num_envs] for value in values.values()]
        if self._t.is_cuda:
            from gorl_robotics.store_kernel import store

            store(targets, sources, self._t, len(ended) or len(values))
            return
        rows = [self._t] * len(ended) + [self._t + 1 if ended else self._t] * len(begun)
        for target, source, row in zip(targets, sources, rows, strict=True):
            target.index_copy_(0, row, source.unsqueeze(0))
