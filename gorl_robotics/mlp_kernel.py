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

from gorl_robotics.mlp_blocks import add, columns, hidden, hidden_backward, layer, layer_backward, precision

# Rows of a block, and warps of a program, each with 16 of a layer's 64 outputs. Others were slower on an H100, and of
# eight warps Triton 3.6 makes kernels that read or write where they should not.
ROWS, WARPS = 32, 4
PROGRAMS = 264  # at most, two for each processor of a large GPU: every one leaves a sum of its own


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
    result, here = tl.arange(0, head), row < count
    seen = columns(x, row, tl.arange(0, padded), inputs, here)
    h = hidden(seen, weights, biases, None, inputs, padded, width, layers, block, precision)
    y = layer(h, weights[layers], biases[layers], width, width, width, size, head, precision)
    tl.store(out + row[None, :] * size + result[:, None], y, mask=here[None, :] & (result < size)[:, None])


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    x,
    given,
    scale,
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
    # `given` is the output's gradient, or with a `scale` what output times scale shall be in the mean of squares.
    axis, result = tl.arange(0, padded), tl.arange(0, head)
    scratch += tl.program_id(0) * layers * block * width
    sums = partial + tl.program_id(0) * stride
    own = sums + width * (inputs + 1) + (layers - 1) * width * (width + 1)
    for turn in range(turns):
        tl.debug_barrier()  # other threads of this program may have written what is added to here
        row = (turn * tl.num_programs(0) + tl.program_id(0)) * block + tl.arange(0, block)
        here = row < count
        seen = columns(x, row, axis, inputs, here)
        h = hidden(seen, weights, biases, scratch, inputs, padded, width, layers, block, precision)
        tl.debug_barrier()
        delta = columns(given, row, result, size, here)
        if scale is not None:
            y = layer(h, weights[layers], biases[layers], width, width, width, size, head, precision)
            error = tl.where((result < size)[:, None] & here[None, :], y * scale - delta, 0.0)
            delta = error * (2 * scale / (count * size))
            squares = tl.sum(error * error, axis=1) / (count * size)
            add(own + size * (width + 1) + result, squares, (result < size, turn > 0))
        more = turn > 0
        delta = layer_backward(delta, h, weights[layers], own, own + size * width, more, size, head, width, precision)
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
        return None, *views(_backwards(x, gradients[0].contiguous(), None, parameters), parameters)


class _SquaredError(torch.autograd.Function):
    """Gradients are computed with the error itself: all activations are at hand then."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, target: Tensor, scale: float, *parameters: Tensor) -> Tensor:
        size = len(parameters[-1])
        flat = _backwards(x, target, scale, parameters, size)
        ctx.save_for_backward(flat, *parameters)
        end = sum(each.numel() for each in parameters)
        return flat[end : end + size].sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        flat, *parameters = ctx.saved_tensors
        return None, None, None, *views(flat * gradients[0], parameters)


def _backwards(x: Tensor, given: Tensor, scale: float | None, parameters: Sequence[Tensor], terms: int = 0) -> Tensor:
    """The flat gradient, and behind it the terms; see the kernel."""
    partial = partial_sums(parameters, len(x), terms)
    _backward[(len(partial),)](
        x,
        given,
        scale,
        tuple(parameters[::2]),
        tuple(parameters[1::2]),
        scratch(parameters, len(partial)),
        partial,
        partial.stride(0),
        len(x),
        turns(len(x), len(partial)),
        **shape_arguments(parameters),
        num_warps=WARPS,
    )
    return partial.sum(dim=0)


def mlp(network: nn.Sequential, x: Tensor) -> Tensor:
    """What `network` gives, differentiable in its parameters alone: (..., inputs) -> (..., outputs), float32."""
    rows = x.detach().reshape(-1, x.shape[-1]).contiguous()
    return _Mlp.apply(rows, *network.parameters()).view(*x.shape[:-1], -1)


def squared_error(network: nn.Sequential, x: Tensor, target: Tensor, scale: float) -> Tensor:
    """The mean of (scale · network(x) - target)², differentiable in the network's parameters alone.

    Args:
        network: fits.
        x: (N, inputs).
        target: (N, outputs).
        scale: of the output.
    """
    return _SquaredError.apply(x.detach().contiguous(), target.detach().contiguous(), scale, *network.parameters())


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
        "precision": precision(),
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
