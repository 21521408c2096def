"""What a velocity field's network reads, put together in one kernel: observation, point on the path, time."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS = 32  # of a program
_QUARTER = tl.constexpr(math.pi / 2)


@triton.jit
def _assemble(  # type: ignore[no-untyped-def]
    observation,
    x,
    t,
    out,
    count,
    seen: tl.constexpr,
    size: tl.constexpr,
    frequencies: tl.constexpr,
    padded: tl.constexpr,
    block: tl.constexpr,
):
    row, column = tl.program_id(0) * block + tl.arange(0, block), tl.arange(0, padded)
    here, columns = (row < count)[:, None], seen + size + 2 * frequencies
    axis, wave = (column - seen)[None, :], column - seen - size
    value = tl.load(observation + row[:, None] * seen + column[None, :], mask=here & (axis < 0), other=0.0)
    value += tl.load(x + row[:, None] * size + axis, mask=here & (axis >= 0) & (axis < size), other=0.0)
    time = tl.load(t + row, mask=row < count, other=0.0)[:, None]
    # Padding would give frequencies beyond all bounds.
    power = tl.where(wave < 0, 0, wave % frequencies).to(tl.float32)
    angle = time * (tl.exp2(power) * _QUARTER)[None, :]
    timed = tl.where((wave < frequencies)[None, :], tl.cos(angle), tl.sin(angle))
    value = tl.where((wave < 0)[None, :], value, timed)
    tl.store(out + row[:, None] * columns + column[None, :], value, mask=here & (column < columns)[None, :])


def inputs(observation: Tensor, x: Tensor, t: Tensor, frequencies: int) -> Tensor:
    """Normalised observation (N, obs), x (N, a) and cosines and sines of t (N, 1): (N, obs + a + 2·frequencies)."""
    (rows, size), seen = x.shape, observation.shape[1]
    columns = seen + size + 2 * frequencies
    out = torch.empty(rows, columns, device=x.device)
    _assemble[(triton.cdiv(rows, _ROWS),)](
        observation.contiguous(),
        x.contiguous(),
        t.contiguous(),
        out,
        rows,
        seen,
        size,
        frequencies,
        triton.next_power_of_2(columns),
        _ROWS,
    )
    return out
