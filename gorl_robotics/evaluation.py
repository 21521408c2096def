"""Frozen evaluation: a policy that does not learn, one whole episode in each world, with and without noise."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gorl_robotics.environment import Environment
from gorl_robotics.graphs import WARM_UP_CALLS, captured
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
        self._acting = copy.deepcopy(policy)  # stays as it is while the other one goes on learning
        self._stream = torch.cuda.Stream(env.device) if env.device.type == "cuda" else None
        self._generator = torch.Generator(env.device)
        worlds, device = env.num_worlds, env.device
        self._noise = torch.zeros(worlds, policy.noise_size, device=device)
        self._return = torch.zeros(worlds, device=device)
        self._running = torch.zeros(worlds, dtype=torch.bool, device=device)
        self._moved = torch.zeros((), device=device)
        self._finish = captured(self._finish_step, device, [env.generator])
        self._act = captured(self._act_step, device, [self._generator])

    def __call__(self) -> Evaluation:
        """Runs one episode in every world."""
        return self.beside(lambda: None)

    def beside(self, work: Callable[[], None]) -> Evaluation:
        """Evaluates the policy as it is now, then does `work`, which may change it: on a GPU beside each other.

        Few worlds leave most of a GPU idle, and `work`, which must not step any worlds, can have it.
        """
        self._take_policy()  # in the caller's stream, in which `work` may change it
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream())
        with self._on_stream():
            begun = min(self._env.episode_length, WARM_UP_CALLS + 1)  # what is captured is so before anything is beside
            self._begin()
            self._advance(begun)
        if self._stream is None:
            result = self._end(begun)
            work()
            return result
        with ThreadPoolExecutor(1, "evaluation") as thread:
            ended = thread.submit(self._end, begun)
            work()
            return ended.result()

    def _take_policy(self) -> None:
        acting = self._acting
        acting.load_state_dict(self._policy.state_dict())
        if acting.generative != self._policy.generative:  # acting is another computation than before
            acting.generative = self._policy.generative
            self._act = captured(self._act_step, self._env.device, [self._generator])

    def _begin(self) -> None:
        env = self._env
        self._generator.manual_seed(self._seed)
        env.generator.manual_seed(self._seed)
        env.draw_starts()
        env.restart(random_phase=False)
        self._return.zero_()
        self._moved.zero_()
        self._running.fill_(True)

    def _advance(self, steps: int) -> None:
        for _ in range(steps):
            self._act()
            self._env.physics()
            self._finish()

    def _end(self, begun: int) -> Evaluation:
        env, half = self._env, self._env.num_worlds // 2
        with self._on_stream():
            self._advance(env.episode_length - begun)
            returns = self._return.cpu()
            return Evaluation(returns[:half], returns[half:], float(self._moved) / env.episode_length)

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        """Inside it, work is launched in the evaluation's own stream, whatever the thread."""
        if self._stream is None:
            yield
            return
        with torch.cuda.device(self._stream.device), torch.cuda.stream(self._stream):
            yield

    def _act_step(self) -> None:
        self._noise[self._env.num_worlds // 2 :].normal_(generator=self._generator)
        sample = self._acting.act(self._env.buffers.observation, self._noise)
        self._moved.add_((sample.action - sample.latent.tanh()).abs().mean())
        self._env.apply(sample.action)

    def _finish_step(self) -> None:
        step = self._env.finish()
        self._return.add_(step.reward.where(self._running, 0.0))
        self._running.logical_and_(~(step.terminated | step.truncated))
