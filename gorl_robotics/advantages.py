"""Generalised advantage estimation: one numba function on the CPU, one Warp kernel on the GPU.

δ_t = r_t + γ·V(s'_t)·(1 - terminated_t) - V(s_t) and A_t = δ_t + γλ·(1 - done_t)·A_{t+1} (Schulman et al. 2016).
s'_t is the state that step t led to, before any reset: where an episode was truncated its value stands for the rest.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor


def advantages(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    discount: float,
    gae_lambda: float,
) -> Tensor:
    """Advantages (T, N) from tensors (T, N), the flags bool. Where both flags are set, the episode terminated."""
    out = torch.empty_like(reward)
    arrays = (reward, value, next_value, terminated, truncated, out)
    if reward.device.type == "cuda":
        _launch(arrays, discount, gae_lambda)
    else:
        from gorl_robotics.advantages_on_cpu import fill  # a start on a GPU need not wait for numba

        fill(*(a.numpy() for a in arrays), np.float32(discount), np.float32(gae_lambda))
    return out


def _launch(arrays: tuple[Tensor, ...], discount: float, gae_lambda: float) -> None:
    """Runs the Warp kernel on the tensors' device, in torch's current stream."""
    import warp as wp

    from gorl_robotics.warp_stream import warp_stream

    wp.init()
    device = arrays[0].device
    # A ScopedStream would make torch's stream wait for Warp's own, which a capture does not survive.
    cuda = device.type == "cuda"
    place = {"stream": warp_stream(torch.cuda.current_stream(device))} if cuda else {"device": "cpu"}
    wp.launch(
        _kernel(),
        dim=arrays[0].shape[1],
        inputs=[*(wp.from_torch(a.contiguous()) for a in arrays[:-1]), discount, gae_lambda],
        outputs=[wp.from_torch(arrays[-1])],
        **place,
    )


@cache
def _kernel() -> Any:
    """The Warp kernel, made on first use: Warp takes seconds to import."""
    import warp as wp

    # Warp resolves annotations in this module's globals, where `wp` is not.
    floats, flags = wp.array2d(dtype=wp.float32), wp.array2d(dtype=wp.bool)

    def gae(reward, value, next_value, terminated, truncated, discount, gae_lambda, out):  # type: ignore[no-untyped-def]
        world = wp.tid()
        ahead = wp.float32(0.0)
        steps = reward.shape[0]
        for i in range(steps):
            t = steps - 1 - i
            future = next_value[t, world]
            if terminated[t, world]:
                future = wp.float32(0.0)
            delta = reward[t, world] + discount * future - value[t, world]
            if terminated[t, world] or truncated[t, world]:
                ahead = wp.float32(0.0)
            ahead = delta + discount * gae_lambda * ahead
            out[t, world] = ahead

    gae.__annotations__ = {
        "reward": floats,
        "value": floats,
        "next_value": floats,
        "terminated": flags,
        "truncated": flags,
        "discount": wp.float32,
        "gae_lambda": wp.float32,
        "out": floats,
    }
    return wp.kernel(gae, module="unique", enable_backward=False)
