"""What the critic's kernels are made of: products of TF32 parts, and layers forwards and backwards.

Matrices that are multiplied are kept such that the summed axis is contiguous, which is how tensor cores take TF32
operands: what a block of rows leaves behind is transposed, (units, stride), a row's `place` is its column.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gorl_robotics.mlp_blocks import add, add_parts, silu, slope, split


@triton.jit
def product(  # type: ignore[no-untyped-def]
    left,
    place,
    stride,
    right,
    unit,
    size: tl.constexpr,
    width: tl.constexpr,
    block: tl.constexpr,
    chunk: tl.constexpr,
    exact: tl.constexpr,
):
    """The columns `place` of (size, stride), transposed, times the rows `unit` of packed weights (2, width, size)."""
    total = tl.zeros((block, unit.shape[0]), tl.float32)
    for start in range(0, size, chunk):
        axis = start + tl.arange(0, chunk)
        a = tl.load(left + axis[None, :] * stride + place[:, None])
        w = right + unit[:, None] * size + axis[None, :]
        big, small = split(a)  # in registers, as the left operand has to be: only there may the units be its columns
        if exact:
            w_big, w_small = tl.trans(tl.load(w)), tl.trans(tl.load(w + width * size))
            total = add_parts(total, big, small, w_big, w_small)
        else:
            total = tl.dot(big, tl.trans(tl.load(w)), total, input_precision="tf32")
    return total


@triton.jit
def activate(  # type: ignore[no-untyped-def]
    p, unit, biases, kept, slopes, place, stride, block: tl.constexpr, width: tl.constexpr
):
    """Adds biases, and leaves the SiLU of (block, units) transposed with `kept`, its derivative with any `slopes`."""
    p += tl.load(biases + unit)[None, :]
    tl.store(kept + unit[None, :] * stride + place[:, None], silu(p))
    if slopes is not None:
        tl.store(slopes + tl.arange(0, block)[:, None] * width + unit[None, :], slope(p))


@triton.jit
def forwards(  # type: ignore[no-untyped-def]
    seen,
    packed,
    features,
    slopes,
    place,
    stride,
    first: tl.constexpr,
    padded: tl.constexpr,
    layers: tl.constexpr,
    exact: tl.constexpr,
    block: tl.constexpr,
    across: tl.constexpr,
    chunk: tl.constexpr,
):
    """All hidden layers for a block of rows.

    `features`, (units, stride), are what each layer sees, first `seen` (block, first), and what the last one gives; any
    `slopes`, (layers, block, padded), the derivatives of each. So many units `across` are worked on at a time, in loops
    that stay loops: more would not fit into registers. Behind it other threads may read what is left.
    """
    square: tl.constexpr = padded * padded
    parts: tl.constexpr = padded // across
    hidden, above = packed + 2 * padded * first, features + first * stride
    biases = hidden + 4 * (layers - 1) * square
    axis = tl.arange(0, first)
    tl.store(features + axis[None, :] * stride + place[:, None], seen)
    tl.debug_barrier()  # other threads of this program read what is stored, here and below
    for part in range(parts):
        unit = part * across + tl.arange(0, across)
        p = product(features, place, stride, packed, unit, first, padded, block, min(first, chunk), exact)
        activate(p, unit, biases, above, slopes, place, stride, block, padded)
    for layer in range(1, layers):
        tl.debug_barrier()
        kept, right = above + (layer - 1) * padded * stride, hidden + 4 * (layer - 1) * square
        own = None if slopes is None else slopes + layer * block * padded
        for part in range(parts):
            unit = part * across + tl.arange(0, across)
            p = product(kept, place, stride, right, unit, padded, padded, block, chunk, exact)
            activate(p, unit, biases + layer * padded, kept + padded * stride, own, place, stride, block, padded)
    tl.debug_barrier()


@triton.jit
def leave(  # type: ignore[no-untyped-def]
    delta, unit, kept, sums, more, place, stride, width: tl.constexpr
):
    """Leaves the gradient of what a layer gives transposed with `kept`, and with `sums` that of its biases."""
    tl.store(kept + unit[None, :] * stride + place[:, None], delta)
    add(sums + unit, tl.sum(delta, axis=0), (unit < width, more))


@triton.jit
def head_value(  # type: ignore[no-untyped-def]
    h,
    head,
    head_bias,
    place,
    stride,
    width: tl.constexpr,
    block: tl.constexpr,
    padded: tl.constexpr,
    across: tl.constexpr,
):
    """What the head makes of the columns `place` of `h`, (padded, stride); (block,)."""
    value = tl.zeros((block,), tl.float32) + tl.load(head_bias)
    for part in range(padded // across):
        unit = part * across + tl.arange(0, across)
        w = tl.load(head + unit, mask=unit < width, other=0.0)
        value += tl.sum(tl.load(h + unit[None, :] * stride + place[:, None]) * w[None, :], axis=1)
    return value


@triton.jit
def value_gradient(value, wanted, sums, more, here, count):  # type: ignore[no-untyped-def]
    """The loss's gradient of values (block,); sums it, which is that of the head's bias, and squared errors."""
    error = tl.where(here, value - wanted, 0.0)
    add(sums, tl.sum(error) / count, (True, more))
    add(sums + 1, tl.sum(error * error) / count, (True, more))
    return error / count


@triton.jit
def head_gradient(  # type: ignore[no-untyped-def]
    up, h, head, slopes, unit, sums, more, place, stride, width: tl.constexpr, block: tl.constexpr, padded: tl.constexpr
):
    """From the gradient (block,) of what the head gives, that of units of the last layer before their SiLU.

    Sums that of the head's weights.
    """
    seen = tl.load(h + unit[None, :] * stride + place[:, None])
    add(sums + unit, tl.sum(up[:, None] * seen, axis=0), (unit < width, more))
    w = tl.load(head + unit, mask=unit < width, other=0.0)
    return up[:, None] * w[None, :] * tl.load(slopes + tl.arange(0, block)[:, None] * padded + unit[None, :])


@triton.jit
def weight_gradient(  # type: ignore[no-untyped-def]
    delta,
    seen,
    result,
    start,
    chunks: tl.constexpr,
    out,
    columns,
    stride,
    size,
    width,
    side: tl.constexpr,
    across: tl.constexpr,
    chunk: tl.constexpr,
    exact: tl.constexpr,
):
    """A tile (side, across) of a weight's gradient, (width, size), summed over so many chunks of rows."""
    total = tl.zeros((side, across), tl.float32)
    for step in range(chunks):
        row = start + step * chunk + tl.arange(0, chunk)
        here = (row < stride)[None, :]
        a = tl.load(delta + out[:, None] * stride + row[None, :], mask=here, other=0.0)
        b = tl.trans(tl.load(seen + columns[:, None] * stride + row[None, :], mask=here, other=0.0))
        if exact:
            a_big, a_small = split(a)
            b_big, b_small = split(b)
            total = add_parts(total, a_big, a_small, b_big, b_small)
        else:
            total = tl.dot(a, b, total, input_precision="tf32")
    real = (out < width)[:, None] & (columns < size)[None, :]
    tl.store(result + out[:, None] * size + columns[None, :], total, mask=real)
