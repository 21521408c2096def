"""Seconds from the command to the first training step, with kernels still to be compiled and with all of them there."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

import torch

from benchmarks.matrix import TRAIN, last_line
from gorl_robotics.bytecode import keep_bytecode
from gorl_robotics.errors import InputError

CACHES = ("WARP_CACHE_PATH", "TRITON_CACHE_DIR", "NUMBA_CACHE_DIR", "CUDA_CACHE_PATH")
LIMIT = 600.0  # seconds; a start that takes longer has failed
LOOK = 0.02


def start(settings: Sequence[str], caches: Path, program: Path = TRAIN) -> dict[str, Any]:
    """Starts `train.py`, notes when its first iteration begins, and ends it.

    Args:
        settings: its arguments.
        caches: a folder for all caches of compiled kernels: the first start into it is a cold one, the next a warm one.
        program: which program.

    Returns:
        Seconds until then and of the first iteration, and whether torch's own Python was there as bytecode: where it
        was not, this start compiled some thousand files, for seconds.

    Raises:
        InputError: it ended before, or took longer than ten minutes.
    """
    keep_bytecode()  # as train.py does, so that this looks where that does
    bytecode = Path(cache_from_source(torch.__file__)).exists()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = os.environ | {cache: str(caches / cache) for cache in CACHES}
        with (folder / "log.txt").open("wb") as log:
            began = time.monotonic()
            command = [sys.executable, str(program), *settings, f"runs={folder / 'runs'}"]
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
            try:
                row = _first_row(process, folder, began)
                seconds = time.monotonic() - began
            finally:
                process.kill()
                process.wait()
    iteration = float(row["time/elapsed"])  # on a clock that begins when all is built
    return {"seconds": seconds - iteration, "first_iteration": iteration, "bytecode": bytecode}


def _first_row(process: subprocess.Popen[bytes], folder: Path, began: float) -> dict[str, str]:
    """The metrics of the first iteration, as soon as they are written."""
    while time.monotonic() - began < LIMIT:
        for path in folder.glob("runs/*/*/metrics.csv"):
            whole, _, _ = path.read_text().rpartition("\n")  # what comes behind may be half written
            rows = csv.DictReader(whole.splitlines())
            iterations = [row for row in rows if row["time/steps_per_second"] and row["time/elapsed"]]
            if iterations:
                return iterations[0]
        if process.poll() is not None:
            raise InputError(last_line(folder / "log.txt") or f"train.py ended with code {process.returncode}")
        time.sleep(LOOK)
    raise InputError(f"no training step within {LIMIT:.0f} s")
