"""FPO: policy gradients for a flow without its likelihood (McAllister et al. 2025).

An action is where a flow leads from noise. In PPO's ratio a Monte Carlo estimate of the flow-matching loss stands for
the negative log-likelihood: r = exp(ℓ_old - ℓ_new), with the same pairs of noise and time in both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from gorl_robotics.config import Config, Ppo
from gorl_robotics.decoder import VelocityField
from gorl_robotics.errors import InputError
from gorl_robotics.losses import clipped_surrogate
from gorl_robotics.networks import Normaliser
from gorl_robotics.policy import Policy, PolicyLoss, Sample

OUTPUT_SCALE = 0.25
# Where an action was bad its loss is to be large, and nothing but this says how large: unbounded, pre-tanh actions ran
# off to half a million. tanh(6) is 0.99999.
BOUND = 6.0


class Fpo(Policy):
    """A flow from noise to the pre-tanh action, trained by its own flow-matching losses."""

    name = "fpo"
    # The rate is fixed, as published. Gradients are clipped and velocities bounded, which they are not there: on a CPU
    # CheetahRun collapses without the one within two million steps, without the other within five. On a GPU, after 60
    # million steps: four epochs leave CheetahRun at 430 instead of 820, a quarter of this entropy FingerTurnHard at 350
    # instead of 870.
    defaults: ClassVar[Mapping[str, Any]] = {
        "ppo.epochs": 8,
        "ppo.entropy": 0.02,
        "ppo.learning_rate": 3e-4,
        "ppo.target_kl": math.inf,
        "ppo.clip": 0.05,
    }

    def __init__(self, observation_size: int, action_size: int, hidden: Sequence[int], steps: int, pairs: int) -> None:
        super().__init__()
        self.normaliser = Normaliser(observation_size)
        self.flow = VelocityField(observation_size, action_size, hidden, steps, OUTPUT_SCALE, bound=BOUND)
        self.noise_size, self.pairs = action_size, pairs
        self.reads = {"action": (action_size,), "noise": (pairs, action_size), "time": (pairs, 1), "error": ()}

    @classmethod
    def from_config(cls, config: Config, observation_size: int, action_size: int) -> Self:
        """See `Policy`; InputError with a single step, at t = 1, where no error depends on the network."""
        networks = config.networks
        if networks.flow_steps < 2:
            raise InputError(f"networks.flow_steps={networks.flow_steps}: expected 2 or more with method=fpo")
        return cls(observation_size, action_size, networks.policy, networks.flow_steps, config.fpo.pairs)

    @property
    def trained(self) -> VelocityField:
        """The flow."""
        return self.flow

    @torch.no_grad()
    def act(self, observation: Tensor, noise: Tensor, generator: torch.Generator | None = None) -> Sample:
        """Acts with the end of the flow from `noise`; see `Policy`."""
        seen = self.normaliser(observation)
        decoded = self.flow.integrate(seen, noise)
        stored = {} if generator is None else self._pairs(seen, decoded, generator)
        return Sample(noise, decoded, decoded.tanh(), stored)

    def loss(self, minibatch: Mapping[str, Tensor], ppo: Ppo, regularisation: Tensor) -> PolicyLoss:
        """PPO's clipped surrogate with the estimated ratio, on which `kl` rests too, and the flow's loss for noise."""
        observation, action, noise, time = (minibatch[name] for name in ("observation", "action", "noise", "time"))
        change = minibatch["error"] - self.error(observation, action, noise, time)
        terms = clipped_surrogate(change, minibatch["advantage"], ppo.clip)
        if ppo.entropy == 0:
            return terms
        # Other samples' noise in place of actions: to fit a little of what it began with keeps the flow wide, as an
        # entropy bonus does a Gaussian.
        wide = self._errors(observation, noise.roll(1, 0), noise, time).mean()
        return terms._replace(loss=terms.loss + ppo.entropy * wide)

    def error(self, observation: Tensor, action: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """ℓ: the squared error of the noise that the flow makes out behind a mixture, its mean over pairs and axes.

        Args:
            observation: normalised, (N, obs).
            action: pre-tanh, (N, a).
            noise: (N, pairs, a).
            time: (N, pairs, 1), from where a straight line is drawn to t = 1.

        Returns:
            (N,).
        """
        return self._errors(observation, action.unsqueeze(1), noise, time).mean(dim=(1, 2))

    def forward(self, observation: Tensor, noise: Tensor | None = None) -> Tensor:
        """See `Policy`."""
        start = observation.new_zeros(observation.shape[0], self.noise_size) if noise is None else noise
        return self.flow.integrate(self.normaliser(observation), start).tanh()

    def description(self) -> dict[str, Any]:
        """See `Policy`."""
        return {**super().description(), "flow_steps": self.flow.steps}

    def _errors(self, observation: Tensor, action: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """As `error`, but of each pair and axis, (N, pairs, a), and for actions (N, 1 or pairs, a)."""
        x = time * noise + (1 - time) * action
        seen = observation.unsqueeze(1).expand(-1, self.pairs, -1)
        guess = x + (1 - time) * self.flow.velocity(seen, x, time)
        return (noise - guess) ** 2

    def _pairs(self, seen: Tensor, action: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Noise and times, of those at which the flow takes its steps, and their error now."""
        size, device = (len(action), self.pairs), action.device
        noise = torch.randn(*size, self.noise_size, generator=generator, device=device)
        time = torch.randint(1, self.flow.steps + 1, (*size, 1), generator=generator, device=device) / self.flow.steps
        return {"noise": noise, "time": time, "error": self.error(seen, action, noise, time)}
