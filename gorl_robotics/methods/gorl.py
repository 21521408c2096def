"""GoRL (arXiv 2512.02581): PPO on a Gaussian over latents, and a decoder that is refitted between stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from gorl_robotics.config import Config, Refit
from gorl_robotics.decoder import Decoder
from gorl_robotics.diffusion import DiffusionDecoder
from gorl_robotics.flow import FlowDecoder
from gorl_robotics.methods.gaussian import LatentGaussian
from gorl_robotics.refit import RefitResult, refit


class GorlPolicy(LatentGaussian):
    """π(z|s), g(s, z) and tanh.

    `generative` says whether the decoder has been fitted yet: until then it is the identity and is skipped. A refit
    may take `threads` of a CPU, as in `Config`.
    """

    name = "gorl_flow"
    refits = True
    decoder_kind: ClassVar[type[Decoder]] = FlowDecoder
    threads: int = 0

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        policy_hidden: Sequence[int],
        decoder_hidden: Sequence[int],
        flow_steps: int,
    ) -> None:
        super().__init__(observation_size, action_size, policy_hidden)
        self.decoder = self.decoder_kind(observation_size, action_size, decoder_hidden, flow_steps)

    @classmethod
    def from_config(cls, config: Config, observation_size: int, action_size: int) -> Self:
        """See `Policy`."""
        networks = config.networks
        policy = cls(observation_size, action_size, networks.policy, networks.decoder, networks.flow_steps)
        policy.threads = config.threads
        policy.latent.restart()
        return policy

    @property
    def decoder_in_use(self) -> Decoder | None:
        """The decoder once it has been fitted."""
        return self.decoder if self.generative else None

    def end_stage(self, observation: Tensor, action: Tensor, config: Refit, generator: torch.Generator) -> RefitResult:
        """Fits the decoder to what the policy has lately done."""
        seen = self.normaliser.bounded(observation)  # the decoder's own statistics come from one batch
        result = refit(self.decoder, seen, action, config, generator, self.threads)
        self.generative = True
        return result

    def description(self) -> dict[str, Any]:
        """See `Policy`."""
        return {**super().description(), "generative": self.generative, "flow_steps": self.decoder.steps}


class GorlDiffusion(GorlPolicy):
    """The same with a decoder by diffusion."""

    name = "gorl_diffusion"
    decoder_kind = DiffusionDecoder
