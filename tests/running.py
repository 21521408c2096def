"""Runs the whole program, as a process of its own or, where that says as much, in this one: it starts at once."""

from __future__ import annotations

import csv
import io
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import train
from gorl_robotics import checkpoint
from gorl_robotics.errors import run_main
from gorl_robotics.progress import Progress

TRAIN = Path(train.__file__)

WORLDS, ROLLOUT_STEPS = 8, 64
SAMPLES = WORLDS * ROLLOUT_STEPS  # of an iteration
# A run of a few seconds, long enough for whole episodes (1000 control steps) to be counted in its curve.
TINY = {
    "task": "CartpoleBalance",
    "num_envs": WORLDS,
    "total_steps": 23 * SAMPLES + 324,  # no whole number of iterations
    "seed": 3,
    "device": "cpu",
    "threads": 1,
    "monitors": 4,
    "evaluation_worlds": 3,
    "networks.policy": "[16,16]",
    "networks.critic": "[16,16]",
    "networks.decoder": "[16,16]",
    "networks.flow_steps": 3,
    "ppo.rollout_steps": ROLLOUT_STEPS,
    "ppo.epochs": 2,
    "ppo.minibatches": 2,
    "stages.fractions": "[0.4,0.3,0.3]",
    "refit.samples": 8 * SAMPLES,
    "refit.updates": 20,
    "refit.batch": 128,
    "refit.draws": 2,
}
STAGE_ENDS = (9, 16, 23)  # iterations


@dataclass(frozen=True)
class Ended:
    """How the program ended and what it printed."""

    code: int
    out: str
    err: str


def settings(**changed: Any) -> list[str]:
    """The arguments of a tiny run; `__` in a name stands for a dot."""
    return [f"{name}={value}" for name, value in {**TINY, **_dotted(changed)}.items()]


def _dotted(named: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("__", "."): value for name, value in named.items()}


def process(arguments: list[str], cwd: Path, timeout: float = 120) -> Ended:
    """Runs `python ARGUMENTS` in `cwd` with its output in pipes."""
    ended = subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=timeout)
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def here(arguments: list[str], cwd: Path, main: Callable[[], None] = train.main) -> Ended:
    """Runs `python train.py ARGUMENTS`, or another program's `main`, in this process."""
    out, err = io.StringIO(), io.StringIO()
    code, former, threads = 0, Path.cwd(), torch.get_num_threads()
    os.chdir(cwd)
    try:
        with mock.patch.object(sys, "argv", ["train.py", *arguments]), redirect_stdout(out), redirect_stderr(err):
            run_main(main)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    finally:
        os.chdir(former)
        torch.set_num_threads(threads)
    return Ended(code, out.getvalue(), err.getvalue())


@contextmanager
def no_export() -> Iterator[None]:
    """Runs in this process end without an export, which takes longer than all the rest of a tiny run."""
    with mock.patch("gorl_robotics.export.export_checkpoint", return_value="nowhere"):
        yield


@contextmanager
def signalled(after: int, kind: signal.Signals, during: str = "report") -> Iterator[None]:
    """A run in this process gets a signal at the end of iteration `after`, before any checkpoint of it."""
    original = getattr(Progress, during)

    def patched(self: Progress, *arguments: Any) -> None:
        original(self, *arguments)
        if self.iteration == after:
            os.kill(os.getpid(), kind)

    with mock.patch.object(Progress, during, patched):
        yield


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Writes beyond `size` bytes of any file fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))  # Python ignores the signal that comes with it
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def killed(after: int, arguments: list[str], cwd: Path) -> Ended:
    """Runs `python train.py ARGUMENTS` and kills it, without any warning, at the place that `signalled` chooses."""
    code = (
        f"import signal, sys; sys.path[:0] = [{str(TRAIN.parent)!r}, {str(Path(__file__).parent)!r}]\n"
        "import running, train\n"
        f"with running.signalled({after}, signal.SIGKILL): train.main()"
    )
    return process(["-c", code, *arguments], cwd)


def torchrun(arguments: list[str], cwd: Path, code: str = "train.main()", timeout: float = 120) -> Ended:
    """Runs two processes of `train.py ARGUMENTS`, or of other code that may use `running`, `train` and their `rank`."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    if code == "train.main()":
        return process([*launch, str(TRAIN), *arguments], cwd, timeout)
    code = (
        f"import os, signal, sys; sys.path[:0] = [{str(TRAIN.parent)!r}, {str(Path(__file__).parent)!r}]\n"
        f"import running, train; rank = int(os.environ['RANK'])\n{code}"
    )
    return process([*launch, "--no-python", sys.executable, "-c", code, *arguments], cwd, timeout)


def stopping_one(after: int) -> str:
    """For `torchrun`: the program, of which the second process alone is asked to stop after that iteration."""
    return (
        "import contextlib\n"
        f"with running.signalled({after}, signal.SIGTERM) if rank else contextlib.nullcontext(): train.main()"
    )


def only_run(cwd: Path) -> Path:
    """The one run folder that was made in `cwd`."""
    (folder,) = cwd.glob("runs/*/*")
    return folder


def rows(folder: Path) -> list[dict[str, str]]:
    """metrics.csv."""
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def curve(folder: Path) -> list[dict[str, str]]:
    """metrics.csv without what the clock said."""
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows(folder)]


def evaluations(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv that are frozen evaluations."""
    return [row for row in rows(folder) if row["evaluation/deterministic_mean"]]


def saved(folder: Path, name: str = checkpoint.LATEST) -> dict[str, Any]:
    """A checkpoint of a run."""
    return checkpoint.load(folder / "checkpoints" / name)


def same_policy(first: Path, second: Path) -> bool:
    """Whether two runs' newest policies agree to the last bit."""
    one, other = (saved(folder)["policy"] for folder in (first, second))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
