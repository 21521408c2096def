"""Run folders: `runs/<task>/<time>-s<seed>/`, enough by themselves to resume, evaluate, export and play."""

from __future__ import annotations

import math
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gorl_robotics import __version__, checkpoint
from gorl_robotics.config import Config, config_values, from_yaml, resolve, to_yaml
from gorl_robotics.errors import InputError
from gorl_robotics.files import atomic

# Settings that a run may go on with changed; the others decide sizes or the meaning of what was learnt.
CHANGEABLE = ("device", "threads", "total_steps", "checkpoint_seconds", "evaluation_worlds")


def create(config: Config) -> Path:
    """Makes the folder of a new run and writes its configuration into it."""
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-s{config.seed}"
    parent = Path(config.runs) / config.task_name
    parent.mkdir(parents=True, exist_ok=True)
    folder, count = parent / stem, 1
    while True:
        try:
            folder.mkdir()
            break
        except FileExistsError:
            count += 1
            folder = parent / f"{stem}-{count}"
    write_config(folder, config)
    return folder


def write_config(folder: Path, config: Config) -> None:
    """Writes the resolved configuration."""
    with atomic(folder / "config.yaml") as temporary:
        temporary.write_text(to_yaml(config))


def continued(path: Path, config: Config, stage: int) -> Path:
    """The folder in which a run goes on from the checkpoint at `path`.

    From the newest checkpoint it is the run's own. From an older one it is a new folder, with a copy of what goes on in
    it: the metrics and what the stage has recorded. So nothing recorded since is lost.

    Raises:
        InputError: the checkpoint is in no run folder.
    """
    own = checkpoint.run_of(path)
    if path.name == checkpoint.LATEST:
        return own
    folder = create(config)
    try:
        for source in (*own.glob("metrics.csv"), *own.glob(f"rollouts/stage-{stage + 1}-rank-*.h5")):
            target = folder / source.relative_to(own)
            target.parent.mkdir(exist_ok=True)
            shutil.copy2(source, target)
    except BaseException:
        discard(folder)
        raise
    return folder


def reopen(given: Mapping[str, Any], setting: str) -> tuple[Path, dict[str, Any], Config]:
    """The checkpoint that `setting` names: its path, content and configuration, with the few settings that may change.

    Raises:
        InputError: it does not exist, cannot be read, or `given` asks for what cannot change any more.
    """
    if not given.get(setting):
        raise InputError(f"{setting}=RUN is missing; expected a run folder or a checkpoint in one")
    path = checkpoint.find(Path(given[setting]))
    saved = checkpoint.load(path)
    config = from_yaml(saved["config"])
    if given.get("total_steps", math.inf) < config.total_steps:
        raise InputError(f"total_steps={given['total_steps']}: the run in {path} has {config.total_steps}; raise it")
    changed = resolve({name: given[name] for name in CHANGEABLE if name in given}, config_values(config))
    for name, value in config_values(changed).items():
        if name in given and name not in (*CHANGEABLE, setting, "test", "config") and given[name] != value:
            raise InputError(f"{name}={given[name]}: the run in {path} has {name}={value}, which cannot change")
    return path, saved, changed


def discard(folder: Path) -> None:
    """Removes the folder of a run that could not start; one that holds a checkpoint stays."""
    if not (folder / checkpoint.FOLDER).exists():
        shutil.rmtree(folder, ignore_errors=True)


def provenance() -> dict[str, str | int | float]:
    """Version and commit of this code."""
    return {"gorl_robotics": __version__, "commit": _commit()}


def _commit() -> str:
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
