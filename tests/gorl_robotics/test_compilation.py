"""Doing work ahead for the kernels that it compiles."""

from __future__ import annotations

import threading

import pytest
import torch

from gorl_robotics.compilation import compiling


def test_a_cpu_has_nothing_to_compile() -> None:
    done: list[int] = []
    with compiling([lambda: done.append(1)], torch.device("cpu")):
        pass
    assert not done


@pytest.mark.gpu
def test_works_are_done_beside_each_other_behind_the_first_and_a_failure_is_raised() -> None:
    device, met, streams, begun = torch.device("cuda"), threading.Barrier(4, timeout=10), set(), threading.Event()

    def first() -> None:
        assert not begun.wait(0.2)

    def meet() -> None:
        begun.set()
        met.wait()  # passes only if all three are being done at once, beside what is inside
        streams.add(torch.cuda.current_stream().cuda_stream)

    with compiling([first, meet, meet, meet], device):
        met.wait()
    assert len(streams) == 3
    with pytest.raises(ZeroDivisionError), compiling([lambda: 1 / 0, lambda: None], device):
        pass
    with pytest.raises(ZeroDivisionError), compiling([lambda: None, lambda: 1 / 0], device):
        pass
