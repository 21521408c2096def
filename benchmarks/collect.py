"""Turns finished run folders into small result files: settings, final returns, the whole curve, where it ran.

python -m benchmarks.collect RUN [RUN ...] --out benchmarks/results/hopper_stand --commit HASH --hardware "1x H200"
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from gorl_robotics.errors import InputError, run_main
from gorl_robotics.files import atomic

CURVE = ("steps", "return/monitor_mean", "return/monitor_p10", "return/training_mean", "time/elapsed")


def collect(run: Path, commit: str, hardware: str, command: str) -> dict[str, Any]:
    """One run as plain values.

    Args:
        run: a run folder whose run is complete.
        commit: of the code that ran.
        hardware: on which it ran.
        command: that started it.
    """
    try:
        settings = yaml.safe_load((run / "config.yaml").read_text())
        with (run / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise InputError(f"{run} is no run folder: {error.strerror}") from error
    evaluations = [row for row in rows if row["evaluation/deterministic_mean"]]
    iterations = [row for row in rows if row["time/steps_per_second"]]
    samples = settings["num_envs"] * settings["ppo"]["rollout_steps"]
    learning = sum(samples / float(row["time/steps_per_second"]) for row in iterations)
    return {
        "command": command,
        "commit": commit,
        "hardware": hardware,
        "settings": settings,
        "steps": int(rows[-1]["steps"]),
        "seconds": {
            "first_iteration_to_last_evaluation": _seconds(iterations[0], rows[-1]),
            "rollouts_and_updates": round(learning, 2),
        },
        "steps_per_second": {"rollouts_and_updates": round(samples * len(iterations) / learning)},
        "evaluations": [_evaluation(row) for row in evaluations],
        "final": _evaluation(evaluations[-1]),
        "curve": {name: [_number(row[name]) for row in iterations] for name in _curves(rows[0])},
    }


def _curves(columns: Iterable[str]) -> list[str]:
    return [name for name in columns if name in CURVE or name.startswith(("policy/", "loss/"))]


def _evaluation(row: dict[str, str]) -> dict[str, float | None]:
    prefix = "evaluation/"
    values = {name.removeprefix(prefix): _number(text) for name, text in row.items() if name.startswith(prefix)}
    return {"steps": int(row["steps"]), **values}


def _number(text: str) -> float | None:
    """Five significant digits are plenty for a curve; None where nothing was measured yet."""
    if text in ("", "nan"):
        return None
    value = float(text)
    return int(value) if value.is_integer() else float(f"{value:.5g}") if math.isfinite(value) else None


def _seconds(first: dict[str, str], last: dict[str, str]) -> float:
    return round(float(last["time/elapsed"]) - float(first["time/elapsed"]), 2)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.collect", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True, help="folder of the result files")
    parser.add_argument("--commit", required=True)
    parser.add_argument("--hardware", required=True)
    parser.add_argument("--command", required=True, help="without the seed, which is appended")
    parser.add_argument("--name", default="gorl", help="first part of the file names")
    arguments = parser.parse_args()
    for run in arguments.runs:
        result = collect(run, arguments.commit, arguments.hardware, arguments.command)
        seed = result["settings"]["seed"]
        result["command"] += f" seed={seed}"
        with atomic(arguments.out / f"{arguments.name}-s{seed}.json") as temporary:
            temporary.write_text(json.dumps(result) + "\n")
        print(f"{arguments.name}-s{seed}: {result['final']}")


if __name__ == "__main__":
    run_main(main)
