"""Where a benchmark's numbers come from: command, commit, hardware and versions, written beside them."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from gorl_robotics import __version__, run_folder
from gorl_robotics.files import atomic

RESULTS = Path(__file__).parent / "results"
# What says where files were, not what was done: no other machine has those folders.
PLACES = ("runs", "resume", "checkpoint", "config")
_PLACE_OPTIONS = ("--out", "--runs", "--figure", "--trace")
PACKAGES = ("torch", "warp-lang", "mujoco", "mujoco-warp", "numpy", "triton", "numba")


def provenance(command: Sequence[str], commit: str = "", gpu: str | None = None) -> dict[str, Any]:
    """What a result file says about its origin.

    Args:
        command: the arguments behind `python`; places of files are left out.
        commit: of the code, where no git history is beside it that would tell.
        gpu: the only one that the command sees, as CUDA_VISIBLE_DEVICES names it; by default what this process sees.
    """
    name = commit or str(run_folder.provenance()["commit"])
    return {
        "command": shlex.join(["python", *_without_places(command)]),
        "commit": name.removesuffix("-dirty"),
        "dirty": name.endswith("-dirty"),
        "hardware": hardware(gpu),
        "versions": versions(),
    }


def hardware(gpu: str | None = None) -> str:
    """The GPUs that may be used and their driver, and the processor and how many of its cores may be used.

    Args:
        gpu: see `provenance`.
    """
    found = _gpus(os.environ.get("CUDA_VISIBLE_DEVICES") if gpu is None else gpu)
    kinds = [f"{found.count(kind)}x {kind}" for kind in dict.fromkeys(found)]
    return ", ".join([*kinds, f"{len(os.sched_getaffinity(0))} cores of {_processor()}"])


def versions() -> dict[str, str]:
    """Of Python, this project and the libraries that decide how fast it is."""
    named = {"python": platform.python_version(), "gorl_robotics": __version__}
    for package in PACKAGES:
        try:
            named[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return named


def write(path: Path, result: dict[str, Any]) -> None:
    """Writes a result file; the former one stays if that fails."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(result) + "\n")


def read(path: Path) -> dict[str, Any] | None:
    """A result file's content, None if it is absent or no JSON object."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _without_places(command: Sequence[str]) -> list[str]:
    kept: list[str] = []
    words = iter(command)
    for word in words:
        name = word.partition("=")[0]
        if name in _PLACE_OPTIONS and name == word:
            next(words, None)  # its value
        elif name not in (*_PLACE_OPTIONS, *PLACES):
            kept.append(word)
    return kept


def _gpus(visible: str | None) -> list[str]:
    # Not torch: asking it would take memory on the first GPU for as long as this process lives.
    query = ["nvidia-smi", "--query-gpu=index,uuid,name,driver_version", "--format=csv,noheader"]
    try:
        text = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines() if line.count(",") == 3]
    if visible is not None:
        chosen = [name.strip() for name in visible.split(",")]
        rows = [row for row in rows if row[0] in chosen or any(row[1].startswith(name) for name in chosen if name)]
    return [f"{name} (driver {driver})" for _, _, name, driver in rows]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
