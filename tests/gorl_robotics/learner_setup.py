"""A learner on the fake environment, for the tests of what it learns."""

from __future__ import annotations

from typing import Any

import torch
from fake_environment import FakeEnvironment
from torch import Tensor

from gorl_robotics.config import Config
from gorl_robotics.methods.gorl import GorlPolicy
from gorl_robotics.ppo import METRICS, Learner
from gorl_robotics.rollout import Collector, Rollout


class Setup:
    """A fake environment, a policy, its collector and its learner."""

    def __init__(self, config: Config, device: str = "cpu", **env: Any) -> None:
        torch.manual_seed(0)
        self.config = config
        self.env = FakeEnvironment(config.num_envs, device=device, **env)
        where = self.env.device
        self.policy = GorlPolicy.from_config(config, 4, 2).to(where)
        self.generator = torch.Generator(where).manual_seed(1)
        steps = config.ppo.rollout_steps
        self.learner = Learner(self.policy, 5, config, config.num_envs * steps, where, self.generator)
        self.collector = Collector(self.env, self.policy, steps, self.generator)

    def iterate(self, times: int) -> None:
        for _ in range(times):
            self.learner.update(self.collector.collect())

    def metric(self, name: str) -> float:
        return float(self.learner.metrics()[METRICS.index(name)])


def weights(module: torch.nn.Module) -> Tensor:
    return torch.cat([value.detach().flatten().cpu().clone() for value in module.parameters()])


def copied(rollout: Rollout, device: str = "cpu") -> Rollout:
    def clone(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: clone(each) for name, each in value.items()}
        return value.clone().to(device)

    return Rollout(**clone(vars(rollout)))


def side_stream() -> torch.cuda.StreamContext:
    """Where captures work, as `prepare_device` has it for a whole run."""
    return torch.cuda.stream(torch.cuda.Stream())
