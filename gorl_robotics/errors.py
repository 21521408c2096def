"""What is told to a user who gave something that cannot be used: one line, the nearest right name, exit code 2."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable
from types import TracebackType


class InputError(ValueError):
    """Something a user gave cannot be used. The message is one line: what is wrong and what was expected."""


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """Describes a name that does not exist and offers the nearest one that does."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if not near:
        near = difflib.get_close_matches(name.lower(), [n.lower() for n in names], n=1, cutoff=0.5)
        near = [n for n in names if n.lower() in near]
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names) or 'none'}"
    return InputError(f"unknown {kind} {name!r}; {hint}")


def run_main(main: Callable[[], None]) -> None:
    """Runs a command line; an `InputError` or `OSError` becomes one line on standard error and exit code 2."""
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a full disk, a folder that cannot be written to
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def end_quietly_on_interrupt() -> None:
    """From now on Ctrl-C outside `run_main`, while modules are still imported, ends without a traceback too."""
    others = sys.excepthook

    def told(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            others(kind, error, trace)

    sys.excepthook = told
