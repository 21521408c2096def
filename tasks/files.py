"""Tasks that are not in this folder: FILE.py:CLASS, and entry points of installed packages."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TypeVar
from zlib import crc32

from envs.task import Task
from envs.user_code import deepest, defined_at, shown, summary
from gorl_robotics.errors import InputError, unknown

GROUP = "gorl_robotics.tasks"
T = TypeVar("T")


def is_file(name: str) -> bool:
    """Whether a task's name is meant as FILE.py:CLASS."""
    return ":" in name or name.endswith(".py")


def absolute(name: str) -> str:
    """FILE.py:CLASS with the file's full path, so that it means the same from any folder; other names as they are.

    Raises:
        InputError: there is no such file, or no class is named.
    """
    if not is_file(name):
        return name
    path, kind = _split(name)
    return f"{_existing(path)}:{kind}"


def from_file(name: str) -> type[Task]:
    """The class that FILE.py:CLASS names; it needs no `register`.

    A file that a run folder remembers by its full path but that is there no more, because the project was moved to
    another folder or machine, is looked for by its name in the current folder.

    Raises:
        InputError: the file does not exist or raises when imported, or holds no such task; with the nearest name.
    """
    path, kind = _split(name)
    moved = Path(path.name)
    file = _existing(moved if path.is_absolute() and not path.exists() and moved.exists() else path)
    module = _imported(file)
    if kind not in vars(module):
        raise InputError(f"{shown(file)}: {unknown('task class', kind, _classes(module))}")
    return named(vars(module)[kind], kind, f"{shown(file)}:{kind}")


def installed() -> dict[str, EntryPoint]:
    """Tasks that installed packages offer by an entry point in the group `gorl_robotics.tasks`, unloaded."""
    return {point.name: point for point in entry_points(group=GROUP)}


def from_entry_point(point: EntryPoint) -> type[Task]:
    """The class that an entry point names.

    Raises:
        InputError: it cannot be imported or is no task; the line names the package and, where there is one, the place.
    """
    package = point.dist.name if point.dist else "unknown"
    origin = f"task {point.name!r} of the package {package} ({point.value})"
    try:
        found = point.load()
    except Exception as error:
        raise InputError(f"{_place(error, _package_files(point.module))}{origin}: {summary(error)}") from error
    return named(found, point.name, origin)


def named(found: object, name: str, origin: str) -> type[Task]:
    """`found`, if it is a whole task, under `name` unless it has a name of its own.

    Raises:
        InputError: it is no subclass of Task, or lacks one of the methods that a task must have.
    """
    if not (inspect.isclass(found) and issubclass(found, Task)):
        raise InputError(f"{origin} is not a subclass of envs.task.Task")
    if missing := sorted(found.__abstractmethods__):
        raise InputError(f"{defined_at(found, '')}: {found.__name__} lacks {', '.join(missing)}; see envs.task.Task")
    if "name" not in vars(found):
        found.name = name
    return found


def _split(name: str) -> tuple[Path, str]:
    file, _, kind = name.rpartition(":") if ":" in name else (name, "", "")
    path = Path(file).expanduser()
    if not kind:
        classes = ", ".join(f"{file}:{found}" for found in _classes(_imported(_existing(path))))
        raise InputError(
            f"task {name!r} names no class; expected FILE.py:CLASS" + (f" such as {classes}" * bool(classes))
        )
    return path, kind


def _existing(path: Path) -> Path:
    if path.suffix != ".py" or not path.is_file():
        folder = path.parent if path.parent.is_dir() else Path()
        raise unknown("task file", str(path), (str(found) for found in folder.glob("*.py")))
    return path.resolve()


@cache
def _imported(file: Path) -> ModuleType:
    """The module, imported once: two imports would make two classes of the same name."""
    if file.parent == Path(__file__).resolve().parent:  # one of the tasks that are there already
        return _run(file, lambda: importlib.import_module(f"tasks.{file.stem}"))
    name = f"tasks_of_a_user.{file.stem}_{crc32(str(file).encode()):08x}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and pickle look for it
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))  # behind everything else: its neighbours can be imported and shadow nothing
    loader = spec.loader
    try:
        _run(file, lambda: loader.exec_module(module))
    except InputError:
        del sys.modules[name]
        raise
    return module


def _run(file: Path, imported: Callable[[], T]) -> T:
    """What `imported` returns; its errors in one line with their place in the file."""
    try:
        return imported()
    except Exception as error:
        raise InputError(f"{_place(error, [file])}{summary(error)}") from error


def _classes(module: ModuleType) -> list[str]:
    """The tasks that a module defines itself."""
    return [
        name
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, Task) and value.__module__ == module.__name__
    ]


def _place(error: Exception, files: Iterable[Path]) -> str:
    """`FILE:LINE: ` of the deepest frame in one of the files."""
    for file in files:
        if line := deepest(error, file):
            return f"{shown(file)}:{line}: "
    return ""


def _package_files(module: str) -> list[Path]:
    """A module's own file first, then the other files of its package, found without importing them."""
    spec = importlib.util.find_spec(module.partition(".")[0])
    if spec is None:
        return []
    if not spec.submodule_search_locations:
        return [Path(spec.origin)] if spec.origin else []
    files = [file for folder in spec.submodule_search_locations for file in Path(folder).rglob("*.py")]
    own = Path(*module.split(".")[1:]).with_suffix(".py")
    return sorted(files, key=lambda file: not str(file).endswith(str(own)))
