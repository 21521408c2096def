"""The whole decoding as one Triton kernel: fifty small matrix products that never leave the chip.

Rows of a batch are columns here, and a layer's weights are the left matrix of a product: a program's warps then share
its outputs among them, where they would otherwise all compute the same for a few rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from gorl_robotics.mlp_blocks import dot, layer, precision, silu, tile
from gorl_robotics.mlp_kernel import padded

WARPS = 4  # of a program: each has 16 of the 64 outputs of a layer
ROWS = 32  # of a program: 4,096 worlds are then about one program for each of a large GPU's processors
# Rows of three programs for each of a large GPU's 132 processors: from here on a program has twice as many.
MANY = 12_672


@triton.jit
def path_end(  # type: ignore[no-untyped-def]
    x,
    seen,
    weights,
    biases,
    clock,
    divisor,
    inputs: tl.constexpr,
    times: tl.constexpr,
    size: tl.constexpr,
    padded: tl.constexpr,
    width: tl.constexpr,
    layers: tl.constexpr,
    steps: tl.constexpr,
    bound: tl.constexpr,
    precision: tl.constexpr,
):
    """Where a network's steps from x lead, (padded, block) with zeros beyond `size`.

    `seen` (width, block) is what the first layer makes of the observation, bias included. The compiler keeps what all
    steps have in common in shared memory, weights in the two parts that products are made of. Those of the first layer
    are multiplied by the time in every step instead, and so take up no room there but during their product.
    """
    axis, unit = tl.arange(0, padded), tl.arange(0, width)
    # Point and time are the last inputs of the first layer: one product for both.
    first = tile(weights[0] + (inputs - size - times), unit, axis, inputs, (axis < size + times)[None, :])
    last = tile(weights[layers], axis, unit, width, (axis < size)[:, None])
    bias = tl.load(biases[layers] + axis, mask=axis < size, other=0.0)
    timed = (axis >= size) & (axis < size + times)
    for step in range(steps):
        time = tl.load(clock + step * times + axis - size, mask=timed, other=1.0)
        point = tl.where(timed[:, None], 1.0, x)
        h = silu(seen + dot(first * time[None, :], point, precision))
        for index in tl.static_range(1, layers):
            h = silu(layer(h, weights[index], biases[index], width, width, width, width, width, precision))
        output = dot(last, h, precision) + bias[:, None]
        if bound > 0:
            output = bound * (2 * tl.sigmoid(2 / bound * output) - 1)  # bound · tanh(output / bound)
        x -= output / tl.load(divisor + step)
    return x


@triton.jit
def _decode(  # type: ignore[no-untyped-def]
    seen,
    z,
    weights,
    biases,
    clock,
    divisor,
    out,
    count,
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
    row = tl.program_id(0) * block + tl.arange(0, block)
    axis, here = tl.arange(0, padded), (row < count)[None, :]
    real = here & (axis < size)[:, None]
    place = row[None, :] * size + axis[:, None]
    x = tl.load(z + place, mask=real, other=0.0)
    base = tl.load(seen + row[None, :] * width + tl.arange(0, width)[:, None], mask=here, other=0.0)
    x = path_end(
        x, base, weights, biases, clock, divisor, inputs, times, size, padded, width, layers, steps, bound, precision
    )
    tl.store(out + place, x, mask=real)


def block_rows(count: int) -> int:
    """Rows of a program for a batch of so many."""
    return ROWS if count < MANY else 2 * ROWS


def decode(network: nn.Sequential, clock: Tensor, divisor: Tensor, seen: Tensor, z: Tensor, bound: float) -> Tensor:
    """The steps from z (N, a) to the pre-tanh action (N, a), of the accuracy that `mlp_blocks.precision` names.

    Args:
        network: of a `VelocityField` that fits.
        clock: each step's time as the network reads it, (steps, times).
        divisor: the network's output over this is a step, (steps,).
        seen: what the first layer makes of the observation, bias included, (N, width).
        z: where the path begins.
        bound: of the network's output; see `VelocityField`.
    """
    parameters, z = list(network.parameters()), z.contiguous()
    out, arguments, block = torch.empty_like(z), path_arguments(parameters, clock, bound), block_rows(len(z))
    _decode[(triton.cdiv(len(z), block),)](
        seen.contiguous(),
        z,
        tuple(parameters[::2]),
        tuple(parameters[1::2]),
        clock,
        divisor,
        out,
        len(z),
        **arguments,
        precision=precision(),
        block=block,
        num_warps=WARPS,
    )
    return out


def path_arguments(parameters: Sequence[Tensor], clock: Tensor, bound: float = math.inf) -> dict[str, Any]:
    """The constants that `path_end` is compiled for, from the network's weights and biases in turn."""
    (width, inputs), size, (steps, times) = parameters[0].shape, len(parameters[-1]), clock.shape
    return {
        "inputs": inputs,
        "times": times,
        "size": size,
        "padded": padded(size + times),
        "width": width,
        "layers": len(parameters) // 2 - 1,
        "steps": steps,
        "bound": 0.0 if math.isinf(bound) else bound,
    }
