"""A finished run folder as plain values: settings, every frozen evaluation, the monitor curve, how long it took."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import yaml

from benchmarks.provenance import PLACES
from gorl_robotics import checkpoint
from gorl_robotics.errors import InputError

CURVE = ("steps", "return/monitor_mean", "return/monitor_p10", "reward/training_mean", "time/elapsed")
POINTS = 400  # at most, of a curve


def collect(run: Path) -> dict[str, Any]:
    """What a result file holds of a run folder whose run is complete.

    Seconds: from the first training step to the last checkpoint (refits and frozen evaluations included), and those
    of rollouts and updates alone. Steps per second: counted steps over each of the two.

    Raises:
        InputError: it is no run folder, or its run has not come to its end.
    """
    settings, rows = _read(run)
    if not is_complete(run):
        raise InputError(f"the run in {run} has not come to its end")
    evaluations = [row for row in rows if row["evaluation/deterministic_mean"]]
    iterations = [row for row in rows if row["time/steps_per_second"]]
    steps, samples = int(rows[-1]["steps"]), _samples(rows)
    durations = [samples / float(row["time/steps_per_second"]) for row in iterations]
    learning, whole = sum(durations), _last_checkpoint(run, rows) - float(iterations[0]["time/elapsed"]) + durations[0]
    return {
        "settings": {name: value for name, value in settings.items() if name not in PLACES},
        "steps": steps,
        "seconds": {
            "first_training_step_to_last_checkpoint": round(whole, 2),
            "rollouts_and_updates": round(learning, 2),
        },
        "steps_per_second": {
            "first_training_step_to_last_checkpoint": round(samples * len(iterations) / whole),
            "rollouts_and_updates": round(samples * len(iterations) / learning),
        },
        "evaluations": [_evaluation(row) for row in evaluations],
        "final": _evaluation(evaluations[-1]),
        "curve": {name: [_number(row[name]) for row in _thinned(iterations)] for name in CURVE},
    }


def is_complete(run: Path) -> bool:
    """Whether all steps were done and the policy that they led to was evaluated.

    Raises:
        InputError: it is no run folder.
    """
    settings, rows = _read(run)
    if not rows or not rows[-1]["evaluation/deterministic_mean"]:
        return False
    samples = _samples(rows)
    return samples > 0 and int(rows[-1]["steps"]) + samples > settings["total_steps"]


def _read(run: Path) -> tuple[dict[str, Any], list[dict[str, str]]]:
    try:
        settings = yaml.safe_load((run / "config.yaml").read_text())
        with (run / "metrics.csv").open(newline="") as file:
            return settings, list(csv.DictReader(file))
    except OSError as error:
        raise InputError(f"{run} is no run folder: {error.strerror}") from error


def _samples(rows: list[dict[str, str]]) -> int:
    """Steps of an iteration, over all processes; 0 before the first."""
    return next((int(row["steps"]) for row in rows if row["time/steps_per_second"]), 0)


def _last_checkpoint(run: Path, rows: list[dict[str, str]]) -> float:
    """Seconds on the run's own clock, which stands still between an interruption and the resume."""
    return max(float(rows[-1]["time/elapsed"]), checkpoint.load(checkpoint.find(run))["elapsed"])


def _thinned(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    every = math.ceil(len(rows) / POINTS)
    return rows[::-1][::every][::-1]  # the last one stays


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
