"""Two pieces of work that share nothing, one beside the other: in two streams of a GPU, or in two threads of a CPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from gorl_robotics import distributed

A = TypeVar("A")
B = TypeVar("B")


class Beside:
    """Calls two functions and returns both results.

    Neither may change what the other reads: then the results are to the bit those of one call after the other, which
    is what is done where this process has a single core. On a GPU the second function's work may go on while the
    caller does other things; before anything uses its results or changes what it reads there must be a `join`.

    Args:
        device: where the functions work.
        threads: that the process may use on a CPU; 0 for its share of the cores.
    """

    def __init__(self, device: torch.device, threads: int) -> None:
        cuda = device.type == "cuda"
        cores = min(distributed.threads(threads) or 2, len(os.sched_getaffinity(0)))
        self._stream = torch.cuda.Stream(device) if cuda else None
        self._thread = _thread() if not cuda and cores > 1 else None

    def __call__(self, first: Callable[[], A], second: Callable[[], B]) -> tuple[A, B]:
        """Raises what either function raised, when both have ended."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream())
            result = first()
            if distributed.size() > 1:  # collectives of both must not run at once, see `distributed`
                self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                return result, second()
        if self._thread is None:
            return first(), second()
        begun = self._thread.submit(first)
        try:
            others = second()
        finally:
            result = begun.result()
        return result, others

    def join(self) -> None:
        """What is launched from now on waits for the second function's work; the host does not."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)

    @contextmanager
    def behind(self) -> Iterator[None]:
        """What is launched inside waits for all work so far, and nothing else waits for it."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield


class Abreast:
    """Calls functions that share nothing and returns their results: on a GPU each in a stream of its own.

    What is launched after the call waits for all of them. May be captured.

    Args:
        device: where the functions work.
        count: how many there are at most.
    """

    def __init__(self, device: torch.device, count: int) -> None:
        self._streams = [torch.cuda.Stream(device) for _ in range(count)] if device.type == "cuda" else []

    def __call__(self, functions: Sequence[Callable[[], A]]) -> list[A]:
        """One after the other on a CPU, whose cores are busy with each of them."""
        if not self._streams:
            return [function() for function in functions]
        current, results = torch.cuda.current_stream(), []
        for stream, function in zip(self._streams, functions, strict=False):
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                results.append(function())
        for stream in self._streams[: len(functions)]:
            current.wait_stream(stream)
        return results


def _thread() -> ThreadPoolExecutor:
    # A new thread would begin with one OpenMP thread for each core, and on busy cores those wait for one another.
    return ThreadPoolExecutor(1, "beside", torch.set_num_threads, (torch.get_num_threads(),))
