"""What an HDF5 recording of rollouts consists of, and a reader that checks it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gorl_robotics.errors import InputError, unknown

FORMAT = "gorl-robotics rollouts"
FORMAT_VERSION = 1
CHUNK_BYTES = 1 << 20
STEPS_PER_CHUNK = 64  # bounds the padding of a short recording
TERMINALS_PER_CHUNK = 4096

Value = str | int | float


@dataclass(frozen=True)
class Dataset:
    """One dataset of a recording: its axes, of which the first one grows, type, unit and meaning."""

    name: str
    axes: tuple[str, ...]
    dtype: type[np.generic]
    unit: str
    description: str

    def create(self, file: Any, sizes: Mapping[str, int]) -> None:
        """Adds the dataset, still empty. A chunk is some whole rows, or some worlds of one long row."""
        row = tuple(sizes[axis] for axis in self.axes[1:])
        row_bytes = math.prod(row) * np.dtype(self.dtype).itemsize
        if row and row_bytes > CHUNK_BYTES:
            chunk = (1, max(1, CHUNK_BYTES * row[0] // row_bytes), *row[1:])
        else:
            most = STEPS_PER_CHUNK if self.axes[0] == "step" else TERMINALS_PER_CHUNK
            chunk = (min(most, CHUNK_BYTES // row_bytes), *row)
        made = file.create_dataset(self.name, (0, *row), self.dtype, maxshape=(None, *row), chunks=chunk)
        made.attrs.update(axes=", ".join(self.axes), unit=self.unit, description=self.description)


_WORLD = ("step", "world")
_STEPPED = (
    Dataset("observation", (*_WORLD, "observation"), np.float32, "as the task states", "what the policy saw"),
    Dataset("latent", (*_WORLD, "action"), np.float32, "1", "what decoding began from: the latent, or noise"),
    Dataset("action", (*_WORLD, "action"), np.float32, "1", "the decoder's output, before tanh"),
    Dataset("reward", _WORLD, np.float32, "1 per control step", "the reward of the step"),
    Dataset("terminated", _WORLD, np.bool_, "boolean", "the episode ended in a terminal state"),
    Dataset("truncated", _WORLD, np.bool_, "boolean", "the episode was cut off, as by its time limit"),
)
_ENDS = ("terminal", "observation")
_TERMINAL = (
    Dataset("terminal_observation", _ENDS, np.float32, "as the task states", "last observation of an episode"),
    Dataset("terminal_step", _ENDS[:1], np.int64, "row on the step axis", "when that episode ended, ascending"),
    Dataset("terminal_world", _ENDS[:1], np.int32, "place on the world axis", "where that episode ended"),
)
STEPPED = {dataset.name: dataset for dataset in _STEPPED}
TERMINAL = {dataset.name: dataset for dataset in _TERMINAL}
DATASETS = STEPPED | TERMINAL
ROLLOUT = (*STEPPED, "terminal_observation")  # what the writer is given, each (T, N, ...)


def error_line(error: BaseException) -> str:
    """Says an error in one line: h5py's own texts may span several, with times and addresses in them."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns what h5py raises on a damaged file into one line."""
    try:
        yield
    except (OSError, RuntimeError, KeyError) as error:
        raise InputError(f"{path} is not a readable HDF5 file, or still being written: {error_line(error)}") from error


def terminals_before(file: Any, steps: int) -> np.ndarray:
    """Counts the episode ends before each step, (steps + 1,): where its `terminal_*` rows begin.

    Counted from complete rows, because a kill may leave `terminal_step` longer than what was written of it.
    """
    ended = file["terminated"][:steps] | file["truncated"][:steps]
    return np.concatenate(([0], np.cumsum(ended.sum(axis=1))))


class Recording:
    """A recording opened for reading; a context manager. Rows not known to be complete are not shown.

    Attributes:
        steps: number of complete rows S on the step axis.
        sizes: length of the axes `world`, `observation` and `action`.
        provenance: what the writer was told about the recording's origin.
    """

    steps: int
    sizes: dict[str, int]
    provenance: dict[str, Value]

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise InputError(f"there is no recording at {path}")
        self.path = path
        with _readable(path):
            self._file = h5py.File(path, "r")
        try:
            with _readable(path):
                self._check()
        except InputError:
            self.close()
            raise

    def _check(self) -> None:
        attributes = self._file.attrs.items()
        values = {name: v.item() if isinstance(v, np.generic) else v for name, v in attributes}
        if values.pop("format", None) != FORMAT:
            raise InputError(f"{self.path} is no recording: its HDF5 attribute `format` is not {FORMAT!r}")
        if (version := values.pop("format_version", None)) != FORMAT_VERSION:
            raise InputError(f"{self.path} has format version {version}, this program reads version {FORMAT_VERSION}")
        missing = [name for name in DATASETS if name not in self._file]
        if missing or "complete_steps" not in values:
            raise InputError(f"{self.path} is incomplete: it lacks {', '.join(missing) or 'complete_steps'}")
        self.steps = values.pop("complete_steps")
        self.provenance = values
        self.sizes = {}
        for name, dataset in DATASETS.items():
            shape = self._file[name].shape
            sizes = dict(zip(dataset.axes[1:], shape[1:], strict=False))
            short = name in STEPPED and shape[0] < self.steps
            if len(shape) != len(dataset.axes) or short or {**sizes, **self.sizes} != {**self.sizes, **sizes}:
                raise InputError(f"{self.path}: {name} has shape {shape}, which does not fit the others")
            self.sizes |= sizes

    @property
    def num_worlds(self) -> int:
        """Returns the number of worlds N."""
        return self.sizes["world"]

    def read(self, names: Sequence[str], start: int = 0, stop: int | None = None) -> dict[str, np.ndarray]:
        """Reads the rows from start to before stop (by default all) of the step axis.

        Returns:
            The datasets named: those along `step` as (stop - start, N, ...), the `terminal_*` ones as
            (M, ...) for the M episode ends within these steps; `terminal_step` counts from the file's start.

        Raises:
            InputError: a name does not exist, or the file is damaged.
            ValueError: the rows are not in the recording.
        """
        stop = self.steps if stop is None else stop
        if not 0 <= start <= stop <= self.steps:
            raise ValueError(f"rows {start} to {stop} of {self.path} asked for, which has {self.steps}")
        for name in names:
            if name not in DATASETS:
                raise unknown("dataset", name, DATASETS)
        with _readable(self.path):
            rows = {"step": slice(start, stop)}
            if not TERMINAL.keys().isdisjoint(names):
                before = terminals_before(self._file, stop)
                rows["terminal"] = slice(before[start], before[stop])
            return {name: self._file[name][rows[DATASETS[name].axes[0]]] for name in names}

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_rollouts(path: Path) -> Recording:
    """Opens a recording.

    Raises:
        InputError: there is no file, or it is damaged, no recording, of another version or incomplete.
    """
    return Recording(path)
