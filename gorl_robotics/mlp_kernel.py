"""A small MLP as one Triton kernel forwards and one backwards: activations stay close to the processors.

A program works through blocks of rows. Backwards it computes the activations again instead of having them kept, and
sums the gradients of its own rows into its own part of a buffer; one sum over programs makes of them the gradient.
Nothing is added in an order left to chance: equal inputs give equal bits. `networks.fits_kernel` says what fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

PRECISION = "tf32x3"  # three TF32 products for one: nearly float32's accuracy at the tensor cores' speed
ROWS = 32  # of a block; with more, a program's tiles would not fit into registers
WARPS = 8  # of a program
PROGRAMS = 264  # at most: each leaves a sum of its own, and two share a processor


@triton.jit
def silu(x):  # type: ignore[no-untyped-def]
    """x·σ(x)."""
    return x * tl.sigmoid(x)


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


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    x,
    weights,
    biases,
    out,
    count,
    inputs: tl.constexpr,
    padded: tl.constexpr,
    size: tl.constexpr,
    head: tl.constexpr,
    width: tl.constexpr,
    layers: tl.constexpr,
    block: tl.constexpr,
    precision: tl.constexpr,
):
    row = tl.program_id(0) * block + tl.arange(0, block)
    axis, result = tl.arange(0, padded), tl.arange(0, head)
    here = (row < count)[:, None]
    seen = tile(x, row, axis, inputs, here & (axis < inputs)[None, :])
    h = hidden(seen, weights, biases, None, inputs, padded, width, layers, block, precision)
    y = linear(h, weights[layers], biases[layers], size, head, width, precision)
    tl.store(out + row[:, None] * size + result[None, :], y, mask=here & (result < size)[None, :])


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    x,
    gradient,
    weights,
    biases,
    scratch,
    partial,
    stride,
    count,
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
    scratch += tl.program_id(0) * layers * block * width
    sums = partial + tl.program_id(0) * stride
    own = sums + width * (inputs + 1) + (layers - 1) * width * (width + 1)
    for turn in range(turns):
        tl.debug_barrier()  # other threads of this program may have written what is added to here
        row = (turn * tl.num_programs(0) + tl.program_id(0)) * block + tl.arange(0, block)
        here = (row < count)[:, None]
        seen = tile(x, row, axis, inputs, here & (axis < inputs)[None, :])
        h = hidden(seen, weights, biases, scratch, inputs, padded, width, layers, block, precision)
        tl.debug_barrier()
        delta = tile(gradient, row, result, size, here & (result < size)[None, :])
        more = turn > 0
        delta = linear_backward(delta, h, weights[layers], own, own + size * width, more, size, head, width, precision)
        hidden_backward(delta, seen, weights, scratch, sums, more, inputs, padded, width, layers, block, precision)


class _Mlp(torch.autograd.Function):
    """The network's output, and of its gradients those of the parameters."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(x, *parameters)
        out = x.new_empty(len(x), len(parameters[-1]))
        weights, biases = parameters[::2], parameters[1::2]
        grid = (triton.cdiv(len(x), ROWS),)
        _forward[grid](x, weights, biases, out, len(x), **shape_arguments(parameters), num_warps=WARPS)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors
        weights, biases = tuple(parameters[::2]), tuple(parameters[1::2])
        partial = partial_sums(parameters, len(x))
        _backward[(len(partial),)](
            x,
            gradients[0].contiguous(),
            weights,
            biases,
            scratch(parameters, len(partial)),
            partial,
            partial.stride(0),
            len(x),
            turns(len(x), len(partial)),
            **shape_arguments(parameters),
            num_warps=WARPS,
        )
        return None, *views(partial.sum(dim=0), parameters)


def mlp(network: nn.Sequential, x: Tensor) -> Tensor:
    """What `network` gives, differentiable in its parameters alone: (..., inputs) -> (..., outputs), float32."""
    rows = x.detach().reshape(-1, x.shape[-1]).contiguous()
    return _Mlp.apply(rows, *network.parameters()).view(*x.shape[:-1], -1)


def shape_arguments(parameters: Sequence[Tensor]) -> dict[str, Any]:
    """The constants that every kernel here is compiled for, from weights and biases in turn."""
    (width, inputs), size = parameters[0].shape, len(parameters[-1])
    return {
        "inputs": inputs,
        "padded": padded(inputs),
        "size": size,
        "head": padded(size),
        "width": width,
        "layers": len(parameters) // 2 - 1,
        "block": ROWS,
        "precision": PRECISION,
    }


def padded(size: int) -> int:
    """The tile that so many columns take."""
    return max(16, triton.next_power_of_2(size))


def partial_sums(parameters: Sequence[Tensor], rows: int, terms: int = 0) -> Tensor:
    """A buffer (programs, ...) for each program's gradient, in order of parameters, and so many terms behind it.

    Not initialised, and rounded up so that every program's part is aligned.
    """
    columns = sum(each.numel() for each in parameters) + terms
    programs = min(triton.cdiv(rows, ROWS), PROGRAMS)
    return parameters[0].new_empty(programs, triton.cdiv(columns, 16) * 16)


def scratch(parameters: Sequence[Tensor], programs: int) -> Tensor:
    """Where a program keeps its block's activations from forwards to backwards: registers would not hold them."""
    return parameters[0].new_empty(programs, len(parameters) // 2 - 1, ROWS, len(parameters[0]))


def turns(rows: int, programs: int) -> int:
    """How many blocks a program works through."""
    return triton.cdiv(rows, ROWS * programs)


def views(flat: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Parts of a flat gradient in the parameters' shapes."""
    sizes = [each.numel() for each in parameters]
    parts = flat[: sum(sizes)].split(sizes)
    return [part.view(each.shape) for part, each in zip(parts, parameters, strict=True)]
