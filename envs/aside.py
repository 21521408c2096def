"""Work that nobody needs at once, beside what follows it: in a stream of its own on a GPU, first on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Aside:
    """What is launched `beside` all else must be waited for by `join` before anything uses it.

    Args:
        device: where it works.
    """

    def __init__(self, device: torch.device) -> None:
        # Torch's streams of a priority are few and come round again: of this one the learner takes none to wait for.
        self._stream = torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None
        self._working = False

    @contextmanager
    def beside(self) -> Iterator[None]:
        """What is launched inside waits for all work so far, and what is launched afterwards does not wait for it."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            self._working = True

    def join(self) -> None:
        """What is launched from now on waits for it; the host does not."""
        if self._stream is not None and self._working:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
            self._working = False
