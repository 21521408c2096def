"""DPPO: policy gradients through denoising (Ren et al. 2024), as FPO's authors compare with it (`denoising_mdp`).

An action is the end of a chain of small steps, each a Gaussian around what a network predicts. Every step is an action
of its own in PPO, with a ratio of its own, and all of them have the control step's advantage.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from gorl_robotics.config import Config, Ppo
from gorl_robotics.decoder import VelocityField
from gorl_robotics.losses import clipped_surrogate
from gorl_robotics.methods.fpo import OUTPUT_SCALE
from gorl_robotics.networks import Normaliser, gaussian_log_prob
from gorl_robotics.policy import Policy, PolicyLoss, Sample


class Dppo(Policy):
    """A chain from noise to the pre-tanh action, x ← x - v/steps + σ·noise."""

    name = "dppo"
    # The rate is fixed, as published. Gradients are clipped, which they are not there, as with FPO. With σ = 0.05 as
    # there, and 16 minibatches, CheetahRun has 639 after 60 million steps, with these 920.
    defaults: ClassVar[Mapping[str, Any]] = {
        "ppo.minibatches": 64,
        "ppo.learning_rate": 3e-4,
        "ppo.target_kl": math.inf,
        "ppo.clip": 0.2,
    }
    std: Tensor
    times: Tensor

    def __init__(
        self, observation_size: int, action_size: int, hidden: Sequence[int], steps: int, sigma: float
    ) -> None:
        super().__init__()
        self.normaliser = Normaliser(observation_size)
        self.flow = VelocityField(observation_size, action_size, hidden, steps, OUTPUT_SCALE)
        self.action_size, self.steps = action_size, steps
        self.noise_size = action_size * (1 + steps)  # the beginning, then every step
        self.reads = {"chain": (steps + 1, action_size), "log_prob": (steps,)}
        self.register_buffer("std", torch.tensor(sigma), persistent=False)
        self.register_buffer("times", (torch.arange(steps, 0, -1) / steps).unsqueeze(1), persistent=False)

    @classmethod
    def from_config(cls, config: Config, observation_size: int, action_size: int) -> Self:
        """See `Policy`."""
        networks = config.networks
        return cls(observation_size, action_size, networks.policy, networks.flow_steps, config.dppo.sigma)

    @property
    def trained(self) -> VelocityField:
        """The network of the steps' means."""
        return self.flow

    @torch.no_grad()
    def act(self, observation: Tensor, noise: Tensor, generator: torch.Generator | None = None) -> Sample:
        """Acts with the end of a chain; see `Policy`."""
        start, kicks = self._split(noise)
        points = self.flow.path(self.normaliser(observation), start, kicks)
        log_prob = gaussian_log_prob(kicks, torch.zeros_like(kicks), self.std)
        stored = {"chain": torch.stack(points, dim=1), "log_prob": log_prob}
        return Sample(start, points[-1], points[-1].tanh(), stored)

    def loss(self, minibatch: Mapping[str, Tensor], ppo: Ppo, regularisation: Tensor) -> PolicyLoss:
        """PPO's clipped surrogate over all steps of the chains; `kl` is that of whole chains."""
        change = self.log_prob(minibatch["observation"], minibatch["chain"]) - minibatch["log_prob"]
        terms = clipped_surrogate(change, minibatch["advantage"].unsqueeze(1), ppo.clip)
        return terms._replace(kl=terms.kl * self.steps)

    def log_prob(self, observation: Tensor, chain: Tensor) -> Tensor:
        """Log density of each step: normalised observation (N, obs), chain (N, steps + 1, a) -> (N, steps)."""
        before, after = chain[:, :-1], chain[:, 1:]
        seen = observation.unsqueeze(1).expand(-1, self.steps, -1)
        velocity = self.flow.velocity(seen, before, self.times.expand(len(chain), -1, -1))
        return gaussian_log_prob(after, before - velocity / self.steps, self.std)

    def forward(self, observation: Tensor, noise: Tensor | None = None) -> Tensor:
        """See `Policy`."""
        seen = self.normaliser(observation)
        if noise is None:
            return self.flow.integrate(seen, observation.new_zeros(observation.shape[0], self.action_size)).tanh()
        return self.flow.path(seen, *self._split(noise))[-1].tanh()

    def description(self) -> dict[str, Any]:
        """See `Policy`."""
        return {**super().description(), "flow_steps": self.steps}

    def _split(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Where the chains begin, (N, a), and what is added to their steps, (N, steps, a)."""
        start, kicks = noise.split([self.action_size, self.action_size * self.steps], dim=1)
        return start, self.std * kicks.unflatten(1, (self.steps, self.action_size))
