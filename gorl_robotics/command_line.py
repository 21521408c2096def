"""Command lines of options, all but train.py's: what cannot be used is told in one line, as everywhere else."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from gorl_robotics.errors import InputError, unknown


class Parser(argparse.ArgumentParser):
    """Raises InputError where `argparse` would print its usage, and offers the nearest option for an unknown one."""

    def parse_known_args(  # type: ignore[override]  # which has four overloads, by the type of the namespace
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """As ever; what subcommands are given is left to them, who call this too."""
        given = sys.argv[1:] if args is None else list(args)
        if self._subparsers is None:
            self._check(given)
        return super().parse_known_args(given, namespace)

    def error(self, message: str) -> NoReturn:
        """InputError."""
        raise InputError(f"{message}; see {self.prog} --help")

    def _check(self, given: Sequence[str]) -> None:
        """Before anything else: who mistypes an option should not be told that the right one is missing."""
        known = [option[2:] for option in self._option_string_actions if option.startswith("--")]
        for text in given:
            if text == "--":
                return
            name = text[2:].partition("=")[0]
            if text.startswith("--") and not any(self._means(name, option) for option in known):
                raise unknown("option", name, known)  # without the dashes, by which all are alike

    def _means(self, name: str, option: str) -> bool:
        return option.startswith(name) if self.allow_abbrev else option == name
