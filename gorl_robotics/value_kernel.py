"""What a critic makes of many observations, in one Triton kernel that skips blocks of rows nobody asks for."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor, nn

from gorl_robotics.critic_blocks import forwards, head_value
from gorl_robotics.critic_kernel import block_arguments, packed, programs_and_turns, shape_arguments
from gorl_robotics.mlp_blocks import tile
from gorl_robotics.mlp_kernel import PROGRAMS


@triton.jit
def _values(  # type: ignore[no-untyped-def]
    x,
    asked,
    packed,
    head,
    head_bias,
    out,
    scratch,
    count,
    turns: tl.constexpr,
    inputs: tl.constexpr,
    width: tl.constexpr,
    first: tl.constexpr,
    padded: tl.constexpr,
    layers: tl.constexpr,
    exact: tl.constexpr,
    block: tl.constexpr,
    across: tl.constexpr,
    chunk: tl.constexpr,
):
    # `scratch` of a program are the features of `forwards`, (first + layers · padded, block).
    features = scratch + tl.program_id(0) * (first + layers * padded) * block
    place = tl.arange(0, block)
    for turn in range(turns):
        row = (turn * tl.num_programs(0) + tl.program_id(0)) * block + place
        here = row < count
        any_asked = 1
        if asked is not None:
            any_asked = tl.max(tl.load(asked + row, mask=here, other=0).to(tl.int32))
        if any_asked > 0:
            axis = tl.arange(0, first)
            seen = tile(x, row, axis, inputs, here[:, None] & (axis < inputs)[None, :])
            tl.debug_barrier()  # other threads of this program may still read the last block's
            forwards(seen, packed, features, None, place, block, first, padded, layers, exact, block, across, chunk)
            h = features + (first + (layers - 1) * padded) * block
            value = head_value(h, head, head_bias, place, block, width, block, padded, across)
            tl.store(out + row, value, mask=here)


def values(critic: nn.Sequential, observation: Tensor, asked: Tensor | None = None) -> Tensor:
    """The critic's values (S,), whatever is there in rows that are not asked for.

    Args:
        critic: fits, as `networks.fits_critic_kernel` says.
        observation: normalised, (S, obs), contiguous.
        asked: for which rows, (S,), bool; None for all.
    """
    parameters = [each.detach() for each in critic.parameters()]
    (width, inputs), shape, count = parameters[0].shape, shape_arguments(parameters), len(observation)
    arguments = block_arguments(shape)
    programs, turns = programs_and_turns(count, PROGRAMS)
    units = shape["first"] + shape["layers"] * shape["padded"]
    out = observation.new_empty(count)
    _values[(programs,)](
        observation,
        asked,
        packed(parameters, shape["first"], shape["padded"], shape["layers"]),
        parameters[-2],
        parameters[-1],
        out,
        observation.new_empty(programs, units, arguments["block"]),
        count,
        turns,
        inputs,
        width,
        **shape,
        **arguments,
    )
    return out
