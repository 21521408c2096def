"""Gaussian PPO: a diagonal Gaussian over pre-tanh actions; and, since GoRL's latents are one too, what both share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from gorl_robotics.config import Config, Ppo
from gorl_robotics.decoder import Decoder
from gorl_robotics.flow import FlowDecoder
from gorl_robotics.losses import policy_loss
from gorl_robotics.networks import LatentPolicy, Normaliser, fits_kernel, gaussian_log_prob
from gorl_robotics.policy import Policy, PolicyLoss, Sample


class LatentGaussian(Policy):
    """π(z|s) and tanh, with whatever decoder is between them."""

    num_metrics = 5

    def __init__(self, observation_size: int, action_size: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.normaliser = Normaliser(observation_size)
        self.latent = LatentPolicy(observation_size, action_size, hidden)
        self.noise_size = action_size
        self.reads = {"latent": (action_size,), "log_prob": ()}

    @property
    def trained(self) -> LatentPolicy:
        """The Gaussian."""
        return self.latent

    @torch.no_grad()
    def act(self, observation: Tensor, noise: Tensor, generator: torch.Generator | None = None) -> Sample:
        """Acts with z = μ + σ·noise, in a single kernel where there is one for the networks' sizes; see `Policy`."""
        decoder = self.decoder_in_use
        if fits_kernel(self.latent.network) and (decoder is None or decoder.path_fits_kernel()):
            from gorl_robotics.act_kernel import act

            z, decoded, action, log_prob = act(self.latent.network, self.normaliser, decoder, observation, noise)
            return Sample(z, decoded, action, {"log_prob": log_prob})
        mean, std = self.latent(self.normaliser(observation))
        z = mean + std * noise
        decoded = self.decode(observation, z)
        return Sample(z, decoded, decoded.tanh(), {"log_prob": gaussian_log_prob(z, mean, std)})

    @property
    def decoder_in_use(self) -> Decoder | None:
        """What turns a latent into a pre-tanh action; without it they are the same."""
        return None

    def decode(self, observation: Tensor, z: Tensor) -> Tensor:
        """The pre-tanh action of a latent: (W, obs), (W, a) -> (W, a)."""
        return z if self.decoder_in_use is None else self.decoder_in_use(observation, z)

    def loss(self, minibatch: Mapping[str, Tensor], ppo: Ppo, regularisation: Tensor) -> PolicyLoss:
        """PPO's; see `policy_loss`."""
        mean, std = self.latent(minibatch["observation"])
        return policy_loss(
            mean,
            std,
            minibatch["latent"],
            minibatch["log_prob"],
            minibatch["advantage"],
            ppo.clip,
            regularisation,
        )

    def gradients(self, buffers: Mapping[str, Tensor], rows: Tensor, ppo: Ppo, regularisation: Tensor) -> PolicyLoss:
        """In a single kernel where there is one for the network's size; see `Policy`."""
        network = self.latent.network
        if not fits_kernel(network):
            return super().gradients(buffers, rows, ppo, regularisation)
        from gorl_robotics.policy_kernel import improve

        gradients, terms = improve(
            network,
            buffers["observation"],
            buffers["latent"],
            buffers["log_prob"],
            buffers["advantage"],
            rows,
            ppo.clip,
            regularisation,
        )
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            parameter.grad = gradient
        return PolicyLoss(*terms.unbind())

    def forward(self, observation: Tensor, noise: Tensor | None = None) -> Tensor:
        """See `Policy`."""
        mean, std = self.latent(self.normaliser(observation))
        return self.decode(observation, mean if noise is None else mean + std * noise).tanh()

    def restart(self) -> None:
        """See `Policy`."""
        self.latent.restart()

    def description(self) -> dict[str, Any]:
        """See `Policy`."""
        return {**super().description(), "latent_size": self.noise_size}


class Gaussian(LatentGaussian):
    """PPO without a decoder, in one run from start to end."""

    name = "gaussian"

    @classmethod
    def from_config(cls, config: Config, observation_size: int, action_size: int) -> Self:
        """The policy that GoRL begins with, weight for weight, so that the two compare seed by seed."""
        networks = config.networks
        policy = cls(observation_size, action_size, networks.policy)
        FlowDecoder(observation_size, action_size, networks.decoder, networks.flow_steps)  # GoRL draws one here
        policy.latent.restart()
        return policy
