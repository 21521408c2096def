"""Frozen evaluation: a policy that does not learn, one whole episode in each world, with and without noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gorl_robotics.environment import Environment
from gorl_robotics.graphs import captured
from gorl_robotics.policy import Policy


class EpisodicEnvironment(Environment, Protocol):
    """An environment whose worlds can all be started anew."""

    @property
    def episode_length(self) -> int: ...  # noqa: D102

    def draw_starts(self) -> None:
        """Draws new initial states."""

    def restart(self, random_phase: bool = True) -> None:
        """Starts every world anew, world i from the i-th initial state."""


@dataclass(frozen=True)
class Evaluation:
    """Returns of one episode per world, and how far decoding moves what its beginning alone would do."""

    deterministic: Tensor  # (N,) acting without noise; world i from the i-th start
    stochastic: Tensor  # (N,) acting with noise; from the N starts behind those
    displacement: float  # mean |action - tanh z|

    def summary(self) -> dict[str, float]:
        """Mean, standard deviation and 10th percentile of both, and the displacement."""
        row = {}
        for name in ("deterministic", "stochastic"):
            returns: Tensor = getattr(self, name).double()
            row[f"{name}_mean"] = float(returns.mean())
            row[f"{name}_std"] = float(returns.std())
            row[f"{name}_p10"] = float(returns.quantile(0.1))
        row["decoder_displacement"] = self.displacement
        return row


class Evaluator:
    """Evaluates a policy as it is at each call, always from the same starts and with the same noise.

    Args:
        env: the first half of its worlds acts deterministically, the other half stochastically.
        policy: acts.
        seed: of starts and noise.
    """

    def __init__(self, env: EpisodicEnvironment, policy: Policy, seed: int) -> None:
        self._env, self._policy, self._seed = env, policy, seed
        self._generator = torch.Generator(env.device)
        worlds, device = env.num_worlds, env.device
        self._noise = torch.zeros(worlds, policy.noise_size, device=device)
        self._return = torch.zeros(worlds, device=device)
        self._running = torch.zeros(worlds, dtype=torch.bool, device=device)
        self._moved = torch.zeros((), device=device)
        self._finish = captured(self._finish_step, device, [env.generator])
        self.recapture()

    def recapture(self) -> None:
        """To be called when the policy does something else than before, not when only its weights have changed."""
        self._act = captured(self._act_step, self._env.device, [self._generator])

    def __call__(self) -> Evaluation:
        """Runs one episode in every world."""
        env = self._env
        self._generator.manual_seed(self._seed)
        env.generator.manual_seed(self._seed)
        env.draw_starts()
        env.restart(random_phase=False)
        self._return.zero_()
        self._moved.zero_()
        self._running.fill_(True)
        for _ in range(env.episode_length):
            self._act()
            env.physics()
            self._finish()
        half = env.num_worlds // 2
        returns = self._return.cpu()
        return Evaluation(returns[:half], returns[half:], float(self._moved) / env.episode_length)

    def _act_step(self) -> None:
        self._noise[self._env.num_worlds // 2 :].normal_(generator=self._generator)
        sample = self._policy.act(self._env.buffers.observation, self._noise)
        self._moved.add_((sample.action - sample.latent.tanh()).abs().mean())
        self._env.apply(sample.action)

    def _finish_step(self) -> None:
        step = self._env.finish()
        self._return.add_(step.reward.where(self._running, 0.0))
        self._running.logical_and_(~(step.terminated | step.truncated))
