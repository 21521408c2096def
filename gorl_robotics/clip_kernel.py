"""Clipping the norm of a network's gradients in one or two kernels instead of eight."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

_CHUNK = 4096  # numbers at a time
_WARPS = 16
_SMALL = 65536  # numbers that one program clips sooner than several do in two kernels
_PROGRAMS = 32


@triton.jit
def _squares(gradients, sizes, count: tl.constexpr, chunk: tl.constexpr, programs: tl.constexpr):  # type: ignore[no-untyped-def]
    """The sum of squares of this program's share."""
    place = tl.program_id(0) * chunk + tl.arange(0, chunk)
    squares = tl.zeros((chunk,), tl.float32)
    for index in tl.static_range(count):
        for turn in range(tl.cdiv(sizes[index], programs * chunk)):
            here = turn * programs * chunk + place
            value = tl.load(gradients[index] + here, mask=here < sizes[index], other=0.0)
            squares += value * value
    return tl.sum(squares)


@triton.jit
def _scale(gradients, sizes, squares, largest, count: tl.constexpr, chunk: tl.constexpr, programs: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.program_id(0) * chunk + tl.arange(0, chunk)
    factor = largest / (tl.sqrt(squares) + 1e-6)
    factor = tl.where(factor > 1, 1.0, factor)  # what is not a number stays so
    for index in tl.static_range(count):
        for turn in range(tl.cdiv(sizes[index], programs * chunk)):
            here = turn * programs * chunk + place
            value = tl.load(gradients[index] + here, mask=here < sizes[index], other=0.0)
            tl.store(gradients[index] + here, value * factor, mask=here < sizes[index])


@triton.jit
def _clip(gradients, sizes, largest, count: tl.constexpr, chunk: tl.constexpr):  # type: ignore[no-untyped-def]
    _scale(gradients, sizes, _squares(gradients, sizes, count, chunk, 1), largest, count, chunk, 1)


@triton.jit
def _measure(gradients, sizes, parts, count: tl.constexpr, chunk: tl.constexpr, programs: tl.constexpr):  # type: ignore[no-untyped-def]
    tl.store(parts + tl.program_id(0), _squares(gradients, sizes, count, chunk, programs))


@triton.jit
def _apply(gradients, sizes, parts, largest, count: tl.constexpr, chunk: tl.constexpr, programs: tl.constexpr):  # type: ignore[no-untyped-def]
    squares = tl.sum(tl.load(parts + tl.arange(0, programs)))
    _scale(gradients, sizes, squares, largest, count, chunk, programs)


def clip(gradients: Sequence[Tensor], largest: float) -> None:
    """Scales float32 tensors on a CUDA device, together, down to a norm of `largest`, in place.

    All of them lie densely in memory; the arithmetic is that of `torch.nn.utils.clip_grad_norm_`.
    """
    given, count = tuple(gradients), len(gradients)
    sizes = tuple(tl.constexpr(gradient.numel()) for gradient in gradients)
    if sum(map(Tensor.numel, gradients)) <= _SMALL:
        _clip[(1,)](given, sizes, largest, count, _CHUNK, num_warps=_WARPS)
        return
    parts = gradients[0].new_empty(_PROGRAMS)
    _measure[(_PROGRAMS,)](given, sizes, parts, count, _CHUNK // 4, _PROGRAMS, num_warps=_WARPS // 4)
    _apply[(_PROGRAMS,)](given, sizes, parts, largest, count, _CHUNK // 4, _PROGRAMS, num_warps=_WARPS // 4)
