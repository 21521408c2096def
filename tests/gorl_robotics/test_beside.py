"""Two functions at once: both results, nobody's errors lost, no more threads than asked for."""

from __future__ import annotations

import os
import threading

import pytest
import torch

from gorl_robotics.beside import Beside

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1})


def test_both_work_at_once() -> None:
    meet = threading.Barrier(2, timeout=10)  # breaks where one waits for the other's end
    assert Beside(CPU, 0)(lambda: (meet.wait(), "a")[1], lambda: (meet.wait(), "b")[1]) == ("a", "b")


def test_one_thread_works_in_order() -> None:
    order: list[int] = []
    both = Beside(CPU, 1)
    both(lambda: order.append(1), lambda: order.append(2))
    assert order == [1, 2]
    assert both(threading.get_ident, threading.get_ident) == (threading.get_ident(),) * 2


def test_an_error_waits_for_the_other_work() -> None:
    both, failed, ended = Beside(CPU, 0), threading.Event(), threading.Event()

    def work() -> None:
        failed.wait(10)
        ended.set()

    def fail() -> None:
        failed.set()
        raise ArithmeticError("seen")

    for pair in ((work, fail), (fail, work)):
        failed.clear()
        ended.clear()
        with pytest.raises(ArithmeticError, match="seen"):
            both(*pair)
        assert ended.is_set()
    assert both(lambda: 1, lambda: 2) == (1, 2)


def test_the_thread_starts_no_others() -> None:
    # A matrix product that comes first in a new thread would start OpenMP's threads, one for each core.
    matrix, before = torch.ones(512, 512), set(os.listdir("/proc/self/task"))
    both = Beside(CPU, 0)
    assert both(lambda: float((matrix @ matrix).mean()), lambda: 0) == (512, 0)
    assert len(set(os.listdir("/proc/self/task")) - before) == 1
