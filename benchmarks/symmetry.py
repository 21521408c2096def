"""Mirror images of tasks, and the states in which policies are looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from envs.task import Task
from envs.vector_env import VectorEnv
from gorl_robotics.policy import Policy

STARTS, ROLLOUTS = 16, 4  # worlds: start states to look at, and how many of them are rolled out
EVERY, UNTIL = 25, 200  # control steps: the swing-up; behind it all there is to do is to hold still
SEED = 1_000_003  # apart from any training seed's starts


@dataclass(frozen=True)
class Mirror:
    """A reflection that leaves a task's dynamics and reward as they are: factors of ±1."""

    observation: tuple[float, ...]
    action: tuple[float, ...]

    def of(self, observation: Tensor) -> Tensor:
        """The mirrored observation, (..., obs)."""
        return observation * torch.tensor(self.observation)

    def of_action(self, action: Tensor) -> Tensor:
        """The mirrored action, before or after tanh, (..., a)."""
        return action * torch.tensor(self.action)


# Left and right: cart position, cosine and sine of the pole's angle, the two velocities; the force on the cart.
CARTPOLE = Mirror((-1, 1, -1, -1, -1), (-1,))
MIRRORS = {f"Cartpole{kind}": CARTPOLE for kind in ("Balance", "BalanceSparse", "Swingup", "SwingupSparse")}


@dataclass(frozen=True)
class Visited:
    """States, the same for all policies; the first is its own mirror image where there is a mirror."""

    observation: Tensor  # (S, obs), raw
    start: Tensor  # (S,) bool: a start state, else one along a rollout

    def __len__(self) -> int:
        return len(self.observation)


def visit(task: Task, policies: Sequence[Policy], mirror: Mirror | None) -> Visited:
    """Start states and states along every policy's deterministic rollouts; with a mirror, each with its image.

    The first state is half-way between a start and its image, so that nothing in it says left or right.
    """
    env = VectorEnv(task, STARTS, threads=1, noise=False)
    starts, passed = torch.empty(0), []
    for policy in policies:
        env.generator.manual_seed(SEED)
        env.draw_starts()
        env.restart(random_phase=False)
        starts = env.observation.clone()
        passed += _along(env, policy)
    if not mirror:
        return _visited(starts, torch.cat(passed))
    images = mirror.of(starts)
    middle = (starts[:1] + images[:1]) / 2
    rollout = torch.cat(passed)
    return _visited(torch.cat([middle, starts, images]), torch.cat([rollout, mirror.of(rollout)]))


def _along(env: VectorEnv, policy: Policy) -> list[Tensor]:
    noise, passed = torch.zeros(env.num_worlds, policy.noise_size), []
    for step in range(1, UNTIL + 1):
        env.step(policy.act(env.observation, noise).action)
        if step % EVERY == 0:
            passed.append(env.observation[:ROLLOUTS].clone())
    return passed


def _visited(starts: Tensor, rollouts: Tensor) -> Visited:
    start = torch.arange(len(starts) + len(rollouts)) < len(starts)
    return Visited(torch.cat([starts, rollouts]), start)
