"""Result files put together: a series is one method on one task, with all of its seeds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import yaml

from benchmarks.arguments import as_arguments
from gorl_robotics.errors import InputError

PUBLISHED = Path(__file__).with_name("published.yaml")
_SEED = re.compile(r"-s\d+(\.failed)?$")


@dataclass
class Series:
    """One method on one task: results and, of runs that broke off, reasons, each by seed."""

    task: str
    method: str
    variant: str  # steps and settings or, of older files, what their names have in common
    label: str = ""  # the method and, where there are several variants of it, which
    results: dict[int, dict[str, Any]] = field(default_factory=dict)
    broken: dict[int, str] = field(default_factory=dict)

    def finals(self, name: str = "deterministic_mean") -> list[float]:
        """One figure of every finished seed's final evaluation."""
        return [float(result["final"][name]) for _, result in sorted(self.results.items())]

    def mean_and_std(self, name: str = "deterministic_mean") -> tuple[float, float | None]:
        """Over the finished seeds; the sample's standard deviation, None of a single seed."""
        values = self.finals(name)
        return fmean(values), stdev(values) if len(values) > 1 else None

    def curves(self, points: int = 300) -> tuple[np.ndarray, np.ndarray]:
        """The monitor worlds' mean return: steps (P,) that all seeds have, and returns (seeds, P) at them."""
        known = [_curve(result) for _, result in sorted(self.results.items())]
        known = [(steps, returns) for steps, returns in known if len(steps)]
        if not known:
            return np.empty(0), np.empty((0, 0))
        grid = np.linspace(max(steps[0] for steps, _ in known), min(steps[-1] for steps, _ in known), points)
        return grid, np.stack([np.interp(grid, steps, returns) for steps, returns in known])


@dataclass(frozen=True)
class Published:
    """Final returns that others report: {method: {task: [mean] or [mean, standard deviation]}}."""

    name: str
    source: str
    finals: dict[str, dict[str, list[float]]]


def load(folders: Sequence[Path]) -> tuple[list[Series], list[dict[str, Any]]]:
    """The series of learning runs, and the throughput measurements, of all result files in `folders`.

    Files of other kinds are left alone.

    Raises:
        InputError: a folder does not exist, or a file in it is damaged.
    """
    found: dict[tuple[str, str, str], Series] = {}
    throughput = []
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"there is no folder {folder}; expected one with result files")
        for path in sorted(folder.glob("*.json")):
            try:
                content = json.loads(path.read_text())
            except ValueError as error:
                raise InputError(f"{path} is no readable result file: it is damaged") from error
            if not isinstance(content, dict):
                continue
            if "measurements" in content:
                throughput.append(content)
            elif "final" in content or "failure" in content:
                _add(found, path, content)
    return _labelled(found.values()), throughput


@cache
def published() -> list[Published]:
    """What is published, in the order of the file."""
    return [Published(**entry) for entry in yaml.safe_load(PUBLISHED.read_text())]


def method_of(settings: dict[str, Any]) -> str:
    """The method of a run; before it was a setting, one stage meant Gaussian PPO: no refit ever came."""
    return str(settings.get("method") or ("gaussian" if len(settings["stages"]["fractions"]) == 1 else "gorl_flow"))


def _add(found: dict[tuple[str, str, str], Series], path: Path, content: dict[str, Any]) -> None:
    cell, settings = content.get("cell", {}), content.get("settings", {})
    task, seed = cell.get("task") or settings["task"], cell.get("seed", settings.get("seed"))
    method = cell.get("method") or method_of(settings)
    name = _SEED.sub("", path.stem)
    variant = " ".join([f"{cell['steps'] / 1e6:g} M", *as_arguments(cell["settings"])]) if cell else name
    series = found.setdefault((task, method, f"{path.parent}/{name}"), Series(task, method, variant))
    if "failure" in content:
        series.broken[seed] = content["failure"]
    else:
        series.results[seed] = content


def _labelled(found: Iterable[Series]) -> list[Series]:
    every = sorted(found, key=lambda series: (series.task, series.method, series.variant))
    kinds = [(series.task, series.method) for series in every]
    for series in every:
        several = kinds.count((series.task, series.method)) > 1
        series.label = f"{series.method} ({series.variant})" if several else series.method
    return every


def _curve(result: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    curve = result["curve"]
    pairs = zip(curve["steps"], curve["return/monitor_mean"], strict=True)
    known = np.array([(steps, value) for steps, value in pairs if value is not None], dtype=float).reshape(-1, 2)
    return known[:, 0], known[:, 1]
