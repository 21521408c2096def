"""Task names. Every module in this folder but commands is imported on first use; a file dropped in is enough."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar

import tasks
from envs.task import Task
from envs.user_code import deepest, defined_at, raised_at, shown, summary
from gorl_robotics.errors import InputError, unknown
from tasks import files

_COMMANDS = {"__main__", "check", "new"}  # of `python -m tasks`, with more imports than a training's start should need
_TASKS: dict[str, type[Task]] = {}
T = TypeVar("T", bound=type[Task])


def register(name: str) -> Callable[[T], T]:
    """Class decorator that makes a task known under `name`."""

    def add(task: T) -> T:
        if name in _TASKS and _TASKS[name].__module__ != task.__module__:
            raise InputError(f"task {name!r} is defined twice: in {_TASKS[name].__module__} and {task.__module__}")
        task.name = name
        _TASKS[name] = task
        return task

    return add


def names() -> list[str]:
    """All registered tasks and those that installed packages offer, sorted."""
    _load_all()
    return sorted({*_TASKS, *files.installed()})


def make(name: str) -> Task:
    """A new task: by its registered name, the name of an installed package's entry point, or as FILE.py:CLASS.

    A file's path is absolute or relative to the current folder.

    Raises:
        InputError: there is none such (the line offers the nearest name), or its code cannot be used.
    """
    _load_all()
    if files.is_file(name):
        return _new(files.from_file(name))
    if name in _TASKS:
        return _new(files.named(_TASKS[name], name, f"task {name!r}"))
    installed = files.installed()
    if name not in installed:
        raise unknown("task", name, [*_TASKS, *installed])
    return _new(files.from_entry_point(installed[name]))


def _new(kind: type[Task]) -> Task:
    try:
        return kind()
    except Exception as error:
        where = raised_at(kind, error) or defined_at(kind, "__init__")
        raise InputError(f"{where}: {kind.__name__}() cannot be made: {summary(error)}") from error


@cache
def _load_all() -> None:
    for module in pkgutil.iter_modules(tasks.__path__):
        if module.name not in _COMMANDS:
            _load(module.name)


def _load(name: str) -> None:
    file = Path(tasks.__path__[0]) / f"{name}.py"
    try:
        importlib.import_module(f"tasks.{name}")
    except InputError:
        raise
    except Exception as error:
        line = deepest(error, file)
        raise InputError(
            f"{shown(file)}:{line}: {summary(error)}" if line else f"{shown(file)}: {summary(error)}"
        ) from error
