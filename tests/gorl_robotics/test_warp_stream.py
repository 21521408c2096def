"""Torch's CUDA streams as Warp's."""

from __future__ import annotations

import gc

import pytest
import torch


@pytest.mark.gpu
def test_a_stream_is_known_for_good() -> None:
    import warp as wp

    from gorl_robotics.warp_stream import warp_stream

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        known = warp_stream(torch.cuda.current_stream())
        gc.collect()
        assert warp_stream(stream) is known
        with wp.ScopedStream(known):
            numbers = wp.zeros(3, dtype=float, device=known.device)
            with wp.ScopedCapture() as capture:
                numbers.fill_(1.0)
            wp.capture_launch(capture.graph)
            assert numbers.numpy().tolist() == [1.0, 1.0, 1.0]
