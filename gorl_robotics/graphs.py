"""CUDA graphs: a function of fixed buffers, recorded once and launched as a whole. No other file knows of them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence

import torch

# Eager calls before the capture: libraries initialise themselves and allocate workspaces in the first ones.
WARM_UP_CALLS = 2


def captured(
    function: Callable[[], None], device: torch.device, generators: Sequence[torch.Generator] = ()
) -> Callable[[], None]:
    """`function` as a CUDA graph; on the CPU the function itself.

    The function takes its inputs from tensors and leaves its results in tensors that live longer than it does. Every
    call has its effect exactly once, the eager warm-up calls and the one that is captured included.

    Args:
        function: launches device work only: no host synchronisation, no copies from the host.
        device: where it works.
        generators: those it draws random numbers from; one may come twice.
    """
    return function if device.type != "cuda" else _Graph(function, generators)


class _Graph:
    def __init__(self, function: Callable[[], None], generators: Sequence[torch.Generator]) -> None:
        self._function, self._generators = function, generators
        self._graph: torch.cuda.CUDAGraph | None = None
        self._calls = 0

    def __call__(self) -> None:
        if self._calls < WARM_UP_CALLS:
            self._calls += 1
            self._function()
            return
        if self._graph is None:
            self._graph = self._capture()
        self._graph.replay()

    def _capture(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        for generator in dict.fromkeys(self._generators):
            graph.register_generator_state(generator)
        # An older graph that dies while this one is recorded would be recorded into it.
        torch.cuda.synchronize()
        gc.collect()
        gc.disable()
        try:
            # Other threads (the recorder) may go on with work that a global capture would forbid.
            stream = torch.cuda.current_stream()
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                self._function()
        finally:
            gc.enable()
        return graph
