"""CUDA programs compiled in processes of their own.

NVIDIA's compiler takes and gives back so much memory that threads of one process hold each other up in the operating
system: what two processes compile in 23 s of CPU time takes two threads 32 and eight 36 (docs/speed.md).
`multiprocessing` would import the main program, torch and all, in each of them.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import LifoQueue
from typing import Any

from warp._src import build  # Warp has no public hook for this; 1.15 to 1.19 have it here

_PROGRAM = Path(__file__).with_name("cuda_compiler.py")
_MOST = 8  # processes, of a quarter of a gigabyte each; what Warp does in Python before takes about as long


@contextmanager
def compiling_elsewhere() -> Iterator[None]:
    """Inside, what any thread has Warp compile for CUDA is compiled by other processes, which end with the context.

    They start when they are first needed. What they cannot do is done here, where its error is raised.
    """
    here = build.build_cuda
    compilers = [_Compiler() for _ in range(min(_MOST, len(os.sched_getaffinity(0))))]
    idle: LifoQueue[_Compiler] = LifoQueue()  # the last one first, so that no more start than are needed
    for compiler in compilers:
        idle.put(compiler)

    def elsewhere(*arguments: Any, **options: Any) -> None:
        compiler = idle.get()
        try:
            done = compiler.compile(arguments, options)
        finally:
            idle.put(compiler)
        if not done:
            here(*arguments, **options)

    build.build_cuda = elsewhere
    try:
        yield
    finally:
        build.build_cuda = here
        for compiler in compilers:  # a tenth of a second each, so all of them at once
            compiler.end()
        for compiler in compilers:
            compiler.wait()


class _Compiler:
    """One process, which compiles one program at a time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def compile(self, arguments: tuple[Any, ...], options: dict[str, Any]) -> bool:
        """Calls Warp's `build_cuda` there; whether that went well."""
        try:
            if self._process is None:
                self._process = _start()
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            pickle.dump((arguments, options), self._process.stdin)
            self._process.stdin.flush()
            return bool(pickle.load(self._process.stdout))
        except (OSError, EOFError, pickle.PickleError):  # it could not be started, or has ended
            return False

    def end(self) -> None:
        """Has the process end, if it was ever started; see `wait`."""
        if self._process is not None:
            assert self._process.stdin is not None
            with suppress(OSError):  # what a process that has ended was not sent
                self._process.stdin.close()

    def wait(self) -> None:
        """Until it has ended."""
        if self._process is not None:
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process.wait()


def _start() -> subprocess.Popen[bytes]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    if sys.pycache_prefix:  # Warp's bytecode is there by now
        environment["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
    return subprocess.Popen(
        [sys.executable, "-P", str(_PROGRAM)],  # -P: what lies beside it is not to be found by its name
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
