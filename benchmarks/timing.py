"""Seconds of a repeated piece of device work: warmed up, synchronised, the median of several blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch

BLOCK_SECONDS = 0.3
BLOCKS = 5
WARM_UP_CALLS = 2  # by then whatever is captured has been: a unit of work runs its functions many times


@dataclass(frozen=True)
class Timed:
    """Seconds of one call: the median over blocks of calls, and the fastest and slowest block."""

    seconds: float
    fastest: float
    slowest: float
    calls: int  # in each block


def timed(work: Callable[[], object], device: torch.device) -> Timed:
    """Times `work`, which may launch device work without waiting for it."""
    return alternately([work], device)[0]


def alternately(works: Sequence[Callable[[], object]], device: torch.device) -> list[Timed]:
    """Times several in turns, block by block: whatever else the machine does meanwhile slows them alike."""
    counts = []
    for work in works:
        for _ in range(WARM_UP_CALLS):
            work()
        once = _block(work, 1, device)
        counts.append(max(1, math.ceil(BLOCK_SECONDS / max(once, 1e-9))))
    rounds = [
        [_block(work, calls, device) / calls for work, calls in zip(works, counts, strict=True)] for _ in range(BLOCKS)
    ]
    return [
        Timed(median(blocks), min(blocks), max(blocks), calls)
        for blocks, calls in zip(zip(*rounds, strict=True), counts, strict=True)
    ]


def wait(device: torch.device) -> None:
    """Until the device has done all that was launched, on whatever stream."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _block(work: Callable[[], object], calls: int, device: torch.device) -> float:
    wait(device)
    began = perf_counter()
    for _ in range(calls):
        work()
    wait(device)
    return perf_counter() - began
