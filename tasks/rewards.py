"""Reward shapes that tasks compose: pure functions of batched tensors."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

_SHAPES: dict[str, Callable[[Tensor, float], Tensor]] = {
    # Each maps a scaled distance d >= 0 to 1 at d = 0 and to v at d = 1.
    "gaussian": lambda d, v: torch.exp(math.log(v) * d**2),
    "linear": lambda d, v: (1 - (1 - v) * d).clamp(min=0.0),
    "quadratic": lambda d, v: (1 - (1 - v) * d**2).clamp(min=0.0),
    "long_tail": lambda d, v: 1 / (1 + (1 / v - 1) * d**2),
}


def tolerance(
    x: Tensor,
    lower: float = 0.0,
    upper: float = 0.0,
    margin: float = 0.0,
    shape: str = "gaussian",
    value_at_margin: float = 0.1,
) -> Tensor:
    """1 where lower <= x <= upper, falling off outside; the `tolerance` of dm_control's rewards.

    Args:
        x: any shape; the result has it too.
        lower: lower bound, inclusive.
        upper: upper bound, inclusive; may be infinite.
        margin: distance from the bounds at which the value is `value_at_margin`; 0 makes it 0 outside.
        shape: how it falls off: gaussian, linear, quadratic or long_tail.
        value_at_margin: in (0, 1), or [0, 1) for linear and quadratic.
    """
    inside = x.clamp(lower, upper) == x  # a kernel less than two comparisons; NaN is not inside
    if margin == 0.0:
        return inside.to(x.dtype)
    distance = torch.maximum(lower - x, x - upper) / margin
    return _SHAPES[shape](distance, value_at_margin).masked_fill_(inside, 1.0)


def small_control(action: Tensor) -> Tensor:
    """Mean over actuators of 1 - a², not below 0: 1 for no effort, 0 for full effort. (N, nu) -> (N,)."""
    return (1 - action**2).clamp(min=0.0).mean(dim=1)
