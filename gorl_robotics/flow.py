"""The decoder: a conditional flow from the latent z to the action, and how it is fitted.

Along the straight path x_t = t·ε + (1 - t)·a between noise ε ~ N(0, I) and an action a, a network learns the velocity
ε - a (conditional flow matching, Lipman et al. 2023; as used by GoRL, arXiv 2512.02581). Decoding starts from x_1 = z
and integrates to x_0, the pre-tanh action, in equal Euler steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gorl_robotics.networks import Normaliser, mlp

_FREQUENCIES = 4


class FlowDecoder(nn.Module):
    """Turns (observation, z) into a pre-tanh action. With a zero last layer, as at first, the action is z exactly.

    Args:
        observation_size: width of the raw observation; the decoder keeps normalisation statistics of its own, which
            stay what they were when it was fitted.
        action_size: width of z and of the action.
        hidden: widths of the velocity network's hidden layers.
        steps: Euler steps of a decoding.
    """

    clock: Tensor

    def __init__(self, observation_size: int, action_size: int, hidden: Sequence[int], steps: int) -> None:
        super().__init__()
        self.steps, self.action_size = steps, action_size
        self.normaliser = Normaliser(observation_size)
        self.network = mlp(observation_size + action_size + 2 * _FREQUENCIES, hidden, action_size)
        self.register_buffer("clock", _embed((torch.arange(steps, 0, -1) / steps).unsqueeze(1)))
        self.restart()

    def velocity(self, observation: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The network's velocity at (x, t) given a normalised observation: (N, obs), (N, a), (N, 1) -> (N, a)."""
        return self.network(torch.cat([observation, x, _embed(t)], dim=-1))

    def forward(self, observation: Tensor, z: Tensor) -> Tensor:
        """Decodes: raw observation (N, obs) and latent (N, a) to the pre-tanh action (N, a)."""
        first, *hidden, last = self._layers()
        wide = self.normaliser.mean.shape[0]
        # What the first layer makes of observation and time does not change along the path: computed once.
        seen, moved, timed = first.weight.split([wide, self.action_size, 2 * _FREQUENCIES], dim=1)
        base = F.linear(self.normaliser(observation), seen, first.bias)
        clock = F.linear(self.clock, timed)
        if z.is_cuda and not torch.is_grad_enabled() and self._fused():
            from gorl_robotics.flow_kernel import decode

            return decode(base, clock, moved, hidden, last, z)
        x = z
        for step in range(self.steps):
            h = F.silu(base + clock[step] + F.linear(x, moved))
            for layer in hidden:
                h = F.silu(layer(h))
            x = x - last(h) / self.steps
        return x

    def loss(self, observation: Tensor, action: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Conditional flow-matching loss, a scalar.

        Args:
            observation: normalised, (N, obs).
            action: pre-tanh, (N, a).
            t: times in [0, 1], (N, 1).
            noise: standard normal, (N, a).
        """
        x = t * noise + (1 - t) * action
        return F.mse_loss(self.velocity(observation, x, t), noise - action)

    @torch.no_grad()
    def restart(self, generator: torch.Generator | None = None) -> None:
        """New weights in place, last layer zero: the identity from z to the action."""
        layers = self._layers()
        for layer in layers:
            nn.init.orthogonal_(layer.weight, math.sqrt(2), generator)
            nn.init.zeros_(layer.bias)
        layers[-1].weight.zero_()

    def _layers(self) -> list[nn.Linear]:
        return [module for module in self.network if isinstance(module, nn.Linear)]

    def _fused(self) -> bool:
        """Whether the hidden layers are of one width that the kernel takes."""
        widths = {layer.out_features for layer in self._layers()[:-1]}
        return len(widths) == 1 and widths <= {16, 32, 64, 128} and len(self._layers()) > 2


def _embed(t: Tensor) -> Tensor:
    """Cosines and sines of t·π/2·{1, 2, 4, 8}: (..., 1) -> (..., 8)."""
    angles = torch.cat([t * (math.pi / 2 * 2**k) for k in range(_FREQUENCIES)], dim=-1)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
