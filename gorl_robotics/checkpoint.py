"""Checkpoints: everything a run is, in one file that loads without executing code."""

from __future__ import annotations

import errno
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gorl_robotics.errors import InputError
from gorl_robotics.files import atomic

FORMAT = "gorl-robotics checkpoint"
FORMAT_VERSION = 1
LATEST = "latest.pt"
FOLDER = "checkpoints"


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Writes tensors and plain values to `path`, which is whole at any time.

    Raises:
        OSError: the disk is full or the folder is not writable.
    """
    with atomic(path) as temporary:
        try:
            torch.save({"format": FORMAT, "format_version": FORMAT_VERSION, **content}, temporary)
        except RuntimeError as error:  # all that torch makes of a write that failed
            raise OSError(errno.EIO, "the checkpoint could not be written; is the disk full?", str(path)) from error


def load(path: Path) -> dict[str, Any]:
    """Reads what `save` wrote, on the CPU.

    Raises:
        InputError: the file is damaged, no checkpoint, or of a newer format.
    """
    try:
        if not zipfile.is_zipfile(path):  # what torch wrote before its files were archives would warn besides
            raise zipfile.BadZipFile
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:  # torch reads past a wrong check sum
                raise zipfile.BadZipFile
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make the reader fail in any way there is
        raise InputError(f"{path} is not a readable checkpoint: it is damaged or of another kind") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path} is no checkpoint of gorl-robotics")
    if (version := content.get("format_version")) != FORMAT_VERSION:
        raise InputError(f"{path} has checkpoint format {version}, this version reads {FORMAT_VERSION}")
    return content


def find(run: Path) -> Path:
    """The checkpoint that `run` means: itself if it is a file, else the newest in that run folder.

    Raises:
        InputError: there is none.
    """
    if run.is_file():
        return run
    if not run.is_dir():
        siblings = sorted(str(p) for p in run.parent.glob("*") if p.is_dir()) if run.parent.is_dir() else []
        hint = f"; there are: {', '.join(siblings[-3:])}" if siblings else ""
        raise InputError(f"run folder {str(run)!r} does not exist{hint}")
    path = run / FOLDER / LATEST
    if not path.is_file():
        raise InputError(f"{str(run)!r} holds no checkpoint ({path.relative_to(run)}); expected a run folder")
    return path


def run_of(path: Path) -> Path:
    """The run folder that the checkpoint at `path` is in: what is written there may replace what is there.

    Raises:
        InputError: it is in none, a copy perhaps; around it may be anything.
    """
    folder = path.resolve().parent
    if folder.name != FOLDER:
        raise InputError(f"{path} is in no run folder; expected RUN/{FOLDER}/{path.name}")
    return folder.parent
