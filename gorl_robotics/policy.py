"""The policy that acts: a Gaussian over latents, and a decoder that turns a latent into an action."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gorl_robotics.config import Config
from gorl_robotics.flow import FlowDecoder
from gorl_robotics.networks import LatentPolicy, Normaliser, gaussian_log_prob


@dataclass(frozen=True)
class Sample:
    """What one act of the policy is made of; first axis worlds."""

    latent: Tensor  # (W, a) z
    log_prob: Tensor  # (W,) of z
    decoded: Tensor  # (W, a) pre-tanh action
    action: Tensor  # (W, a) in (-1, 1)


class GorlPolicy(nn.Module):
    """π(z|s), g(s, z) and tanh.

    `generative` says whether the decoder has been fitted yet: until then it is the identity and is skipped.
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        policy_hidden: Sequence[int],
        decoder_hidden: Sequence[int],
        flow_steps: int,
    ) -> None:
        super().__init__()
        self.normaliser = Normaliser(observation_size)
        self.latent = LatentPolicy(observation_size, action_size, policy_hidden)
        self.decoder = FlowDecoder(observation_size, action_size, decoder_hidden, flow_steps)
        self.generative = False

    @staticmethod
    def from_config(config: Config, observation_size: int, action_size: int) -> GorlPolicy:
        """A new policy of the configured sizes, z ~ N(0, I)."""
        networks = config.networks
        policy = GorlPolicy(observation_size, action_size, networks.policy, networks.decoder, networks.flow_steps)
        policy.latent.restart()
        return policy

    @torch.no_grad()
    def act(self, observation: Tensor, noise: Tensor) -> Sample:
        """Acts on raw observations (W, obs) with z = μ + σ·noise; noise (W, a) of zeros gives the mean's action."""
        mean, std = self.latent(self.normaliser(observation))
        z = mean + std * noise
        decoded = self.decode(observation, z)
        return Sample(z, gaussian_log_prob(z, mean, std), decoded, decoded.tanh())

    def decode(self, observation: Tensor, z: Tensor) -> Tensor:
        """The pre-tanh action of a latent: (W, obs), (W, a) -> (W, a)."""
        return self.decoder(observation, z) if self.generative else z

    def forward(self, observation: Tensor, noise: Tensor) -> Tensor:
        """The action in (-1, 1), as exported: (N, obs), (N, a) -> (N, a)."""
        mean, std = self.latent(self.normaliser(observation))
        return self.decode(observation, mean + std * noise).tanh()
