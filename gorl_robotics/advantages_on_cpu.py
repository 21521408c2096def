"""The loop of `advantages` on the CPU, compiled by numba, which is a quarter of a second to import."""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np


def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    """Compiled once for all runs or, where neither this folder nor the home may be written, in each run anew."""
    try:
        return numba.njit(cache=True)(function)
    except RuntimeError:  # no place for a cache
        return numba.njit(function)


@_compiled
def fill(  # type: ignore[no-untyped-def] # pragma: no cover  (compiled)
    reward, value, next_value, terminated, truncated, out, discount, gae_lambda
):
    """Writes advantages (T, N) to `out`."""
    steps, worlds = reward.shape
    for world in range(worlds):
        ahead = np.float32(0.0)
        for t in range(steps - 1, -1, -1):
            future = np.float32(0.0) if terminated[t, world] else next_value[t, world]
            delta = reward[t, world] + discount * future - value[t, world]
            if terminated[t, world] or truncated[t, world]:
                ahead = np.float32(0.0)
            ahead = delta + discount * gae_lambda * ahead
            out[t, world] = ahead
