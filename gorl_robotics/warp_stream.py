"""Torch's CUDA streams as Warp's."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import warp as wp


@cache
def warp_stream(stream: torch.cuda.Stream) -> Any:
    """Warp's name for a stream of torch's, the same each time, so that the two order themselves.

    It lasts: Warp forgets a stream as soon as one of the objects that stand for it is gone, though another be in use.
    """
    return wp.stream_from_torch(stream)
