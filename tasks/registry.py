"""Task names. Every module in this folder is imported on first use; a file dropped into it needs nothing else."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from typing import TypeVar

import tasks
from envs.task import Task
from gorl_robotics.errors import InputError, unknown

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
    """All registered tasks, sorted."""
    _load_all()
    return sorted(_TASKS)


def make(name: str) -> Task:
    """A new task by its registered name; InputError with the nearest name if there is none such."""
    _load_all()
    if name not in _TASKS:
        raise unknown("task", name, _TASKS)
    return _TASKS[name]()


@cache
def _load_all() -> None:
    for module in pkgutil.iter_modules(tasks.__path__):
        if module.name != "__main__":
            importlib.import_module(f"tasks.{module.name}")
