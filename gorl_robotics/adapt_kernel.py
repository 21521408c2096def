"""What follows each of the policy's minibatches, in one kernel instead of two dozen: sums, rate, entropy's weight."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _bounded(value, low, high):  # type: ignore[no-untyped-def]
    return tl.minimum(tl.maximum(value, low), high)


@triton.jit
def _adapt(  # type: ignore[no-untyped-def]
    terms,
    sums,
    turn,
    rate,
    weight,
    target_kl,
    rate_change,
    lowest_rate,
    highest_rate,
    least_std,
    weight_change,
    least_weight,
    most_weight,
    count: tl.constexpr,
    padded: tl.constexpr,
):
    place = tl.arange(0, padded)
    here = place < count
    tl.store(sums + place, tl.load(sums + place, mask=here) + tl.load(terms + place, mask=here), mask=here)
    tl.store(turn, tl.load(turn) + 1)
    kl, before = tl.load(terms + 1), tl.load(rate)
    # What is not a number changes nothing, as every comparison with it is false.
    after = tl.where(
        kl > 2 * target_kl, before / rate_change, tl.where(kl < target_kl / 2, before * rate_change, before)
    )
    tl.store(rate, _bounded(after, lowest_rate, tl.load(highest_rate)))
    if count == 5:
        before = tl.load(weight)
        after = tl.where(tl.load(terms + 4) < least_std, before * weight_change, before / weight_change)
        tl.store(weight, _bounded(after, least_weight, most_weight))


def adapt(
    terms: Tensor,
    sums: Tensor,
    turn: Tensor,
    rate: Tensor,
    weight: Tensor,
    kl: tuple[float, float, float, Tensor],
    entropy: tuple[float, float, float, float],
) -> None:
    """Adds terms to sums, counts the turn, and adapts both scalars in place; all are on a CUDA device.

    Args:
        terms: (3,) or, of a Gaussian, (5,), the fields of a `PolicyLoss`.
        sums: of the terms so far, of the same size.
        turn: int64, (1,).
        rate: of learning, ().
        weight: of the entropy, (1,); changed with five terms only.
        kl: what is aimed at, by what factor the rate changes, and its bounds, the upper one a scalar tensor there too.
        entropy: the least σ, by what factor the weight changes, and its bounds.
    """
    _adapt[(1,)](terms, sums, turn, rate, weight, *kl, *entropy, len(terms), 8, num_warps=1)
