"""What the fused networks' kernels are made of: layers forwards and backwards for a block of rows, in Triton.

A batch's rows are columns here, and a layer's weights the left matrix of a product: a program's warps then share its
outputs among them, where they would otherwise all compute the same for a few rows. Tiles are padded with zeros to
powers of two of at least 16; `size`, `inputs` and `width` are a matrix's own.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


def precision() -> str:
    """What matrix products are made of: one of TF32 parts where torch may too, else three, which is nearly float32."""
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


@triton.jit
def split(x):  # type: ignore[no-untyped-def]
    """`x` rounded to TF32, and what is missing."""
    big = ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return big, x - big


@triton.jit
def add_parts(total, a_big, a_small, b_big, b_small):  # type: ignore[no-untyped-def]
    """`total` and the product of two matrices in TF32 parts, nearly as exact as float32."""
    total = tl.dot(a_small, b_big, total, input_precision="tf32")
    total = tl.dot(a_big, b_small, total, input_precision="tf32")
    return tl.dot(a_big, b_big, total, input_precision="tf32")


@triton.jit
def dot(a, b, precision: tl.constexpr):  # type: ignore[no-untyped-def]
    """a·b of the precision that `precision` names. Triton's own "tf32x3" looks for infinities in every product."""
    if precision == "tf32x3":
        a_big, a_small = split(a)
        b_big, b_small = split(b)
        return add_parts(tl.zeros((a.shape[0], b.shape[1]), tl.float32), a_big, a_small, b_big, b_small)
    return tl.dot(a, b, input_precision=precision)


@triton.jit
def silu(x):  # type: ignore[no-untyped-def]
    """x·σ(x)."""
    return x * tl.sigmoid(x)


@triton.jit
def softplus(x):  # type: ignore[no-untyped-def]
    """log(1 + exp x)."""
    return tl.maximum(x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def slope(x):  # type: ignore[no-untyped-def]
    """The derivative of `silu`."""
    s = tl.sigmoid(x)
    return s * (1.0 + x * (1.0 - s))


@triton.jit
def tile(pointer, row, column, columns: tl.constexpr, mask):  # type: ignore[no-untyped-def]
    """A part of a row-major matrix of so many columns, zero where masked."""
    return tl.load(pointer + row[:, None] * columns + column[None, :], mask=mask, other=0.0)


@triton.jit
def columns(pointer, row, column, size: tl.constexpr, here):  # type: ignore[no-untyped-def]
    """Rows of a row-major matrix of `size` columns as columns, (columns, rows); zero beyond and where not `here`."""
    real = (column < size)[:, None] & here[None, :]
    return tl.load(pointer + row[None, :] * size + column[:, None], mask=real, other=0.0)


@triton.jit
def layer(  # type: ignore[no-untyped-def]
    h,
    weight,
    bias,
    columns: tl.constexpr,
    inputs: tl.constexpr,
    deep: tl.constexpr,
    size: tl.constexpr,
    tall: tl.constexpr,
    precision: tl.constexpr,
):
    """A layer of the first `inputs` of so many columns of weights, a batch's rows being columns.

    (deep, block) -> (tall, block), zeros beyond `size`.
    """
    into, out = tl.arange(0, deep), tl.arange(0, tall)
    w = tile(weight, out, into, columns, (out < size)[:, None] & (into < inputs)[None, :])
    b = tl.load(bias + out, mask=out < size, other=0.0)
    return dot(w, h, precision) + b[:, None]


@triton.jit
def add(pointer, values, mask):  # type: ignore[no-untyped-def]
    """Adds to what this program has summed so far; `mask[0]` is what exists, `mask[1]` whether there is a sum yet."""
    tl.store(pointer, values + tl.load(pointer, mask=mask[0] & mask[1], other=0.0), mask=mask[0])


@triton.jit
def layer_backward(  # type: ignore[no-untyped-def]
    delta,
    h,
    weight,
    weight_sum,
    bias_sum,
    more,
    size: tl.constexpr,
    padded: tl.constexpr,
    width: tl.constexpr,
    precision: tl.constexpr,
):
    """From the gradient of a layer's output (padded, block): sums those of its parameters, returns its input's."""
    out, unit = tl.arange(0, padded), tl.arange(0, width)
    real = (out < size)[:, None]
    w = tile(weight, out, unit, width, real)
    gradient = dot(delta, tl.trans(h), precision)
    add(weight_sum + out[:, None] * width + unit[None, :], gradient, (real & (unit < width)[None, :], more))
    add(bias_sum + out, tl.sum(delta, axis=1), (out < size, more))
    return dot(tl.trans(w), delta, precision)


@triton.jit
def keep(scratch, layer: tl.constexpr, values, width: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """Leaves a (width, block) tile where `kept` finds it, behind the next barrier."""
    if scratch is not None:
        unit, row = tl.arange(0, width), tl.arange(0, block)
        tl.store(scratch + layer * width * block + unit[:, None] * block + row[None, :], values)


@triton.jit
def kept(scratch, layer: tl.constexpr, width: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """What `keep` has left."""
    unit, row = tl.arange(0, width), tl.arange(0, block)
    return tl.load(scratch + layer * width * block + unit[:, None] * block + row[None, :])


@triton.jit
def hidden(  # type: ignore[no-untyped-def]
    x,
    weights,
    biases,
    scratch,
    inputs: tl.constexpr,
    padded: tl.constexpr,
    width: tl.constexpr,
    layers: tl.constexpr,
    block: tl.constexpr,
    precision: tl.constexpr,
):
    """What the last hidden layer gives, (width, block), from (padded, block); all before their SiLU to `scratch`."""
    p = layer(x, weights[0], biases[0], inputs, inputs, padded, width, width, precision)
    keep(scratch, 0, p, width, block)
    for index in tl.static_range(1, layers):
        p = layer(silu(p), weights[index], biases[index], width, width, width, width, width, precision)
        keep(scratch, index, p, width, block)
    return silu(p)


@triton.jit
def hidden_backward(  # type: ignore[no-untyped-def]
    delta,
    x,
    weights,
    scratch,
    sums,
    more,
    inputs: tl.constexpr,
    padded: tl.constexpr,
    width: tl.constexpr,
    layers: tl.constexpr,
    block: tl.constexpr,
    precision: tl.constexpr,
):
    """From the gradient (width, block) of what the last hidden layer gives: sums those of all hidden parameters."""
    p = kept(scratch, layers - 1, width, block)
    for back in tl.static_range(1, layers):
        delta = delta * slope(p)
        p = kept(scratch, layers - 1 - back, width, block)
        own = sums + width * (inputs + 1) + (layers - back - 1) * width * (width + 1)
        delta = layer_backward(
            delta, silu(p), weights[layers - back], own, own + width * width, more, width, width, width, precision
        )
    delta = delta * slope(p)
    unit, axis = tl.arange(0, width), tl.arange(0, padded)
    gradient = dot(delta, tl.trans(x), precision)
    real = (unit < width)[:, None] & (axis < inputs)[None, :]
    add(sums + unit[:, None] * inputs + axis[None, :], gradient, (real, more))
    add(sums + width * inputs + unit, tl.sum(delta, axis=1), (unit < width, more))
