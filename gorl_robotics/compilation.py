"""Compiling a GPU's kernels before they are needed, side by side: Triton compiles where a kernel is first launched."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def compiling(works: Sequence[Callable[[], object]], device: torch.device) -> Iterator[None]:
    """Does each of `works` once, in a thread and a stream of its own, beside what is done inside the context.

    What they compute is for nothing: they must change nothing that lasts and nothing that anyone else reads. The first
    is done before the others begin, since Triton goes through all of its own files for what comes first, in as many
    threads as ask for it at once, each holding up the others. On a CPU, where nothing is compiled, none is done.

    Raises:
        Exception: what one of them raised, at the end of the context.
    """
    if device.type != "cuda":
        yield
        return
    torch.cuda.synchronize(device)  # their streams wait for no other

    def alone(work: Callable[[], object]) -> None:
        with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
            work()
            torch.cuda.current_stream().synchronize()

    with warnings.catch_warnings(), ThreadPoolExecutor(len(works), "compile") as pool:
        # Their gradients are for nothing, in streams that are waited for below.
        warnings.filterwarnings("ignore", message="The AccumulateGrad node's stream does not match")
        first = pool.submit(alone, works[0])

        def after(work: Callable[[], object]) -> None:
            first.result()
            alone(work)

        others = [pool.submit(after, work) for work in works[1:]]
        yield
        for done in (first, *others):
            done.result()
