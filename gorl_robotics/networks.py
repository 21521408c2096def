"""Networks: a plain MLP, the running normaliser, the Gaussian latent policy and the critic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gorl_robotics import distributed

# Normalised observations are clipped here: a contact force may be a hundred standard deviations out.
OBSERVATION_CLIP = 10.0
_FARTHEST = 100.0  # standard deviations
_CONSTANT = 1e-6  # what deviates less is no signal
MIN_STD = 1e-3
UNIT_STD = math.log(math.expm1(1 - MIN_STD))  # what a softplus turns into a standard deviation of 1


def mlp(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Linear layers with SiLU between them; orthogonal weights, zero biases."""
    layers: list[nn.Module] = []
    sizes = [inputs, *hidden]
    for before, after in pairwise(sizes):
        layers += [_linear(before, after, math.sqrt(2)), nn.SiLU()]
    return nn.Sequential(*layers, _linear(sizes[-1], outputs, 1.0))


def fits_kernel(network: nn.Sequential) -> bool:
    """Whether `mlp_kernel` takes an `mlp`: float32 on a CUDA device, two hidden layers or more, all of one width."""
    width, outputs = _fused_sizes(network)
    return width in (16, 32, 64, 128) and outputs <= 64


def fits_critic_kernel(critic: nn.Sequential) -> bool:
    """Whether `critic_kernel` takes an `mlp`: float32 on CUDA, two hidden layers or more of one width, one output."""
    width, outputs = _fused_sizes(critic)
    return 0 < width <= 256 and outputs == 1


def _fused_sizes(network: nn.Sequential) -> tuple[int, int]:
    """Width of the hidden layers and number of outputs; a width of 0 where no fused kernel takes the network."""
    *hidden, last = (layer for layer in network if isinstance(layer, nn.Linear))
    widths = {layer.out_features for layer in hidden}
    first, weight = (hidden or [last])[0], last.weight
    fits = weight.is_cuda and weight.dtype == torch.float32 and len(hidden) > 1 and len(widths) == 1
    return (first.out_features if fits and first.in_features <= 128 else 0), last.out_features


def _linear(inputs: int, outputs: int, gain: float) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def clip_gradients(network: nn.Module, largest: float) -> None:
    """Scales the gradients of a network's parameters down to a norm of `largest`, in place."""
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    if all(gradient.is_cuda for gradient in gradients):
        from gorl_robotics.clip_kernel import clip

        clip(gradients, largest)
    else:
        nn.utils.clip_grad_norm_(network.parameters(), largest)


class Normaliser(nn.Module):
    """Shifts and scales by the exact mean and standard deviation of all that it has seen.

    Moments are kept in double precision and merged batch by batch (Chan et al. 1979), so that a hundred million
    samples count as they should. None counts as farther out than a hundred standard deviations of those before it: a
    single world whose physics diverges would else change what every world is seen with, for good.
    """

    mean: Tensor
    squares: Tensor
    count: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(size, dtype=torch.float64))  # sum of squared deviations
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("shift", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised and clipped, same shape (..., size)."""
        return ((x - self.shift) * self.scale).clamp(-OBSERVATION_CLIP, OBSERVATION_CLIP)

    @torch.no_grad()
    def update(self, batch: Tensor) -> None:
        """Takes (..., size), and what every other process gives at the same time, into the moments, in place."""
        rows = self.bounded(batch).reshape(-1, batch.shape[-1]).double()
        mean = rows.mean(dim=0)
        squares = ((rows - mean) ** 2).sum(dim=0)
        count, mean, squares = distributed.merge_moments(rows.shape[0], mean, squares)
        total = self.count + count
        delta = mean - self.mean
        self.squares.add_(squares + delta**2 * (self.count * count / total))
        self.mean.add_(delta * (count / total))
        self.count.copy_(total)
        std = self._std()
        self.shift.copy_(self.mean)
        # A constant input has no scale of its own: it passes as it is, which is zero after the shift.
        self.scale.copy_(torch.where(std > _CONSTANT, 1 / std.clamp(min=_CONSTANT), 1.0))

    def bounded(self, x: Tensor) -> Tensor:
        """No farther out than counts, same shape (..., size); as it is before the first batch."""
        std = self._std()
        farthest = torch.where(std > _CONSTANT, _FARTHEST * std, math.inf)
        return x.clamp((self.mean - farthest).to(x.dtype), (self.mean + farthest).to(x.dtype))

    def _std(self) -> Tensor:
        """Zero before the first batch."""
        return (self.squares / self.count.clamp(min=1)).sqrt()


class LatentPolicy(nn.Module):
    """A diagonal Gaussian over the latent z given a normalised observation.

    The standard deviation depends on the observation through a softplus, offset so that it is 1 where the last layer
    gives zero.
    """

    def __init__(self, observation_size: int, latent_size: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.network = mlp(observation_size, hidden, 2 * latent_size)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of z, each (..., latent_size)."""
        mean, spread = self.network(observation).chunk(2, dim=-1)
        return mean, F.softplus(spread + UNIT_STD) + MIN_STD

    @torch.no_grad()
    def restart(self) -> None:
        """Back to N(0, I) for every observation; what hidden layers have learnt to see remains.

        In place: captured graphs stay valid.
        """
        last = self.network[-1]
        assert isinstance(last, nn.Linear)
        last.weight.zero_()
        last.bias.zero_()


def gaussian_log_prob(z: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log density of a diagonal Gaussian, summed over the last axis."""
    return (-0.5 * ((z - mean) / std) ** 2 - std.log() - 0.5 * math.log(2 * math.pi)).sum(dim=-1)


def gaussian_entropy(std: Tensor) -> Tensor:
    """Entropy of a diagonal Gaussian, summed over the last axis."""
    return (std.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(dim=-1)
