"""A minibatch of a Gaussian policy in one Triton kernel: forwards, PPO's loss and its gradient, and backwards.

The mathematics is that of `gorl_robotics.losses.policy_loss` behind a `LatentPolicy`; rows are gathered inside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor, nn

from gorl_robotics import mlp_kernel
from gorl_robotics.losses import LARGEST_CHANGE
from gorl_robotics.mlp_blocks import add, columns, hidden, hidden_backward, layer, layer_backward, softplus
from gorl_robotics.networks import MIN_STD, UNIT_STD

_TERMS = 5  # loss, kl, clipped, entropy, std
_LOG_2PI = tl.constexpr(math.log(2 * math.pi))
_LARGEST = tl.constexpr(LARGEST_CHANGE)


@triton.jit
def _surrogate(change, advantage, clip):  # type: ignore[no-untyped-def]
    """PPO's surrogate of log ratios (block,), its derivative, an estimate of KL(old, new), and who is clipped.

    Within the range both surrogates are one; beyond it the derivative is that of the smaller. Comparisons are such
    that what is not a number stays so.
    """
    out = tl.abs(change) > _LARGEST
    change = tl.where(out, tl.where(change > 0, _LARGEST, -_LARGEST), change)
    ratio = tl.exp(change)
    free = ratio * advantage
    bounded = tl.minimum(tl.maximum(ratio, 1 - clip), 1 + clip) * advantage
    beyond = tl.abs(ratio - 1) > clip
    value = tl.where(bounded < free, bounded, free)
    derivative = tl.where(out | (beyond & (free >= bounded)), 0.0, free)
    return value, derivative, ratio - 1 - change, tl.where(beyond, 1.0, 0.0)


@triton.jit
def _loss(  # type: ignore[no-untyped-def]
    mean, spread, z, old, advantage, here, real, count, size, clip, entropy_weight, pull, narrow, unit_std, min_std
):
    """The loss of a block of rows and its gradient with respect to the network's two outputs.

    `mean`, `spread` and `z` are (padded, block), `old` and `advantage` (block,), `here` (block,) and `real` (padded,)
    say which of them there are. Returns both gradients and, as sums over rows over their number, the five terms.
    """
    both = real[:, None] & here[None, :]
    std = softplus(spread + unit_std) + min_std
    deviation = (z - mean) / std
    log_std = tl.log(std)
    log_prob = tl.sum(tl.where(both, -0.5 * deviation * deviation - log_std - 0.5 * _LOG_2PI, 0.0), axis=0)
    change = log_prob - old
    value, derivative, kl, clipped = _surrogate(change, advantage, clip)
    up = -derivative[None, :] / count
    to_mean = up * deviation / std + pull * 2 * mean / count
    to_std = up * (deviation * deviation - 1) / std - entropy_weight / (count * std) + narrow * 2 * std / count
    to_spread = to_std * tl.sigmoid(spread + unit_std)
    entropy = tl.sum(tl.sum(tl.where(both, log_std + 0.5 * _LOG_2PI + 0.5, 0.0), axis=0)) / count
    pulled = tl.sum(tl.sum(tl.where(both, pull * mean * mean + narrow * std * std, 0.0), axis=0)) / count
    loss = -tl.sum(tl.where(here, value, 0.0)) / count - entropy_weight * entropy + pulled
    term = tl.arange(0, 8)
    terms = tl.where(term == 0, loss, 0.0) + tl.where(term == 1, tl.sum(tl.where(here, kl, 0.0)) / count, 0.0)
    terms += tl.where(term == 2, tl.sum(tl.where(here, clipped, 0.0)) / count, tl.where(term == 3, entropy, 0.0))
    terms += tl.where(term == 4, tl.sum(tl.sum(tl.where(both, std, 0.0), axis=0)) / (count * size), 0.0)
    return tl.where(both, to_mean, 0.0), tl.where(both, to_spread, 0.0), terms


@triton.jit
def _improve(  # type: ignore[no-untyped-def]
    observation,
    latent,
    log_prob,
    advantage,
    rows,
    regularisation,
    weights,
    biases,
    scratch,
    partial,
    stride,
    count,
    clip,
    unit_std,
    min_std,
    turns: tl.constexpr,
    inputs: tl.constexpr,
    padded: tl.constexpr,
    size: tl.constexpr,
    head: tl.constexpr,
    width: tl.constexpr,
    layers: tl.constexpr,
    block: tl.constexpr,
    precision: tl.constexpr,
):
    axis, result = tl.arange(0, padded), tl.arange(0, head)
    real = result < size
    entropy_weight, pull = tl.load(regularisation), tl.load(regularisation + 1)
    narrow = tl.load(regularisation + 2)
    scratch += tl.program_id(0) * layers * block * width
    sums = partial + tl.program_id(0) * stride
    own = sums + width * (inputs + 1) + (layers - 1) * width * (width + 1)
    own_bias = own + 2 * size * width
    # The last layer's rows are means first, then spreads: two layers to the products here.
    w_spread, b_spread = weights[layers] + size * width, biases[layers] + size
    for turn in range(turns):
        tl.debug_barrier()  # other threads of this program may have written what is added to here
        place = (turn * tl.num_programs(0) + tl.program_id(0)) * block + tl.arange(0, block)
        here = place < count
        row = tl.load(rows + place, mask=here, other=0)
        x = columns(observation, row, axis, inputs, here)
        h = hidden(x, weights, biases, scratch, inputs, padded, width, layers, block, precision)
        mean = layer(h, weights[layers], biases[layers], width, width, width, size, head, precision)
        spread = layer(h, w_spread, b_spread, width, width, width, size, head, precision)
        z = columns(latent, row, result, size, here)
        old = tl.load(log_prob + row, mask=here, other=0.0)
        gain = tl.load(advantage + row, mask=here, other=0.0)
        to_mean, to_spread, terms = _loss(
            mean, spread, z, old, gain, here, real, count, size, clip, entropy_weight, pull, narrow, unit_std, min_std
        )
        more = turn > 0
        term = tl.arange(0, 8)
        add(own_bias + 2 * size + term, terms, (term < 5, more))
        delta = layer_backward(to_mean, h, weights[layers], own, own_bias, more, size, head, width, precision)
        delta += layer_backward(
            to_spread, h, w_spread, own + size * width, own_bias + size, more, size, head, width, precision
        )
        tl.debug_barrier()
        hidden_backward(delta, x, weights, scratch, sums, more, inputs, padded, width, layers, block, precision)


def improve(
    network: nn.Sequential,
    observation: Tensor,
    latent: Tensor,
    log_prob: Tensor,
    advantage: Tensor,
    rows: Tensor,
    clip: float,
    regularisation: Tensor,
) -> tuple[Sequence[Tensor], Tensor]:
    """The gradients of `policy_loss` on some rows of a rollout, and its terms.

    Args:
        network: of a `LatentPolicy`, which fits.
        observation: normalised, (S, obs); like the next three contiguous.
        latent: (S, a).
        log_prob: (S,) of it when it was sampled.
        advantage: (S,), normalised.
        rows: which of them are the minibatch, (B,), int64.
        clip: range of the probability ratio.
        regularisation: weights of the Gaussian's entropy and of the pulls on μ and on σ, (3,).

    Returns:
        A gradient for every parameter, all of them views of one buffer; and (5,), the fields of a `PolicyLoss`.
    """
    parameters = [each.detach() for each in network.parameters()]
    arguments, size = mlp_kernel.shape_arguments(parameters), latent.shape[1]
    arguments |= {"size": size, "head": mlp_kernel.padded(size)}
    partial = mlp_kernel.partial_sums(parameters, len(rows), _TERMS)
    _improve[(len(partial),)](
        observation,
        latent,
        log_prob,
        advantage,
        rows,
        regularisation,
        tuple(parameters[::2]),
        tuple(parameters[1::2]),
        mlp_kernel.scratch(parameters, len(partial)),
        partial,
        partial.stride(0),
        len(rows),
        clip,
        UNIT_STD,
        MIN_STD,
        mlp_kernel.turns(len(rows), len(partial)),
        **arguments,
        num_warps=mlp_kernel.WARPS,
    )
    flat = partial.sum(dim=0)
    gradients = mlp_kernel.views(flat, parameters)
    end = sum(each.numel() for each in parameters)
    return gradients, flat[end : end + _TERMS]
