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

from gorl_robotics.critic_blocks import activate, half_of, head_backward, leave, product, split, weight_gradient
from gorl_robotics.mlp_blocks import precision, tile

BESIDE = 48  # programs while another stream has work: the other processors are left to it
# Rows of a block, or outputs of a layer whose weights' gradient is summed at a time; 16 rows for each of the program's
# warps, so that each has whole rows of a product; how much of the summed axis is loaded at a time, and that many ahead.
ROWS, ROWS_WARPS, ROWS_CHUNK, ROWS_STAGES = 64, 4, 16, 4
TILE, TILE_WARPS, TILE_CHUNK, TILE_STAGES = 128, 8, 32, 3
_PACKED = 64  # a square of weights that a program splits


@triton.jit
def _pack(  # type: ignore[no-untyped-def]
    weights, packed, inputs, width, first: tl.constexpr, padded: tl.constexpr, layers: tl.constexpr, side: tl.constexpr
):
    # A layer's weights (padded, padded), big and small, then transposed; the first layer's (padded, first) only once.
    out = tl.program_id(0) * side + tl.arange(0, side)[:, None]
    unit = tl.program_id(1) * side + tl.arange(0, side)[None, :]
    if tl.program_id(2) == 0:
        w = tl.load(weights[0] + out * inputs + unit, mask=(out < width) & (unit < inputs), other=0.0)
        big, small = split(w)
        place, here = packed + out * first + unit, unit < first
        tl.store(place, big, mask=here)
        tl.store(place + padded * first, small, mask=here)
    for layer in tl.static_range(1, layers):
        if tl.program_id(2) == layer:
            w = tl.load(weights[layer] + out * width + unit, mask=(out < width) & (unit < width), other=0.0)
            big, small = split(w)
            own, here = packed + 2 * padded * first + 4 * (layer - 1) * padded * padded, unit < padded
            tl.store(own + out * padded + unit, big, mask=here)
            tl.store(own + padded * padded + out * padded + unit, small, mask=here)
            tl.store(own + 2 * padded * padded + unit * padded + out, big, mask=here)
            tl.store(own + 3 * padded * padded + unit * padded + out, small, mask=here)


@triton.jit
def _rows(  # type: ignore[no-untyped-def]
    x,
    target,
    rows,
    packed,
    biases,
    head,
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
    chunk: tl.constexpr,
):
    # `features` are what each layer sees, `deltas` the gradients of what it gives, both (units, stride); `sums` of a
    # program those of the biases, of the head's weights and bias, and of squared errors.
    axis, unit = tl.arange(0, first), tl.arange(0, padded)
    slopes += tl.program_id(0) * (layers - 1) * block * padded
    sums += tl.program_id(0) * ((layers + 1) * width + 2)
    square: tl.constexpr = padded * padded
    for turn in range(turns):
        more = turn > 0
        place = (turn * tl.num_programs(0) + tl.program_id(0)) * block + tl.arange(0, block)
        here = place < count
        row = tl.load(rows + place, mask=here, other=0)
        seen = tile(x, row, axis, inputs, here[:, None] & (axis < inputs)[None, :])
        tl.store(features + axis[None, :] * stride + place[:, None], seen)
        tl.debug_barrier()  # other threads of this program read what is stored, here and below
        p = product(features, place, stride, packed, first, padded, block, min(first, chunk), exact)
        p += tl.load(biases[0] + unit, mask=unit < width, other=0.0)[None, :]
        for layer in tl.static_range(1, layers):
            kept = features + (first + (layer - 1) * padded) * stride
            activate(p, kept, slopes + (layer - 1) * block * padded, place, stride, block, padded)
            tl.debug_barrier()
            right = packed + 2 * padded * first + 4 * (layer - 1) * square
            p = product(kept, place, stride, right, padded, padded, block, chunk, exact)
            p += tl.load(biases[layer] + unit, mask=unit < width, other=0.0)[None, :]
        wanted = tl.load(target + row, mask=here, other=0.0)
        last, bias = deltas + (layers - 1) * padded * stride, biases[layers]
        head_backward(p, wanted, head, bias, last, sums, more, here, count, place, stride, width, layers, block, padded)
        for back in tl.static_range(1, layers):
            tl.debug_barrier()
            kept = deltas + (layers - back) * padded * stride
            right = packed + 2 * padded * first + 4 * (layers - back - 1) * square + 2 * square
            delta = product(kept, place, stride, right, padded, padded, block, chunk, exact)
            own = slopes + (layers - back - 1) * block * padded
            for half in tl.static_range(2):
                d, few = half_of(delta, half, block, padded)
                d *= tl.load(own + tl.arange(0, block)[:, None] * padded + few[None, :])
                leave(d, few, kept - padded * stride, sums + (layers - back - 1) * width, more, place, stride, width)


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
    weights, width = parameters[:-2:2], len(parameters[0])
    first, padded = (max(least, triton.next_power_of_2(n)) for least, n in ((16, weights[0].shape[1]), (64, width)))
    shape = {"first": first, "padded": padded, "layers": len(weights), "exact": precision() == "tf32x3"}
    features, deltas, sums = _passes(parameters, observation, target, rows, most, shape)
    partial = _products(weights, features, deltas, most, shape)
    numbers, vectors = partial.sum(dim=0), sums.sum(dim=0)
    *biases, head, head_bias, loss = vectors.split([width] * (len(weights) + 1) + [1, 1])
    matrices = numbers.split([each.numel() for each in weights])
    hidden = zip(matrices, biases, strict=True)
    ordered = [*(each for pair in hidden for each in pair), head, head_bias]
    return [each.view(other.shape) for each, other in zip(ordered, parameters, strict=True)], loss.squeeze(0)


def _passes(
    parameters: list[Tensor], x: Tensor, target: Tensor, rows: Tensor, most: int, shape: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Forwards and backwards: `features`, `deltas` and every program's `sums`, as the kernel says."""
    weights, (width, inputs) = tuple(parameters[:-2:2]), parameters[0].shape
    first, padded, layers = shape["first"], shape["padded"], shape["layers"]
    new = x.new_empty
    packed = new(2 * padded * first + 4 * (layers - 1) * padded * padded)
    grid = (padded // _PACKED, triton.cdiv(max(first, padded), _PACKED), layers)
    _pack[grid](weights, packed, inputs, width, first, padded, layers, _PACKED)
    blocks = triton.cdiv(len(rows), ROWS)
    turns = triton.cdiv(blocks, most)
    programs = triton.cdiv(blocks, turns)  # no more than so many turns need
    stride = programs * turns * ROWS
    features, deltas = new(first + (layers - 1) * padded, stride), new(layers * padded, stride)
    sums = new(programs, (layers + 1) * width + 2)
    _rows[(programs,)](
        x,
        target,
        rows,
        packed,
        tuple(parameters[1::2]),
        parameters[-2],
        features,
        deltas,
        new(programs, layers - 1, ROWS, padded),
        sums,
        len(rows),
        stride,
        turns,
        inputs,
        width,
        **shape,
        block=ROWS,
        chunk=ROWS_CHUNK,
        num_warps=ROWS_WARPS,
        num_stages=ROWS_STAGES,
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
