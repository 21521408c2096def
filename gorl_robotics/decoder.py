"""A network's velocity between noise and action, the steps along it, and what the flow and diffusion decoders share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gorl_robotics.networks import Normaliser, fits_kernel, mlp

_FREQUENCIES = 4
_HELD = 20480  # weights between hidden layers that a large GPU's shared memory holds twice, with all else


class VelocityField(nn.Module):
    """A network v(observation, x, t), and the steps that lead along it from t = 1 to the pre-tanh action at 0.

    With a zero last layer, as at first, a path stays where it begins.

    Args:
        observation_size: width of the normalised observation.
        action_size: width of a point on the path.
        hidden: widths of the network's hidden layers.
        steps: of a path.
        scale: the network's output is multiplied by this.
        divisors: the velocity over this is a step, for each step from t = 1 on; without them all are `steps`.
        bound: no velocity is larger, whatever the network makes; what is far smaller stays as it is.
    """

    clock: Tensor
    divisor: Tensor

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        hidden: Sequence[int],
        steps: int,
        scale: float = 1.0,
        divisors: Sequence[float] | None = None,
        bound: float = math.inf,
    ) -> None:
        super().__init__()
        self.steps, self.action_size, self.scale = steps, action_size, scale
        self._bound = bound / scale  # of the network's output
        self._observation_size = observation_size
        self.network = mlp(observation_size + action_size + 2 * _FREQUENCIES, hidden, action_size)
        self.register_buffer("clock", _embed((torch.arange(steps, 0, -1) / steps).unsqueeze(1)))
        self._divisors = [each / scale for each in divisors or [float(steps)] * steps]
        self.register_buffer("divisor", torch.tensor(self._divisors), persistent=False)  # of the network's output
        self.restart()

    def velocity(self, observation: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The velocity at (x, t) given a normalised observation: (..., obs), (..., a), (..., 1) -> (..., a)."""
        inputs = torch.cat([observation, x, _embed(t)], dim=-1)
        if fits_kernel(self.network) and not inputs.requires_grad:
            from gorl_robotics.mlp_kernel import mlp as fused

            return self._bounded(fused(self.network, inputs)) * self.scale
        return self._bounded(self.network(inputs)) * self.scale

    def squared_error(self, observation: Tensor, x: Tensor, t: Tensor, target: Tensor) -> Tensor:
        """The mean squared error of `velocity` as a guess of (N, a), a scalar.

        Differentiable in the network's parameters alone.
        """
        if math.isinf(self._bound) and fits_kernel(self.network) and torch.is_grad_enabled():
            from gorl_robotics.field_kernel import inputs
            from gorl_robotics.mlp_kernel import squared_error

            return squared_error(self.network, inputs(observation, x, t, _FREQUENCIES), target, self.scale)
        return F.mse_loss(self.velocity(observation, x, t), target)

    def integrate(self, observation: Tensor, z: Tensor) -> Tensor:
        """The end of the path from z: normalised observation (N, obs), (N, a) -> (N, a)."""
        if not torch.is_grad_enabled() and self.path_fits_kernel():
            from gorl_robotics.flow_kernel import decode

            return decode(self.network, self.clock, self.divisor, self._seen(observation), z, self._bound)
        return self.path(observation, z)[-1]

    def path_fits_kernel(self) -> bool:
        """Whether `flow_kernel` takes it: float32 on a CUDA device, and layers that shared memory holds."""
        first, *between, _ = self._layers()
        return (
            first.weight.is_cuda
            and first.weight.dtype == torch.float32
            and first.out_features in (16, 32, 64, 128)
            and all(layer.out_features == first.out_features for layer in between)
            and 0 < sum(layer.weight.numel() for layer in between) <= _HELD
            and self.action_size + 2 * _FREQUENCIES <= 64
        )

    def path(self, observation: Tensor, z: Tensor, kicks: Tensor | None = None) -> list[Tensor]:
        """All steps + 1 points of the path from z, each (N, a); `kicks` (N, steps, a) are added to its steps."""
        base, clock, moved, hidden, last = self._prepared(observation)
        points = [z]
        for step in range(self.steps):
            x = points[-1]
            h = F.silu(base + clock[step] + F.linear(x, moved))
            for layer in hidden:
                h = F.silu(layer(h))
            x = x - self._bounded(last(h)) / self._divisors[step]
            points.append(x if kicks is None else x + kicks[:, step])
        return points

    @torch.no_grad()
    def restart(self, generator: torch.Generator | None = None) -> None:
        """New weights in place, last layer zero: a path stays where it begins."""
        layers = self._layers()
        for layer in layers:
            nn.init.orthogonal_(layer.weight, math.sqrt(2), generator)
            nn.init.zeros_(layer.bias)
        layers[-1].weight.zero_()

    def _bounded(self, output: Tensor) -> Tensor:
        return output if math.isinf(self._bound) else self._bound * (output / self._bound).tanh()

    def _prepared(self, observation: Tensor) -> tuple[Tensor, Tensor, Tensor, list[nn.Linear], nn.Linear]:
        """What the first layer makes of observation and time does not change along the path: computed once."""
        first, *hidden, last = self._layers()
        sizes = [self._observation_size, self.action_size, 2 * _FREQUENCIES]
        _, moved, timed = first.weight.split(sizes, dim=1)
        return self._seen(observation), F.linear(self.clock, timed), moved, hidden, last

    def _seen(self, observation: Tensor) -> Tensor:
        """What the first layer makes of the observation, bias included."""
        first = self._layers()[0]
        return F.linear(observation, first.weight[:, : self._observation_size], first.bias)

    def _layers(self) -> list[nn.Linear]:
        return [module for module in self.network if isinstance(module, nn.Linear)]


class Decoder(VelocityField, ABC):
    """Turns (observation, z) into a pre-tanh action. With a zero last layer, as at first, the action is z exactly.

    Its kinds differ in the velocity that they teach the network. The decoder keeps normalisation statistics of its own,
    which stay what they were when it was fitted.
    """

    def __init__(self, observation_size: int, action_size: int, hidden: Sequence[int], steps: int) -> None:
        super().__init__(observation_size, action_size, hidden, steps, divisors=self.divisors_of(steps))
        self.normaliser = Normaliser(observation_size)

    def forward(self, observation: Tensor, z: Tensor) -> Tensor:
        """Decodes: raw observation (N, obs) and latent (N, a) to the pre-tanh action (N, a)."""
        return self.integrate(self.normaliser(observation), z)

    @staticmethod
    def divisors_of(steps: int) -> list[float]:
        """The divisors of a decoding; see `VelocityField`."""
        return [float(steps)] * steps

    @abstractmethod
    def loss(self, observation: Tensor, action: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """What a fit descends on, a scalar.

        Args:
            observation: normalised, (N, obs).
            action: pre-tanh, (N, a).
            t: uniform in [0, 1], (N, 1).
            noise: standard normal, (N, a).
        """


def _embed(t: Tensor) -> Tensor:
    """Cosines and sines of t·π/2·{1, 2, 4, 8}: (..., 1) -> (..., 8)."""
    angles = torch.cat([t * (math.pi / 2 * 2**k) for k in range(_FREQUENCIES)], dim=-1)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
