"""The whole decoding as one Triton kernel: fifty small matrix products that never leave the chip."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from gorl_robotics.mlp_blocks import precision as product_precision
from gorl_robotics.mlp_blocks import silu

_ROWS = 32  # rows of a program: 4,096 worlds are then about one program for each of a large GPU's processors


@triton.jit
def _decode(  # type: ignore[no-untyped-def]
    base,
    clock,
    moved,
    hidden,
    hidden_bias,
    last,
    last_bias,
    z,
    out,
    divisor,
    rows,
    size: tl.constexpr,
    padded: tl.constexpr,
    width: tl.constexpr,
    layers: tl.constexpr,
    steps: tl.constexpr,
    block: tl.constexpr,
    precision: tl.constexpr,
):
    row = tl.program_id(0) * block + tl.arange(0, block)
    unit, axis = tl.arange(0, width), tl.arange(0, padded)
    here, real = row[:, None] < rows, axis < size
    # Linear layers keep their weights (out, in); products here want (in, out).
    seen = tl.load(base + row[:, None] * width + unit[None, :], mask=here, other=0.0)
    w_first = tl.load(moved + unit[None, :] * size + axis[:, None], mask=real[:, None], other=0.0)
    w_last = tl.load(last + axis[None, :] * width + unit[:, None], mask=real[None, :], other=0.0)
    b_last = tl.load(last_bias + axis, mask=real, other=0.0)
    x = tl.load(z + row[:, None] * size + axis[None, :], mask=here & real[None, :], other=0.0)
    for step in range(steps):
        time = tl.load(clock + step * width + unit)
        h = silu(seen + time[None, :] + tl.dot(x, w_first, input_precision=precision))
        for layer in tl.static_range(layers):
            w = tl.load(hidden + layer * width * width + unit[None, :] * width + unit[:, None])
            b = tl.load(hidden_bias + layer * width + unit)
            h = silu(tl.dot(h, w, input_precision=precision) + b[None, :])
        x -= (tl.dot(h, w_last, input_precision=precision) + b_last[None, :]) / tl.load(divisor + step)
    tl.store(out + row[:, None] * size + axis[None, :], x, mask=here & real[None, :])


def decode(
    base: Tensor,
    clock: Tensor,
    moved: Tensor,
    hidden: Sequence[nn.Linear],
    last: nn.Linear,
    z: Tensor,
    divisor: Tensor,
) -> Tensor:
    """The steps from z to the pre-tanh action, of the accuracy that `mlp_blocks.precision` names.

    Args:
        base: what the first layer makes of the observation, bias included, (N, width).
        clock: what it makes of the time at each step, (steps, width).
        moved: its weights for the point on the path, (width, a).
        hidden: the layers between, (width, width) each.
        last: the output layer, (a, width).
        z: where the path begins, (N, a).
        divisor: the network's output over this is a step, (steps,).
    """
    rows, size = z.shape
    width = base.shape[1]
    out = torch.empty_like(z)
    _decode[(triton.cdiv(rows, _ROWS),)](
        base,
        clock,
        moved.contiguous(),
        torch.stack([layer.weight for layer in hidden]),
        torch.stack([layer.bias for layer in hidden]),
        last.weight,
        last.bias,
        z.contiguous(),
        out,
        divisor,
        rows,
        size,
        max(16, triton.next_power_of_2(size)),
        width,
        len(hidden),
        clock.shape[0],
        _ROWS,
        product_precision(),
    )
    return out
