"""A critic's minibatch in three Triton kernels that run on as few processors as they are told to.

One kernel splits the weights into TF32 parts once for all rows. The next works through blocks of rows: forwards, the
squared error, and backwards, leaving every layer's input and gradient behind. The third multiplies these into the
weights' gradients. Nothing is added in an order left to chance: equal inputs give equal bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor, nn

from gorl_robotics.critic_blocks import (
    forwards,
    head_gradient,
    head_value,
    leave,
    product,
    value_gradient,
    weight_gradient,
)
from gorl_robotics.mlp_blocks import precision, split, tile

BESIDE = 48  # programs while another stream has work: the other processors are left to it
ROWS = 64  # of a block
# Units of a layer that are worked on at a time, 32 for each warp, how much of the summed axis is loaded at a time, and
# how far ahead: with products of three TF32 parts, and with those of one.
EXACT, ROUNDED = (128, 32, 3), (256, 16, 4)
# The same where weights' gradients are summed, first the outputs of a layer.
TILE, TILE_WARPS, TILE_CHUNK, TILE_STAGES = 128, 8, 32, 3
_PACKED = 64  # a square of weights that a program splits


@triton.jit
def _pack(  # type: ignore[no-untyped-def]
    weights,
    biases,
    packed,
    inputs,
    width,
    first: tl.constexpr,
    padded: tl.constexpr,
    layers: tl.constexpr,
    side: tl.constexpr,
):
    # A layer's weights (padded, padded), big and small, then transposed; the first layer's (padded, first) only once.
    # Behind all of them the biases, (layers, padded).
    out = tl.program_id(0) * side + tl.arange(0, side)[:, None]
    unit = tl.program_id(1) * side + tl.arange(0, side)[None, :]
    ends = packed + 2 * padded * first + 4 * (layers - 1) * padded * padded
    if tl.program_id(2) == 0:
        w = tl.load(weights[0] + out * inputs + unit, mask=(out < width) & (unit < inputs), other=0.0)
        big, small = split(w)
        place, here = packed + out * first + unit, unit < first
        tl.store(place, big, mask=here)
        tl.store(place + padded * first, small, mask=here)
        tl.store(ends + out, tl.load(biases[0] + out, mask=out < width, other=0.0))
    for layer in tl.static_range(1, layers):
        if tl.program_id(2) == layer:
            w = tl.load(weights[layer] + out * width + unit, mask=(out < width) & (unit < width), other=0.0)
            big, small = split(w)
            own, here = packed + 2 * padded * first + 4 * (layer - 1) * padded * padded, unit < padded
            tl.store(own + out * padded + unit, big, mask=here)
            tl.store(own + padded * padded + out * padded + unit, small, mask=here)
            tl.store(own + 2 * padded * padded + unit * padded + out, big, mask=here)
            tl.store(own + 3 * padded * padded + unit * padded + out, small, mask=here)
            tl.store(ends + layer * padded + out, tl.load(biases[layer] + out, mask=out < width, other=0.0))


@triton.jit
def _rows(  # type: ignore[no-untyped-def]
    x,
    target,
    rows,
    packed,
    head,
    head_bias,
    features,
    deltas,
    slopes,
    sums,
    count,
    stride,
    turns: tl.constexpr,
    inputs: tl.constexpr,
    width: tl.constexpr,
    first: tl.constexpr,
    padded: tl.constexpr,
    layers: tl.constexpr,
    exact: tl.constexpr,
    block: tl.constexpr,
    across: tl.constexpr,
    chunk: tl.constexpr,
):
    # `features` and `slopes` of a program as `forwards` says, `deltas` the gradients of what each layer gives, (units,
    # stride); `sums` of a program those of the biases, of the head's weights and bias, and of squared errors.
    square: tl.constexpr = padded * padded
    parts: tl.constexpr = padded // across
    slopes += tl.program_id(0) * layers * block * padded
    sums += tl.program_id(0) * ((layers + 1) * width + 2)
    hidden, above = packed + 2 * padded * first, features + first * stride
    for turn in range(turns):
        more = turn > 0
        place = (turn * tl.num_programs(0) + tl.program_id(0)) * block + tl.arange(0, block)
        here = place < count
        row, axis = tl.load(rows + place, mask=here, other=0), tl.arange(0, first)
        seen = tile(x, row, axis, inputs, here[:, None] & (axis < inputs)[None, :])
        forwards(seen, packed, features, slopes, place, stride, first, padded, layers, exact, block, across, chunk)
        wanted = tl.load(target + row, mask=here, other=0.0)
        h, own = above + (layers - 1) * padded * stride, slopes + (layers - 1) * block * padded
        delta = deltas + (layers - 1) * padded * stride
        vectors = sums + layers * width
        value = head_value(h, head, head_bias, place, stride, width, block, padded, across)
        to_value = value_gradient(value, wanted, vectors + width, more, here, count)
        for part in range(parts):
            unit = part * across + tl.arange(0, across)
            up = head_gradient(to_value, h, head, own, unit, vectors, more, place, stride, width, block, padded)
            leave(up, unit, delta, vectors - width, more, place, stride, width)
        for back in range(1, layers):
            tl.debug_barrier()
            kept, own = deltas + (layers - back) * padded * stride, slopes + (layers - back - 1) * block * padded
            for part in range(parts):
                unit = part * across + tl.arange(0, across)
                right = hidden + 4 * (layers - back - 1) * square + 2 * square
                up = product(kept, place, stride, right, unit, padded, padded, block, chunk, exact)
                up *= tl.load(own + tl.arange(0, block)[:, None] * padded + unit[None, :])
                leave(up, unit, kept - padded * stride, sums + (layers - back - 1) * width, more, place, stride, width)


@triton.jit
def _weights(  # type: ignore[no-untyped-def]
    features,
    deltas,
    partial,
    parts,
    stride,
    inputs,
    width,
    chunks: tl.constexpr,
    turns: tl.constexpr,
    first: tl.constexpr,
    padded: tl.constexpr,
    layers: tl.constexpr,
    exact: tl.constexpr,
    side: tl.constexpr,
    across: tl.constexpr,
    chunk: tl.constexpr,
):
    # Tiles of all parts and layers go round the programs, those of hidden layers first, which are the largest.
    numbers = width * (inputs + (layers - 1) * width)
    high: tl.constexpr = padded // side
    wide: tl.constexpr = padded // across
    large = parts * high * wide * (layers - 1)
    for turn in range(turns):
        number = turn * tl.num_programs(0) + tl.program_id(0)
        part, rest = number % parts, number // parts
        result = partial + part * numbers
        if number < large:
            layer, rest = rest // (high * wide), rest % (high * wide)
            out = (rest // wide) * side + tl.arange(0, side)
            columns = (rest % wide) * across + tl.arange(0, across)
            delta = deltas + (layer + 1) * padded * stride
            seen = features + (first + layer * padded) * stride
            result += width * (inputs + layer * width)
            start = part * chunks * chunk
            weight_gradient(
                delta, seen, result, start, chunks, out, columns, stride, width, width, side, across, chunk, exact
            )
        elif number < large + parts * high:
            out = (rest - (layers - 1) * high * wide) * side + tl.arange(0, side)
            start, axis = part * chunks * chunk, tl.arange(0, first)
            weight_gradient(
                deltas, features, result, start, chunks, out, axis, stride, inputs, width, side, first, chunk, exact
            )


def gradients(
    critic: nn.Sequential, observation: Tensor, target: Tensor, rows: Tensor, most: int
) -> tuple[list[Tensor], Tensor]:
    """The gradients of half the mean squared error on some rows of a rollout, and that mean.

    Args:
        critic: fits.
        observation: normalised, (S, obs), contiguous.
        target: what the critic should give, (S,), contiguous.
        rows: which of them are the minibatch, (B,), int64.
        most: programs that may run at once, each on a processor of its own where there are so many.

    Returns:
        A gradient for every parameter, views of two buffers; and the mean of squared errors, ().
    """
    parameters = [each.detach() for each in critic.parameters()]
    weights, width, shape = parameters[:-2:2], len(parameters[0]), shape_arguments(parameters)
    features, deltas, sums = _passes(parameters, observation, target, rows, most, shape)
    partial = _products(weights, features, deltas, most, shape)
    numbers, vectors = partial.sum(dim=0), sums.sum(dim=0)
    *biases, head, head_bias, loss = vectors.split([width] * (len(weights) + 1) + [1, 1])
    matrices = numbers.split([each.numel() for each in weights])
    hidden = zip(matrices, biases, strict=True)
    ordered = [*(each for pair in hidden for each in pair), head, head_bias]
    return [each.view(other.shape) for each, other in zip(ordered, parameters, strict=True)], loss.squeeze(0)


def shape_arguments(parameters: Sequence[Tensor]) -> dict[str, Any]:
    """The constants that kernels here are compiled for, from a critic's weights and biases in turn."""
    width, inputs = parameters[0].shape
    first, padded = (max(least, triton.next_power_of_2(size)) for least, size in ((16, inputs), (64, width)))
    return {"first": first, "padded": padded, "layers": len(parameters) // 2 - 1, "exact": precision() == "tf32x3"}


def block_arguments(shape: dict[str, Any]) -> dict[str, Any]:
    """How a block of rows is worked on, and launched."""
    across, chunk, stages = EXACT if shape["exact"] else ROUNDED
    across = min(across, shape["padded"])
    warps = max(4, across // 32)
    return {"block": ROWS, "across": across, "chunk": chunk, "num_warps": warps, "num_stages": stages}


def packed(parameters: Sequence[Tensor], first: int, padded: int, layers: int) -> Tensor:
    """Hidden layers' weights and biases as `_pack` says."""
    width, inputs = parameters[0].shape
    out = parameters[0].new_empty(2 * padded * first + 4 * (layers - 1) * padded * padded + layers * padded)
    grid = (padded // _PACKED, triton.cdiv(max(first, padded), _PACKED), layers)
    weights, biases = tuple(parameters[:-2:2]), tuple(parameters[1:-2:2])
    _pack[grid](weights, biases, out, inputs, width, first, padded, layers, _PACKED)
    return out


def programs_and_turns(rows: int, most: int) -> tuple[int, int]:
    """Programs for so many rows, no more than their turns need, and the blocks of rows that each works through."""
    blocks = triton.cdiv(rows, ROWS)
    turns = triton.cdiv(blocks, most)
    return triton.cdiv(blocks, turns), turns


def _passes(
    parameters: list[Tensor], x: Tensor, target: Tensor, rows: Tensor, most: int, shape: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Forwards and backwards: `features`, `deltas` and every program's `sums`, as the kernel says."""
    (width, inputs), new = parameters[0].shape, x.new_empty
    first, padded, layers = shape["first"], shape["padded"], shape["layers"]
    programs, turns = programs_and_turns(len(rows), most)
    stride = programs * turns * ROWS
    features, deltas = new(first + layers * padded, stride), new(layers * padded, stride)
    sums = new(programs, (layers + 1) * width + 2)
    _rows[(programs,)](
        x,
        target,
        rows,
        packed(parameters, first, padded, layers),
        parameters[-2],
        parameters[-1],
        features,
        deltas,
        new(programs, layers, ROWS, padded),
        sums,
        len(rows),
        stride,
        turns,
        inputs,
        width,
        **shape,
        **block_arguments(shape),
    )
    return features, deltas, sums


def _products(
    weights: Sequence[Tensor], features: Tensor, deltas: Tensor, programs: int, shape: dict[str, Any]
) -> Tensor:
    """Parts of the weights' gradients, (parts, numbers), whose sum they are."""
    (width, inputs), stride = weights[0].shape, features.shape[1]
    side, across = min(TILE, shape["padded"]), min(2 * TILE, shape["padded"])
    high = shape["padded"] // side
    large = (shape["layers"] - 1) * high * (shape["padded"] // across)
    chunks = triton.cdiv(stride // TILE_CHUNK, max(1, programs // large))
    parts = triton.cdiv(stride // TILE_CHUNK, chunks)
    partial = features.new_empty(parts, sum(each.numel() for each in weights))
    _weights[(programs,)](
        features,
        deltas,
        partial,
        parts,
        stride,
        inputs,
        width,
        chunks,
        triton.cdiv(parts * (large + high), programs),
        **shape,
        side=side,
        across=across,
        chunk=TILE_CHUNK,
        num_warps=TILE_WARPS * side // TILE,
        num_stages=TILE_STAGES,
    )
    return partial
