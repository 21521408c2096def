"""Doing work ahead for the kernels that it compiles."""

from __future__ import annotations

import threading

import pytest
import torch

from gorl_robotics.compilation import compile_ahead


def test_a_cpu_has_nothing_to_compile() -> None:
    done: list[int] = []
    compile_ahead([lambda: done.append(1)], torch.device("cpu"))
    assert not done


@pytest.mark.gpu
def test_works_are_done_beside_each_other_and_a_failure_is_raised() -> None:
    device, met, streams = torch.device("cuda"), threading.Barrier(3, timeout=10), set()

    def meet() -> None:
        met.wait()  # passes only if all three are being done at once
        streams.add(torch.cuda.current_stream().cuda_stream)

    compile_ahead([meet] * 3, device)
    assert len(streams) == 3
    with pytest.raises(ZeroDivisionError):
        compile_ahead([lambda: None, lambda: 1 / 0], device)
