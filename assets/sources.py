"""Loads a robot's MJCF from one of the known sources.

`suite:hopper` is dm_control's own XML, `file:path/to/robot.xml` any MJCF or URDF file.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import mujoco

from gorl_robotics.errors import InputError, unknown


def load(asset: str) -> mujoco.MjSpec:
    """Loads the model that `asset` names, ready to be edited and compiled.

    Args:
        asset: `SOURCE:NAME`, for example `suite:hopper` or `file:robots/arm.xml` (relative to the current folder).

    Raises:
        InputError: the source or the model does not exist, or the file is not a model that MuJoCo can read.
    """
    source, separator, name = asset.partition(":")
    if not separator:
        raise InputError(f"asset {asset!r} has no source; expected SOURCE:NAME such as suite:hopper or file:{asset}")
    if source not in _SOURCES:
        raise unknown("asset source", source, _SOURCES)
    return _read(_SOURCES[source](name), asset)


def _read(path: Path, asset: str) -> mujoco.MjSpec:
    try:
        return mujoco.MjSpec.from_file(str(path))
    except ValueError as error:
        raise InputError(f"asset {asset!r} is not a model MuJoCo can read: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return "; ".join(line.strip() for line in str(error).splitlines() if line.strip())


def _suite(name: str) -> Path:
    """The dm_control package's XML, found without importing the package (which would start a renderer)."""
    package = importlib.util.find_spec("dm_control")
    if package is None or not package.submodule_search_locations:
        raise InputError(f"asset 'suite:{name}' needs the package dm-control: pip install dm-control")
    folder = Path(package.submodule_search_locations[0]) / "suite"
    path = folder / f"{name}.xml"
    if not path.is_file():
        raise unknown("suite model", name, (p.stem for p in folder.glob("*.xml")))
    return path


def _file(name: str) -> Path:
    path = Path(name).expanduser()
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else Path()
        raise unknown("model file", str(path), (str(p) for p in folder.glob("*.xml")))
    return path


_SOURCES: dict[str, Callable[[str], Path]] = {"suite": _suite, "file": _file}
