"""Clipping the norm of a small network's gradients in one kernel instead of eight."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

_CHUNK = 4096  # numbers at a time
_WARPS = 16


@triton.jit
def _clip(gradients, sizes, largest, count: tl.constexpr, chunk: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.arange(0, chunk)
    squares = tl.zeros((chunk,), tl.float32)
    for index in tl.static_range(count):
        for turn in range(tl.cdiv(sizes[index], chunk)):
            here = turn * chunk + place
            value = tl.load(gradients[index] + here, mask=here < sizes[index], other=0.0)
            squares += value * value
    factor = largest / (tl.sqrt(tl.sum(squares)) + 1e-6)
    factor = tl.where(factor > 1, 1.0, factor)  # what is not a number stays so
    for index in tl.static_range(count):
        for turn in range(tl.cdiv(sizes[index], chunk)):
            here = turn * chunk + place
            value = tl.load(gradients[index] + here, mask=here < sizes[index], other=0.0)
            tl.store(gradients[index] + here, value * factor, mask=here < sizes[index])


def clip(gradients: Sequence[Tensor], largest: float) -> None:
    """Scales float32 tensors on a CUDA device, together, down to a norm of `largest`, in place.

    All of them lie densely in memory; the arithmetic is that of `torch.nn.utils.clip_grad_norm_`.
    """
    sizes = tuple(tl.constexpr(gradient.numel()) for gradient in gradients)
    _clip[(1,)](tuple(gradients), sizes, largest, len(gradients), _CHUNK, num_warps=_WARPS)
