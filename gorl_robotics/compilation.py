"""Compiling a GPU's kernels before they are needed, side by side: Triton compiles where a kernel is first launched."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch


def compile_ahead(works: Sequence[Callable[[], object]], device: torch.device) -> None:
    """Does each of `works` once, in a thread and a stream of its own; on a CPU, where nothing is compiled, none.

    What they compute is for nothing: they must change nothing that lasts and nothing that another one reads.
    """
    if device.type != "cuda":
        return
    torch.cuda.synchronize(device)  # their streams wait for no other

    def alone(work: Callable[[], object]) -> None:
        with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
            work()
            torch.cuda.current_stream().synchronize()

    with warnings.catch_warnings(), ThreadPoolExecutor(len(works), "compile") as pool:
        # Their gradients are for nothing, in streams that are waited for below.
        warnings.filterwarnings("ignore", message="The AccumulateGrad node's stream does not match")
        for done in [pool.submit(alone, work) for work in works]:
            done.result()
