"""Learning runs: every task with every method and every seed, each a `train.py` of its own.

    python -m benchmarks.learning --tasks HopperStand CheetahRun --methods gorl_flow gaussian --seeds 1 2 3 --steps 1e8

The protocol. Counted steps include everything that is learnt from, refit data too. The final figure is that of the
last policy, never of the best checkpoint, in a frozen evaluation: 128 worlds for 1,000 steps, acting with the latent
mean, and as many with sampled latents, always from the same starts; the same at the end of each stage. Every seed that
was asked for is shown, one that broke off as well. Settings in the command hold for all runs alike.

Each run writes one small file into `--out` when it is done: command, commit, hardware, versions, settings, all frozen
evaluations, the monitor worlds' curve, seconds and speeds. Given again, the command skips runs whose file is there,
goes on with runs that were interrupted, and begins anew those that had not saved anything yet. Commands with other
tasks or steps may write to the same `--out`.

One run at a time is on each GPU, or `--per-gpu` of them: a step of a few thousand worlds leaves most of a large GPU
idle. They run beside each other by NVIDIA's Multi-Process Service where `nvidia-cuda-mps-control` is installed, and
else take turns. Their result files say `per_gpu`: such seconds and speeds are not those of a run alone.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import tasks
from benchmarks.arguments import apart, checked, whole
from benchmarks.matrix import Cell, Matrix
from benchmarks.provenance import RESULTS
from gorl_robotics.command_line import Parser
from gorl_robotics.config import parse_arguments
from gorl_robotics.errors import InputError, run_main
from gorl_robotics.methods import configure
from gorl_robotics.signals import on_stop

OWN = ("task", "method", "seed", "total_steps", "runs", "resume", "checkpoint", "test")


def main() -> None:
    """The command line."""
    settings, others = apart(sys.argv[1:])
    arguments = _parser().parse_args(others)
    given = checked(settings, OWN)
    if arguments.per_gpu < 1:
        raise InputError(f"--per-gpu {arguments.per_gpu}: expected at least 1")
    gpus = _gpus(arguments.gpus)
    cells = [
        Cell(task, method, seed, arguments.steps, given)
        for seed in dict.fromkeys(arguments.seeds)
        for task in dict.fromkeys(arguments.tasks)
        for method in dict.fromkeys(arguments.methods)
    ]
    for cell in cells[: len(cells) // len(set(arguments.seeds))]:
        _check(cell, gpus == [None])
    matrix = Matrix(arguments.out, arguments.runs, arguments.commit)
    with on_stop(matrix.stop):
        matrix.run(cells, gpus, arguments.per_gpu)
    if matrix.stopped:
        print("stopped; the same command goes on")
        sys.exit(130)
    if matrix.failures:
        print(f"{matrix.failures} of {len(cells)} runs failed")
        sys.exit(1)


def _check(cell: Cell, on_cpu: bool) -> None:
    """InputError before any run begins, of an unknown task or method, or a setting that cannot be."""
    task = tasks.make(cell.task)
    configure(parse_arguments(cell.arguments), task.compile().nu, on_cpu, task.overrides)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m benchmarks.learning",
        usage="%(prog)s --tasks TASK ... --steps STEPS [options] [SETTING=VALUE ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tasks", nargs="+", required=True, metavar="TASK")
    parser.add_argument("--methods", nargs="+", default=["gorl_flow"], metavar="METHOD", help="default: gorl_flow")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], metavar="SEED", help="default: 1 2 3")
    parser.add_argument("--steps", type=whole, required=True, help="total_steps of each run, such as 1e8")
    parser.add_argument("--gpus", type=int, metavar="G", help="use the first G; default: all, or the CPU without any")
    parser.add_argument("--per-gpu", type=int, default=1, metavar="K", help="runs at a time on each; %(default)s")
    parser.add_argument("--out", type=Path, default=RESULTS / "learning", help="folder of result files; %(default)s")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks"), help="run folders; %(default)s")
    parser.add_argument("--commit", default="", help="of this code, where git cannot tell")
    return parser


def _gpus(wanted: int | None) -> Sequence[str | None]:
    """What CUDA_VISIBLE_DEVICES is for each process that runs at a time; [None] without a GPU."""
    count = torch.cuda.device_count()
    listed = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in listed.split(",") if name.strip()] or [str(i) for i in range(count)]
    names = names[:count]
    if wanted is not None and not 1 <= wanted <= max(1, len(names)):
        raise InputError(f"--gpus {wanted}: expected 1 to {len(names)}" if names else f"--gpus {wanted}: there is none")
    return names[:wanted] or [None]


if __name__ == "__main__":
    run_main(main)
