"""A matrix of training runs: which are done, which go on, which begin; the workers of each GPU take the next one."""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import mps
from benchmarks.arguments import as_arguments
from benchmarks.collect import collect, is_complete
from benchmarks.provenance import provenance, read, write
from gorl_robotics import checkpoint
from gorl_robotics.errors import InputError

TRAIN = Path(__file__).parent.parent / "train.py"
DEFAULT_METHOD = "gorl_flow"
EVALUATION_STEPS = 10_000_000
FAILED = ".failed.json"


@dataclass(frozen=True)
class Cell:
    """One run of the matrix; `settings` are those besides the first four."""

    task: str
    method: str
    seed: int
    steps: int
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> dict[str, Any]:
        """What makes a result file this run's."""
        return {
            "task": self.task,
            "method": self.method,
            "seed": self.seed,
            "steps": self.steps,
            "settings": self.settings,
        }

    @property
    def name(self) -> str:
        """Of its result file and of its folder; other settings give another one."""
        millions, rest = divmod(self.steps, 10**6)
        parts = [self.task.rpartition(":")[2], self.method, str(self.steps) if rest else f"{millions}M"]
        if self.settings:
            parts.append(hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:6])
        return "-".join([*parts, f"s{self.seed}"])

    @property
    def arguments(self) -> list[str]:
        """Of train.py, to begin the run; frozen evaluations every so many steps come with the protocol."""
        first: dict[str, Any] = {
            "task": self.task,
            "seed": self.seed,
            "total_steps": self.steps,
            "evaluation_steps": EVALUATION_STEPS,
        }
        if self.method != DEFAULT_METHOD:
            first["method"] = self.method
        return as_arguments({**first, **self.settings})

    def __str__(self) -> str:
        return f"{self.task} {self.method} seed {self.seed}"


class Matrix:
    """Runs cells that have no result yet.

    Args:
        out: folder of the result files.
        runs: folder of the run folders and logs, one folder for each cell.
        commit: of the code, where git cannot tell.
    """

    def __init__(self, out: Path, runs: Path, commit: str = "") -> None:
        self._out, self._runs, self._commit = out, runs, commit
        self._todo: deque[Cell] = deque()
        self._per_gpu = 1
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()  # of the processes under way and `stopped`
        self.stopped = False
        self.failures = 0

    def run(self, cells: Sequence[Cell], gpus: Sequence[str | None], per_gpu: int = 1) -> None:
        """Runs what is not done yet, `per_gpu` processes at a time on each of `gpus`; returns when all have ended."""
        done = [cell for cell in cells if self._is_done(cell)]
        self._todo.extend(cell for cell in cells if cell not in done)
        print(f"{len(cells)} runs, {len(done)} of them done already", flush=True)
        if not self._todo:
            return
        self._per_gpu = min(per_gpu, math.ceil(len(self._todo) / len(gpus)))
        with mps.shared(gpus, self._per_gpu) as environments:
            places = [*zip(gpus, environments, strict=True)] * self._per_gpu
            workers = [threading.Thread(target=self._work, args=place) for place in places[: len(self._todo)]]
            for worker in workers:
                worker.start()
            for worker in workers:
                while worker.is_alive():
                    worker.join(0.2)  # a signal may arrive in another thread: this one has to look

    def stop(self) -> None:
        """Begins no further run; those under way save a checkpoint and end."""
        with self._lock:
            self.stopped = True
            for process in self._running:
                process.send_signal(signal.SIGTERM)

    def _is_done(self, cell: Cell) -> bool:
        content = read(self._out / f"{cell.name}.json")
        return content is not None and content.get("cell") == cell.identity

    def _work(self, gpu: str | None, environment: dict[str, str]) -> None:
        while not self.stopped:
            try:
                cell = self._todo.popleft()
            except IndexError:
                return
            try:
                line = self._complete(cell, gpu, environment)
            except Exception as error:  # whatever it is, the others go on
                line = self._fail(cell, str(error) or type(error).__name__)
            if line:
                print(line, flush=True)

    def _complete(self, cell: Cell, gpu: str | None, environment: dict[str, str]) -> str:
        folder = self._runs / cell.name
        folder.mkdir(parents=True, exist_ok=True)
        run = _newest(folder)
        if run is None or not is_complete(run):
            arguments = [f"resume={run}"] if run else [*cell.arguments, f"runs={folder}"]
            self._launch(cell, arguments, gpu, environment)
            run = _newest(folder)
            if run is None or not is_complete(run):
                if self.stopped:
                    return f"{cell}: stopped"
                raise InputError("it ended before its last step; was it stopped?")
        result = {"cell": cell.identity, **(read(folder / "started.json") or {}), **collect(run)}
        write(self._out / f"{cell.name}.json", result)
        (self._out / f"{cell.name}{FAILED}").unlink(missing_ok=True)
        final, seconds = result["final"], result["seconds"]["first_training_step_to_last_checkpoint"]
        return (
            f"{cell}: return {final['deterministic_mean']:.1f} (10th percentile {final['deterministic_p10']:.1f}) "
            f"after {result['steps']:,} steps, {seconds:.0f} s"
        )

    def _launch(self, cell: Cell, arguments: list[str], gpu: str | None, environment: dict[str, str]) -> None:
        """Runs train.py to its end; InputError with its last words if it fails."""
        folder = self._runs / cell.name
        former = read(folder / "started.json") or {}
        launches = former.get("launches", 0)
        origin = {
            **provenance(["train.py", *cell.arguments], self._commit, gpu),
            "per_gpu": max(self._per_gpu, former.get("per_gpu", 1)),  # the run's clock goes on from launch to launch
        }
        write(folder / "started.json", {**origin, "launches": launches + 1})
        log = folder / "log.txt"
        with log.open("ab") as output:
            command = [sys.executable, str(TRAIN), *arguments]
            with self._lock:
                if self.stopped:
                    return
                # In a session of its own Ctrl-C reaches it through `stop` alone: a second signal would break it off.
                process = subprocess.Popen(
                    command,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
                    start_new_session=True,
                )
                self._running.add(process)
            print(f"{cell}: {'goes on' if launches else 'begins'}{f', GPU {gpu}' if gpu else ''}", flush=True)
            code = process.wait()
            with self._lock:
                self._running.discard(process)
        if code < 0 and not self.stopped:
            raise InputError(f"train.py was ended by {signal.Signals(-code).name}")
        if code and not self.stopped:
            raise InputError(last_line(log) or f"train.py ended with code {code}")

    def _fail(self, cell: Cell, reason: str) -> str:
        log = self._runs / cell.name / "log.txt"
        with self._lock:
            self.failures += 1
        write(self._out / f"{cell.name}{FAILED}", {"cell": cell.identity, "failure": reason})
        return f"{cell}: FAILED: {reason} (log: {log})"


def _newest(folder: Path) -> Path | None:
    """The run folder in a cell's folder that saved last, None if none has saved anything."""
    saved = list(folder.glob(f"*/*/checkpoints/{checkpoint.LATEST}"))
    return max(saved, key=lambda path: path.stat().st_mtime).parent.parent if saved else None


def last_line(log: Path) -> str:
    """What a program said last; empty if it said nothing."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip().removeprefix("error: ") if lines else ""
