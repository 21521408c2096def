"""What the critic's kernels are made of: products of TF32 parts, and layers forwards and backwards, half by half.

Matrices that are multiplied are kept such that the summed axis is contiguous, which is how tensor cores take TF32
operands: what a block of rows leaves behind is transposed, (units, stride), a row's `place` is its column.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gorl_robotics.mlp_blocks import add, slope


@triton.jit
def split(x):  # type: ignore[no-untyped-def]
    """`x` rounded to TF32, and what is missing."""
    big = ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return big, x - big


@triton.jit
def product(  # type: ignore[no-untyped-def]
    left,
    place,
    stride,
    right,
    size: tl.constexpr,
    width: tl.constexpr,
    block: tl.constexpr,
    chunk: tl.constexpr,
    exact: tl.constexpr,
):
    """(block, width) of the columns `place` of (size, stride), transposed, and packed weights (2, width, size)."""
    unit = tl.arange(0, width)
    total = tl.zeros((block, width), tl.float32)
    for start in range(0, size, chunk):
        axis = start + tl.arange(0, chunk)
        a = tl.load(left + axis[None, :] * stride + place[:, None])
        w = right + unit[:, None] * size + axis[None, :]
        if exact:
            big, small = split(a)
            w_big, w_small = tl.trans(tl.load(w)), tl.trans(tl.load(w + width * size))
            total = tl.dot(small, w_big, total, input_precision="tf32")
            total = tl.dot(big, w_small, total, input_precision="tf32")
            total = tl.dot(big, w_big, total, input_precision="tf32")
        else:
            total = tl.dot(a, tl.trans(tl.load(w)), total, input_precision="tf32")
    return total


@triton.jit
def half_of(x, half: tl.constexpr, block: tl.constexpr, width: tl.constexpr):  # type: ignore[no-untyped-def]
    """The left or right half of (block, width), and its columns: one after the other they fit into registers."""
    left, right = tl.split(tl.permute(tl.reshape(x, (block, 2, width // 2)), (0, 2, 1)))
    unit = half * (width // 2) + tl.arange(0, width // 2)
    return left if half == 0 else right, unit


@triton.jit
def activate(p, kept, slopes, place, stride, block: tl.constexpr, width: tl.constexpr):  # type: ignore[no-untyped-def]
    """Leaves the SiLU of (block, width) transposed with `kept`, and its derivative with `slopes`."""
    for half in tl.static_range(2):
        q, unit = half_of(p, half, block, width)
        tl.store(kept + unit[None, :] * stride + place[:, None], q * tl.sigmoid(q))
        tl.store(slopes + tl.arange(0, block)[:, None] * width + unit[None, :], slope(q))


@triton.jit
def leave(  # type: ignore[no-untyped-def]
    delta, unit, kept, sums, more, place, stride, width: tl.constexpr
):
    """Leaves the gradient of what a layer gives transposed with `kept`, and with `sums` that of its biases."""
    tl.store(kept + unit[None, :] * stride + place[:, None], delta)
    add(sums + unit, tl.sum(delta, axis=0), (unit < width, more))


@triton.jit
def head_backward(  # type: ignore[no-untyped-def]
    p,
    wanted,
    head,
    head_bias,
    kept,
    sums,
    more,
    here,
    count,
    place,
    stride,
    width: tl.constexpr,
    layers: tl.constexpr,
    block: tl.constexpr,
    padded: tl.constexpr,
):
    """From the last hidden layer (block, padded) before its SiLU: the error, and all gradients of it that are left."""
    value = tl.zeros((block,), tl.float32) + tl.load(head_bias)
    for half in tl.static_range(2):
        q, unit = half_of(p, half, block, padded)
        w = tl.load(head + unit, mask=unit < width, other=0.0)
        value += tl.sum(q * tl.sigmoid(q) * w[None, :], axis=1)
    error = tl.where(here, value - wanted, 0.0)
    up = error / count
    vectors = sums + layers * width
    add(vectors + width, tl.sum(up), (True, more))
    add(vectors + width + 1, tl.sum(error * error) / count, (True, more))
    for half in tl.static_range(2):
        q, unit = half_of(p, half, block, padded)
        w = tl.load(head + unit, mask=unit < width, other=0.0)
        add(vectors + unit, tl.sum(up[:, None] * (q * tl.sigmoid(q)), axis=0), (unit < width, more))
        delta = up[:, None] * w[None, :] * slope(q)
        leave(delta, unit, kept, sums + (layers - 1) * width, more, place, stride, width)


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
            total = tl.dot(a_small, b_big, total, input_precision="tf32")
            total = tl.dot(a_big, b_small, total, input_precision="tf32")
            total = tl.dot(a_big, b_big, total, input_precision="tf32")
        else:
            total = tl.dot(a, b, total, input_precision="tf32")
    real = (out < width)[:, None] & (columns < size)[None, :]
    tl.store(result + out[:, None] * size + columns[None, :], total, mask=real)
