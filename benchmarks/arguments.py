"""Settings of train.py among a benchmark's own arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gorl_robotics.config import parse_arguments
from gorl_robotics.errors import InputError


def apart(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The SETTING=VALUE arguments, wherever they stand, and all others: options of many values take none of them."""
    settings = [text for text in arguments if "=" in text and not text.startswith("-")]
    return settings, [text for text in arguments if text not in settings]


def checked(settings: Sequence[str], own: Sequence[str]) -> dict[str, Any]:
    """The settings by name, a YAML file named by `config=` included.

    Raises:
        InputError: one is unknown or of a wrong type, or is one of the benchmark's `own`.
    """
    given = parse_arguments(settings)
    given.pop("config", None)
    for name in given:
        if name in own:
            raise InputError(f"{name}={given[name]}: the benchmark decides that itself; leave it out")
    return given


def as_arguments(given: dict[str, Any]) -> list[str]:
    """Settings as train.py takes them."""
    return [f"{name}={_text(value)}" for name, value in given.items()]


def whole(text: str) -> int:
    """A whole number, which may be written 1e8."""
    value = float(text)
    if not value.is_integer() or value < 0:
        raise ValueError(text)
    return int(value)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).replace(" ", "") if isinstance(value, list) else str(value)
