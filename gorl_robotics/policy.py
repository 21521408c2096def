"""What a method is to the rest: a policy that acts, is learnt from its own samples, and may change between stages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from gorl_robotics.config import Config, Ppo, Refit
from gorl_robotics.errors import InputError
from gorl_robotics.networks import Normaliser
from gorl_robotics.refit import RefitResult


@dataclass(frozen=True)
class Sample:
    """What one act of a policy is made of; first axis worlds."""

    latent: Tensor  # (W, a) what the decoding or denoising began from
    decoded: Tensor  # (W, a) pre-tanh action
    action: Tensor  # (W, a) in (-1, 1)
    stored: Mapping[str, Tensor] = field(default_factory=dict)  # further tensors (W, ...) by name, for `Policy.loss`


class Actor(Protocol):
    """What acts in an environment: a policy, or several; see `Policy`."""

    @property
    def noise_size(self) -> int: ...  # noqa: D102
    @property
    def reads(self) -> Mapping[str, tuple[int, ...]]: ...  # noqa: D102

    def act(self, observation: Tensor, noise: Tensor, generator: torch.Generator | None = None) -> Sample:
        """See `Policy.act`."""


class PolicyLoss(NamedTuple):
    """Scalars of one minibatch; the last two only where the policy is a Gaussian."""

    loss: Tensor
    kl: Tensor  # an estimate of how far the policy has moved since the rollout
    clipped: Tensor
    entropy: Tensor | None = None
    std: Tensor | None = None


class Policy(nn.Module, ABC):
    """One method of learning: the policy it trains, and its part in training.

    Attributes:
        name: as in `method=NAME`.
        defaults: settings that differ with this method.
        refits: whether something is fitted anew between stages, and `trained` started anew with it.
        num_metrics: how many terms of PolicyLoss there are with this method.
        generative: whether a decoder has been fitted; then acting is another computation than before.
        normaliser: of observations; takes in each rollout after it has been learnt from.
        noise_size: width of the standard normal noise of an act.
        reads: what `loss` reads beside observations and advantages, by name, with sizes for one world: `latent` or
            `action`, which every sample has, or else what `Sample.stored` has.
    """

    name: ClassVar[str]
    defaults: ClassVar[Mapping[str, Any]] = {}
    refits: ClassVar[bool] = False
    num_metrics: ClassVar[int] = 3
    generative: bool = False
    normaliser: Normaliser
    noise_size: int
    reads: Mapping[str, tuple[int, ...]]

    @classmethod
    @abstractmethod
    def from_config(cls, config: Config, observation_size: int, action_size: int) -> Self:
        """A new policy of the configured sizes that acts with tanh z, z ~ N(0, I)."""

    @property
    @abstractmethod
    def trained(self) -> nn.Module:
        """The network that `loss` trains."""

    @abstractmethod
    def act(self, observation: Tensor, noise: Tensor, generator: torch.Generator | None = None) -> Sample:
        """Acts on raw observations (W, obs), without gradients; safe to capture in a CUDA graph.

        Args:
            observation: raw, (W, obs).
            noise: standard normal (W, noise_size); zeros give the deterministic action.
            generator: of what is drawn for `loss` alone; without it the sample may lack `stored`.
        """

    @abstractmethod
    def loss(self, minibatch: Mapping[str, Tensor], ppo: Ppo, regularisation: Tensor) -> PolicyLoss:
        """What an update descends on; safe to capture in a CUDA graph.

        Args:
            minibatch: normalised `observation` (B, obs), normalised `advantage` (B,) and what `reads` names (B, ...).
            ppo: settings.
            regularisation: weights of a latent Gaussian's entropy and of the pulls on its μ and its σ, (3,).
        """

    def gradients(self, buffers: Mapping[str, Tensor], rows: Tensor, ppo: Ppo, regularisation: Tensor) -> PolicyLoss:
        """Leaves the gradients of `loss` with the parameters of `trained`; returns its terms, detached.

        Args:
            buffers: what a minibatch is gathered from, by the names that `loss` knows, (S, ...) each.
            rows: the minibatch, (B,), int64.
            ppo: settings.
            regularisation: as in `loss`.
        """
        terms = self.loss({name: buffer[rows] for name, buffer in buffers.items()}, ppo, regularisation)
        self.trained.zero_grad(set_to_none=True)
        terms.loss.backward()
        return terms._replace(loss=terms.loss.detach())

    @abstractmethod
    def forward(self, observation: Tensor, noise: Tensor | None = None) -> Tensor:
        """The action in (-1, 1), as exported: (N, obs), (N, noise_size) -> (N, a); deterministic without noise."""

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Becomes what a checkpoint holds.

        Raises:
            InputError: it was trained for other observations or another robot than the task now has.
        """
        try:
            self.load_state_dict(saved["policy"])
        except RuntimeError as error:
            had, has = len(saved["policy"]["normaliser.shift"]), len(self.normaliser.shift)
            raise InputError(
                f"the task or its robot has changed since this policy was trained: it observed {had} numbers, now "
                f"there are {has}; undo that, or train anew"
            ) from error
        self.generative = saved["generative"]

    def end_stage(self, observation: Tensor, action: Tensor, config: Refit, generator: torch.Generator) -> RefitResult:
        """Refits to a stage's last samples, (S, N, obs) and pre-tanh (S, N, a); called only where `refits`."""
        raise NotImplementedError

    def restart(self) -> None:
        """Sets `trained` back to where z ~ N(0, I), in place; called after a refit."""

    def description(self) -> dict[str, Any]:
        """What an export says of the policy."""
        return {"method": self.name, "noise_size": self.noise_size}
