"""Run folders: `runs/<task>/<time>-s<seed>/`, enough by themselves to resume, evaluate, export and play."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

from gorl_robotics import __version__, checkpoint
from gorl_robotics.config import Config, to_yaml
from gorl_robotics.files import atomic


def create(config: Config) -> Path:
    """Makes the folder of a new run and writes its configuration into it."""
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-s{config.seed}"
    parent = Path(config.runs) / config.task
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

    From the newest checkpoint it is the run's own. From an older one it is a new folder with a copy of what the old
    one held up to then, so that nothing recorded since is lost.
    """
    own = path.resolve().parent.parent
    if path.name == checkpoint.LATEST:
        return own
    folder = create(config)
    try:
        for name in ("metrics.csv", f"rollouts/stage-{stage + 1}-rank-0.h5"):
            if (own / name).is_file():
                (folder / name).parent.mkdir(exist_ok=True)
                shutil.copy2(own / name, folder / name)
    except BaseException:
        discard(folder)
        raise
    return folder


def discard(folder: Path) -> None:
    """Removes the folder of a run that could not start; one that holds a checkpoint stays."""
    if not (folder / "checkpoints").exists():
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
