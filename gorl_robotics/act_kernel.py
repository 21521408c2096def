"""A Gaussian policy's act in one Triton kernel: normalise, latent, density, decoding, tanh.

The mathematics is that of `gorl_robotics.methods.gaussian.LatentGaussian.act`. Rows of the batch are columns here; see
`flow_kernel`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from gorl_robotics.decoder import Decoder
from gorl_robotics.flow_kernel import WARPS, block_rows, path_arguments, path_end
from gorl_robotics.mlp_blocks import layer, precision, silu, softplus
from gorl_robotics.mlp_kernel import padded
from gorl_robotics.networks import MIN_STD, OBSERVATION_CLIP, UNIT_STD, Normaliser

_CLIP = tl.constexpr(OBSERVATION_CLIP)
_MIN_STD, _UNIT_STD = tl.constexpr(MIN_STD), tl.constexpr(UNIT_STD)
_HALF_LOG_2PI = tl.constexpr(0.5 * math.log(2 * math.pi))


class Acted(NamedTuple):
    """What an act of W worlds gives."""

    latent: Tensor  # (W, a)
    decoded: Tensor  # (W, a), pre-tanh
    action: Tensor  # (W, a) in (-1, 1)
    log_prob: Tensor  # (W,) of the latent


@triton.jit
def _normalised(observation, shift, scale, axis, inputs: tl.constexpr):  # type: ignore[no-untyped-def]
    real = axis < inputs
    moved = observation - tl.load(shift + axis, mask=real, other=0.0)[:, None]
    scaled = moved * tl.load(scale + axis, mask=real, other=0.0)[:, None]
    return tl.clamp(scaled, -_CLIP, _CLIP, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _gaussian(  # type: ignore[no-untyped-def]
    x,
    weights,
    biases,
    inputs: tl.constexpr,
    deep: tl.constexpr,
    size: tl.constexpr,
    padded: tl.constexpr,
    width: tl.constexpr,
    layers: tl.constexpr,
    precision: tl.constexpr,
):
    """Mean and standard deviation of z, (padded, block) each, from normalised observations (deep, block)."""
    h = silu(layer(x, weights[0], biases[0], inputs, inputs, deep, width, width, precision))
    for index in tl.static_range(1, layers):
        h = silu(layer(h, weights[index], biases[index], width, width, width, width, width, precision))
    mean = layer(h, weights[layers], biases[layers], width, width, width, size, padded, precision)
    # The last layer's rows are means first, then spreads.
    w, b = weights[layers] + size * width, biases[layers] + size
    spread = layer(h, w, b, width, width, width, size, padded, precision)
    return mean, softplus(spread + _UNIT_STD) + _MIN_STD


@triton.jit
def _act(  # type: ignore[no-untyped-def]
    observation,
    noise,
    shift,
    scale,
    weights,
    biases,
    latent,
    log_prob,
    action,
    decoder,
    decoder_weights,
    decoder_biases,
    decoded,
    count,
    seen: tl.constexpr,
    deep: tl.constexpr,
    policy_width: tl.constexpr,
    policy_layers: tl.constexpr,
    inputs: tl.constexpr,
    times: tl.constexpr,
    size: tl.constexpr,
    padded: tl.constexpr,
    width: tl.constexpr,
    layers: tl.constexpr,
    steps: tl.constexpr,
    bound: tl.constexpr,
    precision: tl.constexpr,
    block: tl.constexpr,
):
    # `decoder` is its clock and divisor and its normaliser's shift and scale, or None; then the latent is the action.
    row = tl.program_id(0) * block + tl.arange(0, block)
    column, axis, here = tl.arange(0, deep), tl.arange(0, padded), row < count
    real = (axis < size)[:, None] & here[None, :]
    place = row[None, :] * size + axis[:, None]
    raw = tl.load(
        observation + row[None, :] * seen + column[:, None], mask=(column < seen)[:, None] & here[None, :], other=0.0
    )
    x = _normalised(raw, shift, scale, column, seen)
    mean, std = _gaussian(x, weights, biases, seen, deep, size, padded, policy_width, policy_layers, precision)
    z = tl.where(real, mean + std * tl.load(noise + place, mask=real, other=0.0), 0.0)
    tl.store(latent + place, z, mask=real)
    deviation = (z - mean) / std
    density = -0.5 * deviation * deviation - tl.log(std) - _HALF_LOG_2PI
    tl.store(log_prob + row, tl.sum(tl.where(real, density, 0.0), axis=0), mask=here)
    if decoder is not None:
        x = _normalised(raw, decoder[2], decoder[3], column, seen)
        base = layer(x, decoder_weights[0], decoder_biases[0], inputs, seen, deep, width, width, precision)
        z = path_end(
            z,
            base,
            decoder_weights,
            decoder_biases,
            decoder[0],
            decoder[1],
            inputs,
            times,
            size,
            padded,
            width,
            layers,
            steps,
            bound,
            precision,
        )
        tl.store(decoded + place, z, mask=real)
    tl.store(action + place, 2 * tl.sigmoid(2 * z) - 1, mask=real)  # tanh


def act(
    network: nn.Sequential, normaliser: Normaliser, decoder: Decoder | None, observation: Tensor, noise: Tensor
) -> Acted:
    """One act on raw observations (W, obs) with noise (W, a), of the accuracy that `mlp_blocks.precision` names.

    Args:
        network: of a `LatentPolicy`, which fits.
        normaliser: of its observations.
        decoder: fits, or None where the latent is the pre-tanh action.
        observation: raw, (W, obs).
        noise: times the standard deviation it is the latent's distance from its mean, (W, a).
    """
    observation, noise = observation.contiguous(), noise.contiguous()
    parameters, decoding = list(network.parameters()), _decoding(decoder, noise.shape[1])
    latent, action, log_prob = torch.empty_like(noise), torch.empty_like(noise), noise.new_empty(len(noise))
    decoded = latent if decoder is None else torch.empty_like(noise)
    (policy_width, seen), block = parameters[0].shape, block_rows(len(noise))
    _act[(triton.cdiv(len(noise), block),)](
        observation,
        noise,
        normaliser.shift,
        normaliser.scale,
        tuple(parameters[::2]),
        tuple(parameters[1::2]),
        latent,
        log_prob,
        action,
        decoded=decoded,
        count=len(noise),
        seen=seen,
        deep=padded(seen),
        policy_width=policy_width,
        policy_layers=len(parameters) // 2 - 1,
        **decoding,
        precision=precision(),
        block=block,
        num_warps=WARPS,
    )
    return Acted(latent, decoded, action, log_prob)


def _decoding(decoder: Decoder | None, size: int) -> dict[str, Any]:
    """What the kernel is told of the decoder, if there is one, and of the size of an action."""
    if decoder is None:
        absent = dict.fromkeys(("decoder", "decoder_weights", "decoder_biases"))
        none = dict.fromkeys(("inputs", "times", "width", "layers", "steps", "bound"), 0)
        return {**absent, **none, "size": size, "padded": padded(size)}
    parameters, normaliser = list(decoder.network.parameters()), decoder.normaliser
    return {
        "decoder": (decoder.clock, decoder.divisor, normaliser.shift, normaliser.scale),
        "decoder_weights": tuple(parameters[::2]),
        "decoder_biases": tuple(parameters[1::2]),
        **path_arguments(parameters, decoder.clock),
    }
