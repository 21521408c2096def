"""Mistakes in a task's own code, told in one line that begins with the user's file and line."""

from __future__ import annotations

import inspect
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gorl_robotics.errors import InputError

# Classes that stand behind every task and are nobody's mistake.
_COMMON = {"envs.task", "abc", "builtins", "typing"}


def shown(path: str | Path) -> str:
    """A path as a user would write it: relative to the current folder if it is in it."""
    full = Path(path).resolve()
    return str(full.relative_to(Path.cwd())) if full.is_relative_to(Path.cwd()) else str(full)


def summary(error: BaseException) -> str:
    """What an exception says, in one line: our own message as it is, any other with its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, InputError):
        return "; ".join(lines)
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def deepest(error: BaseException, file: str | Path) -> int | None:
    """The line of the deepest frame of `error` in `file`, or None if it did not pass through it."""
    if isinstance(error, SyntaxError) and error.filename and _same(error.filename, file):
        return error.lineno
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if _same(frame.filename, file)]
    return lines[-1] if lines else None


def raised_at(task: type, error: BaseException) -> str | None:
    """FILE:LINE of the deepest frame in the task's own file, or else in one of those it inherits from."""
    for file in _files(task):
        if line := deepest(error, file):
            return f"{shown(file)}:{line}"
    return None


def defined_at(task: type, method: str) -> str:
    """FILE:LINE where a task's method begins; of the class where there is none to be found."""
    code = getattr(inspect.unwrap(getattr(task, method, None)), "__code__", None)  # type: ignore[arg-type]
    if code is not None:
        return f"{shown(code.co_filename)}:{code.co_firstlineno}"
    try:
        return f"{shown(inspect.getfile(task))}:{inspect.getsourcelines(task)[1]}"
    except (OSError, TypeError):
        return task.__module__


def fault(task: object, method: str, message: str) -> InputError:
    """What a method of a task does wrong, with the place where it is written."""
    return InputError(f"{defined_at(type(task), method)}: {_name(task)}.{method}: {message}")


@contextmanager
def calling(task: object, method: str) -> Iterator[None]:
    """Runs a method of a task; whatever it raises becomes one line with the place in the user's file."""
    try:
        yield
    except Exception as error:
        where = raised_at(type(task), error) or defined_at(type(task), method)
        raise InputError(f"{where}: {_name(task)}.{method}: {summary(error)}") from error


@contextmanager
def blaming(task: object) -> Iterator[None]:
    """Runs what calls a task's methods; what is raised in the task's own file becomes one line, the rest passes."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        where = raised_at(type(task), error)
        if where is None:
            raise
        raise InputError(f"{where}: {_name(task)}: {summary(error)}") from error


def _name(task: object) -> str:
    return getattr(task, "name", type(task).__name__)


def _files(task: type) -> list[str]:
    found = []
    for base in task.__mro__:
        if base.__module__ not in _COMMON:
            try:
                found.append(inspect.getfile(base))
            except (OSError, TypeError):
                continue
    return list(dict.fromkeys(found))


def _same(one: str | Path, other: str | Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)
