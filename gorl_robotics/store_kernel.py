"""All that a control step leaves in a rollout, written in one kernel instead of one for each tensor."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

_CHUNK = 1024  # numbers of a program


@triton.jit
def _store(  # type: ignore[no-untyped-def]
    targets, sources, sizes, t, now: tl.constexpr, count: tl.constexpr, chunk: tl.constexpr
):
    place = tl.program_id(0) * chunk + tl.arange(0, chunk)
    for index in tl.static_range(count):
        if tl.program_id(1) == index:
            here = place < sizes[index]
            step = tl.load(t) + (0 if index < now else 1)
            value = tl.load(sources[index] + place, mask=here)
            tl.store(targets[index] + step * sizes[index] + place, value, mask=here)


def store(targets: Sequence[Tensor], sources: Sequence[Tensor], t: Tensor, now: int) -> None:
    """Copies each source (N, ...) to row t of its target (T, N, ...), which lies densely in memory, or to row t + 1.

    Args:
        targets: on a CUDA device.
        sources: of the same types and sizes.
        t: (1,), int64.
        now: how many go to row t; those behind them go to row t + 1.
    """
    sizes = [source.numel() for source in sources]
    _store[triton.cdiv(max(sizes), _CHUNK), len(sizes)](
        tuple(targets),
        tuple(source.contiguous() for source in sources),
        tuple(tl.constexpr(size) for size in sizes),
        t,
        now,
        len(sizes),
        _CHUNK,
    )
