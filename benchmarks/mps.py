"""NVIDIA's Multi-Process Service, for as long as several processes share a GPU.

Without it their kernels take turns; with it they run beside each other, as far as the GPU has room. The service is a
daemon of the user's own that needs no setting of the device: processes whose CUDA_MPS_PIPE_DIRECTORY is the daemon's
are served by it, all others go on as ever (https://docs.nvidia.com/deploy/mps).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

CONTROL = "nvidia-cuda-mps-control"
# A daemon that answers may still have a server that does not: better seen now than in every run.
PROBE = (sys.executable, "-c", "import torch; torch.zeros(1, device='cuda')")
PATIENCE = 60.0  # seconds


@contextmanager
def shared(gpus: Sequence[str | None], per_gpu: int) -> Iterator[list[dict[str, str]]]:
    """Starts the service if several processes share a GPU and it is installed; stops it however the block ends.

    Args:
        gpus: as CUDA_VISIBLE_DEVICES names them; [None] for the CPU.
        per_gpu: processes at a time on each of them.

    Yields:
        What the environment of a process on each of `gpus` has to say.
    """
    named = [gpu for gpu in gpus if gpu is not None]
    alone = [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in named] or [{}]
    if per_gpu == 1 or not named:
        yield alone
        return
    if shutil.which(CONTROL) is None:
        print(f"{per_gpu} processes on each GPU take turns: there is no {CONTROL}", flush=True)
        yield alone
        return
    with tempfile.TemporaryDirectory(prefix="mps-", ignore_cleanup_errors=True) as folder:
        places = _places(Path(folder))
        try:
            failure = _run([CONTROL, "-d"], {**places, "CUDA_VISIBLE_DEVICES": ",".join(named)})
            # Its clients see the daemon's devices alone, counted anew from 0.
            served = [{"CUDA_VISIBLE_DEVICES": str(i), **places} for i in range(len(named))]
            failure = failure or next((said for one in served if (said := _run(PROBE, one))), "")
            if failure:
                print(f"{per_gpu} processes on each GPU take turns: {failure}", flush=True)
            yield alone if failure else served
        finally:
            _run([CONTROL], places, b"quit\n")


def _places(folder: Path) -> dict[str, str]:
    places = {"CUDA_MPS_PIPE_DIRECTORY": folder / "pipe", "CUDA_MPS_LOG_DIRECTORY": folder / "log"}
    for place in places.values():
        place.mkdir()
    return {name: str(place) for name, place in places.items()}


def _run(command: Sequence[str], environment: dict[str, str], told: bytes = b"") -> str:
    """Runs it to its end, out of Ctrl-C's reach; its last words if it fails."""
    with tempfile.TemporaryFile() as words:  # not a pipe: the daemon would keep that open
        try:
            code = subprocess.run(
                command,
                env={**os.environ, **environment},
                input=told,
                stdout=words,
                stderr=words,
                start_new_session=True,
                timeout=PATIENCE,
            ).returncode
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        words.seek(0)
        lines = [line.strip() for line in words.read().decode(errors="replace").splitlines() if line.strip()]
    return "" if code == 0 else (lines or [f"{command[0]} ended with code {code}"])[-1]
