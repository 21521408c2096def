"""What the fused networks' kernels are made of: layers forwards and backwards for a block of rows, in Triton.

Tiles are padded with zeros to powers of two of at least 16; `size`, `inputs` and `width` are a matrix's own.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


def precision() -> str:
    """What matrix products are made of: one of TF32 parts where torch may too, else three, which is nearly float32."""
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


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
def linear(  # type: ignore[no-untyped-def]
    h, weight, bias, size: tl.constexpr, padded: tl.constexpr, width: tl.constexpr, precision: tl.constexpr
):
    """A layer of `size` outputs, zeros up to `padded`: (block, width) -> (block, padded)."""
    out, unit = tl.arange(0, padded), tl.arange(0, width)
    w = tile(weight, out, unit, width, (out < size)[:, None])
    b = tl.load(bias + out, mask=out < size, other=0.0)
    return tl.dot(h, tl.trans(w), input_precision=precision) + b[None, :]


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
    return tl.dot(w, h, input_precision=precision) + b[:, None]


@triton.jit
def add(pointer, values, mask):  # type: ignore[no-untyped-def]
    """Adds to what this program has summed so far; `mask[0]` is what exists, `mask[1]` whether there is a sum yet."""
    tl.store(pointer, values + tl.load(pointer, mask=mask[0] & mask[1], other=0.0), mask=mask[0])


@triton.jit
def linear_backward(  # type: ignore[no-untyped-def]
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
    """From the gradient of a layer's output (block, padded): sums those of its parameters, returns its input's."""
    out, unit = tl.arange(0, padded), tl.arange(0, width)
    real = (out < size)[:, None]
    w = tile(weight, out, unit, width, real)
    gradient = tl.dot(tl.trans(delta), h, input_precision=precision)
    add(weight_sum + out[:, None] * width + unit[None, :], gradient, (real & (unit < width)[None, :], more))
    add(bias_sum + out, tl.sum(delta, axis=0), (out < size, more))
    return tl.dot(delta, w, input_precision=precision)


@triton.jit
def keep(scratch, layer: tl.constexpr, values, block: tl.constexpr, width: tl.constexpr):  # type: ignore[no-untyped-def]
    """Leaves a (block, width) tile where `kept` finds it, behind the next barrier."""
    if scratch is not None:
        row, unit = tl.arange(0, block), tl.arange(0, width)
        tl.store(scratch + layer * block * width + row[:, None] * width + unit[None, :], values)


@triton.jit
def kept(scratch, layer: tl.constexpr, block: tl.constexpr, width: tl.constexpr):  # type: ignore[no-untyped-def]
    """What `keep` has left."""
    row, unit = tl.arange(0, block), tl.arange(0, width)
    return tl.load(scratch + layer * block * width + row[:, None] * width + unit[None, :])


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
    """What the last hidden layer gives, (block, width), from (block, padded); all before their SiLU to `scratch`."""
    unit, axis = tl.arange(0, width), tl.arange(0, padded)
    w = tile(weights[0], unit, axis, inputs, (axis < inputs)[None, :])
    p = tl.dot(x, tl.trans(w), input_precision=precision) + tl.load(biases[0] + unit)[None, :]
    keep(scratch, 0, p, block, width)
    for layer in tl.static_range(1, layers):
        p = linear(silu(p), weights[layer], biases[layer], width, width, width, precision)
        keep(scratch, layer, p, block, width)
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
    """From the gradient (block, width) of what the last hidden layer gives: sums those of all hidden parameters."""
    p = kept(scratch, layers - 1, block, width)
    for back in tl.static_range(1, layers):
        delta = delta * slope(p)
        p = kept(scratch, layers - 1 - back, block, width)
        own = sums + width * (inputs + 1) + (layers - back - 1) * width * (width + 1)
        delta = linear_backward(
            delta, silu(p), weights[layers - back], own, own + width * width, more, width, width, width, precision
        )
    delta = delta * slope(p)
    unit, axis = tl.arange(0, width), tl.arange(0, padded)
    gradient = tl.dot(tl.trans(delta), x, input_precision=precision)
    real = (unit < width)[:, None] & (axis < inputs)[None, :]
    add(sums + unit[:, None] * inputs + axis[None, :], gradient, (real, more))
    add(sums + width * inputs + unit, tl.sum(delta, axis=0), (unit < width, more))
