"""Loads a robot's MJCF from one of the known sources.

| asset                      | what                                                                                |
|----------------------------|-------------------------------------------------------------------------------------|
| `suite:hopper`             | a robot of the DM Control suite, out of the dm-control package                      |
| `gymnasium:ant`            | a robot of gymnasium's MuJoCo environments, out of the gymnasium package            |
| `menagerie:unitree_go1`    | a robot of MuJoCo Menagerie, fetched by the mujoco-menagerie package on first use   |
| `menagerie:unitree_go1/go1`| the same without floor and lights: one of the XML files that Menagerie has of it    |
| `file:path/to/robot.xml`   | any MJCF or URDF file                                                               |
"""

from __future__ import annotations

import importlib
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
    return _shipped("suite", name, "dm_control", "dm-control", "suite")


def _gymnasium(name: str) -> Path:
    return _shipped("gymnasium", name, "gymnasium", "gymnasium", "envs/mujoco/assets")


def _shipped(source: str, name: str, package: str, distribution: str, folder: str) -> Path:
    """An XML file inside a package, found without importing that package (which might start a renderer)."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise InputError(f"asset '{source}:{name}' needs the package {distribution}: pip install {distribution}")
    home = Path(found.submodule_search_locations[0]) / folder
    path = home / f"{name}.xml"
    if not path.is_file():
        raise unknown(f"{source} model", name, (p.stem for p in home.glob("*.xml")))
    return path


def _menagerie(name: str) -> Path:
    """A robot's scene, or that XML file of it which is named behind a slash; the package downloads and keeps it."""
    try:
        menagerie = importlib.import_module("mujoco_menagerie")
    except ModuleNotFoundError as error:
        raise InputError(
            f"asset 'menagerie:{name}' needs the package mujoco-menagerie: pip install mujoco-menagerie"
        ) from error
    robot, _, entry = name.partition("/")
    if robot not in menagerie.names():
        raise unknown("menagerie model", robot, menagerie.names())
    known = menagerie.get(robot)
    if entry and entry not in known.entry_names:
        raise unknown(f"XML file of menagerie model {robot!r}:", entry, known.entry_names)
    try:
        return Path(known.xml(entry or None))
    except (menagerie.MenagerieError, OSError) as error:
        raise InputError(
            f"asset 'menagerie:{name}' could not be fetched: {_one_line(error)}; where there is a network run "
            f"`mujoco-menagerie prefetch {robot}` and copy {menagerie.Cache().dir} here, or set MENAGERIE_ROOT to a "
            "checkout of mujoco_menagerie"
        ) from error


def _file(name: str) -> Path:
    path = Path(name).expanduser()
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else Path()
        raise unknown("model file", str(path), (str(p) for p in folder.glob("*.xml")))
    return path


_SOURCES: dict[str, Callable[[str], Path]] = {
    "suite": _suite,
    "gymnasium": _gymnasium,
    "menagerie": _menagerie,
    "file": _file,
}
