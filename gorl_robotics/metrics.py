"""The numbers of a run: a row per iteration in `metrics.csv` and the same as TensorBoard events beside it."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from gorl_robotics.errors import InputError
from gorl_robotics.files import atomic

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

STEPS = "steps"
COUNTERS = frozenset({STEPS, "iteration"})
"""Columns that say where a row stands: written to the csv, not drawn as curves."""


class MetricsLog:
    """Writes `folder/metrics.csv` and TensorBoard events.

    The first row fixes the columns and their order. It must have the column `steps`, the curves' x axis.

    Args:
        folder: the run folder; it exists.
        resume_rows: None starts a new log; a number keeps that many rows of the existing one and appends.
        columns: of rows to come; where the log to resume is of an older version and lacks some, they are added to it.

    Raises:
        InputError: a new log would overwrite an old one, or the log to resume is missing or too short.
    """

    def __init__(self, folder: Path, resume_rows: int | None = None, columns: Sequence[str] = ()) -> None:
        path = folder / "metrics.csv"
        self._columns: list[str] = []
        self._rows = 0
        purge_step = None
        if resume_rows is None:
            self._file = _create(path)
        else:
            self._columns, kept = _cut(path, resume_rows, columns)
            self._rows = resume_rows
            purge_step = _last_step(self._columns, kept) + 1
            self._file = path.open("a", encoding="utf-8", newline="")
        self._csv = csv.writer(self._file, lineterminator="\n")
        self._events = _events(folder, purge_step)

    @property
    def rows(self) -> int:
        """Rows in the csv, those kept by a resume included; the header is not one."""
        return self._rows

    def write(self, row: Mapping[str, float | int | str]) -> None:
        """Appends one row; a column it lacks stays empty.

        Raises:
            ValueError: the row has no `steps`, or a column that the first row did not have.
        """
        if STEPS not in row:
            raise ValueError(f"a row of metrics needs the column {STEPS!r}; it has {', '.join(row) or 'none'}")
        if not self._columns:
            self._columns = list(row)
            self._csv.writerow(self._columns)
        new = [name for name in row if name not in self._columns]
        if new:
            raise ValueError(f"the first row of metrics had no column {', '.join(map(repr, new))}")
        self._csv.writerow([_cell(row[name]) if name in row else "" for name in self._columns])
        self._file.flush()
        self._rows += 1
        self._draw(row)

    def close(self) -> None:
        """Closes both files; further rows are refused."""
        self._file.close()
        self._events.close()

    def _draw(self, row: Mapping[str, float | int | str]) -> None:
        steps = int(row[STEPS])
        for name, value in row.items():
            if name not in COUNTERS and not isinstance(value, str) and math.isfinite(value):
                self._events.add_scalar(name, float(value), steps)


def _cell(value: float | int | str) -> str:
    # repr is the shortest text that reads back as the same float: equal runs have equal files.
    return str(value) if isinstance(value, int | str) else repr(float(value))


def _create(path: Path) -> TextIO:
    try:
        return path.open("x", encoding="utf-8", newline="")
    except FileExistsError:
        raise InputError(f"{path} exists already; resume that run or choose another run folder") from None


def _cut(path: Path, rows: int, columns: Sequence[str]) -> tuple[list[str], Sequence[list[str]]]:
    """Cuts the csv to its header, with the `columns` that it lacks, and first `rows` rows, and returns these."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path} is missing; a run is resumed with its metrics beside it") from None
    # A killed run may leave half a line behind: only what ends in a newline was written.
    whole = text[: text.rfind("\n") + 1]
    header, *found = list(csv.reader(io.StringIO(whole, newline=""))) or [[]]
    if header and STEPS not in header:
        raise InputError(f"{path} has no column {STEPS!r}; it was not written by this trainer")
    if len(found) < rows:
        raise InputError(f"{path} has {len(found)} rows, the checkpoint was saved after {rows}")
    new = [name for name in columns if name not in header] if header else []
    header, kept = header + new, [row + [""] * len(new) for row in found[:rows]]
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *kept] if header else [])
    return header, kept


def _last_step(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    return int(float(rows[-1][columns.index(STEPS)])) if rows else -1


def _events(folder: Path, purge_step: int | None) -> SummaryWriter:
    # Imported here: it takes a second, which tools that only read a run need not spend.
    from torch.utils.tensorboard import SummaryWriter

    # Curves are watched while training; the default would show them two minutes late.
    return SummaryWriter(str(folder), purge_step=purge_step, flush_secs=10)
