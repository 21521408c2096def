"""What one setting is: a field of a dataclass with its type, range and line of help, whose value may come as text.

A setting in a section of a section has the full name `section.name`. Which settings there are says `config`.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Any, get_type_hints

import yaml

from gorl_robotics.errors import InputError


def setting(default: Any, text: str, *, low: float | None = None, high: float | None = None) -> Any:
    """A field with its line of documentation and its range, both ends included."""
    metadata = {"help": text, "low": low, "high": high}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def described(section: type) -> Iterator[tuple[str, Any, str]]:
    """Full name, default and line of documentation of every setting in a dataclass and its sections."""
    for name, item, _ in _settings(section):
        default = item.default_factory() if callable(item.default_factory) else item.default
        yield name, default, item.metadata["help"]


def typed(section: type, name: str, value: Any) -> Any:
    """`value`, which may be text from a command line, in the type of the setting called `name`.

    Raises:
        InputError: there is no such setting, the line names the nearest; or it is of another type.
    """
    kinds = {full: kind for full, _, kind in _settings(section)}
    if name not in kinds:
        near = difflib.get_close_matches(name, kinds, n=1, cutoff=0.5) or [
            full for full in kinds if full.rpartition(".")[2] == name
        ]
        raise InputError(f"unknown setting {name!r}" + (f"; did you mean {near[0]!r}?" if near else "; see --help"))
    kind = kinds[name]
    try:
        return _convert(value, kind)
    except (ValueError, TypeError, KeyError, OverflowError, yaml.YAMLError) as error:
        word = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(kind, "a list [a, b]")
        raise InputError(f"{name}={value!r}: expected {word}") from error


def check_ranges(section: type, values: Mapping[str, Any]) -> None:
    """Raises InputError if a number among `values`, which has every setting by its full name, is out of its range."""
    for name, item, _ in _settings(section):
        value, low, high = values[name], item.metadata["low"], item.metadata["high"]
        if isinstance(value, float | int) and not isinstance(value, bool):
            below = low is not None and not value >= low  # also true of NaN
            above = high is not None and not value <= high
            if below or above:
                ends = f"at least {low}" if high is None else f"from {low} to {high}"
                raise InputError(f"{name}={value}: expected {ends}")


def read_yaml(text: str, source: str) -> dict[str, Any]:
    """The values in a YAML text by their settings' full names; InputError, naming its `source`, if it is none."""
    try:
        loaded = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{source} is not YAML: {' '.join(str(error).split())}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise InputError(f"{source} holds no settings; expected lines such as `num_envs: 4096`")
    return flat(loaded)


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values by their full names: {"ppo": {"clip": 0.2}} gives {"ppo.clip": 0.2}."""
    return dict(_flatten(tree))


def as_text(value: Any) -> str:
    """A value as it is written on a command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).replace(" ", "") if isinstance(value, list) else str(value)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _settings(section: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """Full name, field and type of every setting."""
    kinds = get_type_hints(section)
    for item in dataclasses.fields(section):
        kind = kinds[item.name]
        if dataclasses.is_dataclass(kind):
            yield from _settings(kind, f"{prefix}{item.name}.")  # type: ignore[arg-type]
        else:
            yield f"{prefix}{item.name}", item, kind


def _convert(value: Any, kind: Any) -> Any:
    if kind is bool:
        return value if isinstance(value, bool) else {"true": True, "false": False}[str(value).lower()]
    if kind is str:
        if not isinstance(value, str):
            raise ValueError(value)
        return value
    if kind is int:
        return _whole(value)
    if kind is float:
        if isinstance(value, bool):
            raise ValueError(value)
        return float(value)
    items = yaml.safe_load(value) if isinstance(value, str) else value
    element = kind.__args__[0]
    return [_convert(item, element) for item in list(items)]


def _whole(value: Any) -> int:
    """Whole numbers may be written 1e8 or 100_000_000."""
    if isinstance(value, bool):
        raise ValueError(value)
    if isinstance(value, str):
        try:
            return int(value, 10)
        except ValueError:
            value = float(value)
    if not float(value).is_integer():
        raise ValueError(value)
    return int(value)
