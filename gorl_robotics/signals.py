"""Ctrl-C and SIGTERM as a request instead of an exception."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def on_stop(ask: Callable[[], None]) -> Iterator[None]:
    """Calls `ask` at the first SIGINT or SIGTERM; a second one ends the program as it always does."""

    def restore() -> None:
        for kind, handler in former.items():
            signal.signal(kind, handler)

    def handle(kind: int, frame: FrameType | None) -> None:
        restore()
        ask()

    former = {kind: signal.signal(kind, handle) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        restore()
