"""HDF5 recordings of rollouts, one file per stage: an asynchronous writer, and a reader that checks.

Rows are only ever appended. Each append is flushed twice, first the rows, then `complete_steps`, the number
of rows to be trusted: a process killed at any write leaves a file that opens and holds whole rollouts.
"""

from __future__ import annotations

import math
import os
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from gorl_robotics.errors import InputError, unknown
from gorl_robotics.files import atomic

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


def _line(error: BaseException) -> str:
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
        raise InputError(f"{path} is not a readable HDF5 file, or still being written: {_line(error)}") from error


def _terminals_before(file: Any, steps: int) -> np.ndarray:
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
                before = _terminals_before(self._file, stop)
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


@dataclass
class _Buffers:
    """Host memory for one rollout, pinned where it comes from a GPU: only then a copy waits for nothing."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    copied: torch.cuda.Event | None = None

    def fill(self, rollout: Mapping[str, Tensor]) -> None:
        on_gpu = rollout["reward"].is_cuda
        for name in ROLLOUT:
            source = rollout[name]
            if name not in self.tensors or self.tensors[name].shape != source.shape:
                kind = torch.bool if DATASETS[name].dtype is np.bool_ else torch.float32
                self.tensors[name] = torch.empty(source.shape, dtype=kind, pin_memory=on_gpu)
            self.tensors[name].copy_(source, non_blocking=on_gpu)
        if on_gpu:
            # Waiting for a blocking event the writer thread sleeps; for any other it would keep a core busy.
            self.copied = torch.cuda.Event(blocking=True)
            self.copied.record(torch.cuda.current_stream(rollout["reward"].device))

    def arrays(self) -> dict[str, np.ndarray]:
        """Waits for the copies and returns the rollout."""
        if self.copied is not None:
            self.copied.synchronize()
        return {name: tensor.numpy() for name, tensor in self.tensors.items()}


class RolloutWriter:
    """Appends rollouts to a recording on a thread of its own, while the device goes on.

    A failing disk must not end a training run: only the constructor raises because of one. The first failure
    is kept in `failure`, one line for the caller to report, and what is appended after it is dropped.

    Args:
        path: the file. It must not exist, unless `resume_steps` says how much of it to keep.
        num_worlds: number of worlds N.
        observation_size: length of an observation.
        action_size: length of an action and of a latent.
        provenance: attributes of a new file: task, seed, commit, stage, names of the observation terms, …
        resume_steps: rows to keep of an existing recording; the later ones are cut off.

    Raises:
        InputError: the file exists already; or, to be resumed, is missing, too short or of other sizes.
        OSError: the file cannot be created.
    """

    def __init__(
        self,
        path: Path,
        *,
        num_worlds: int,
        observation_size: int,
        action_size: int,
        provenance: Mapping[str, Value],
        resume_steps: int = 0,
    ) -> None:
        self.path = path
        self.failure: str | None = None
        self._sizes = {"world": num_worlds, "observation": observation_size, "action": action_size}
        if resume_steps > 0:
            _check_resumable(path, self._sizes, resume_steps)
        else:
            _create(path, self._sizes, provenance)
        self._file = _open(path)
        self._written = _cut(self._file, resume_steps)
        self._steps = resume_steps
        self._free: queue.Queue[_Buffers] = queue.Queue()
        self._filled: queue.Queue[_Buffers | None] = queue.Queue()
        for _ in range(2):
            self._free.put(_Buffers())
        self._thread = threading.Thread(target=self._run, name=f"writer of {path.name}", daemon=True)
        self._thread.start()

    @property
    def steps(self) -> int:
        """Returns the rows appended so far, those still on their way included."""
        return self._steps

    def append(self, rollout: Mapping[str, Tensor]) -> None:
        """Copies a rollout and has it written; waits only while both buffers are still being written.

        The tensors may be overwritten at once, on a GPU by work on the same stream.

        Args:
            rollout: `observation` (T, N, observation), `latent` and `action` (T, N, action), `reward`,
                `terminated` and `truncated` (T, N), and `terminal_observation` (T, N, observation), of which
                the rows of ended episodes are kept.

        Raises:
            ValueError: a tensor has another shape, or the writer is closed.
        """
        if not self._thread.is_alive():
            raise ValueError(f"the writer of {self.path} is closed")
        steps = len(rollout["reward"])
        for name in ROLLOUT:
            last = [self._sizes[axis] for axis in DATASETS[name].axes[1:] if axis != "world"]
            if rollout[name].shape != (steps, self._sizes["world"], *last):
                raise ValueError(f"{name}: {tuple(rollout[name].shape)}, expected (T, {self._sizes}, {last})")
        if self.failure is not None:
            return
        buffers = self._free.get()
        try:
            buffers.fill(rollout)
        except RuntimeError as error:  # the host has no more memory to pin
            self._fail(error)
            self._free.put(buffers)
            return
        self._steps += steps
        self._filled.put(buffers)

    def flush(self) -> None:
        """Waits until everything appended is on disk."""
        self._filled.join()
        if self.failure is None and self._thread.is_alive():
            try:
                os.fsync(self._file.id.get_vfd_handle())
            except (OSError, RuntimeError) as error:
                self._fail(error)

    def close(self) -> None:
        """Flushes, ends the thread and closes the file; a second call does nothing."""
        if not self._thread.is_alive():
            return
        self.flush()
        self._filled.put(None)
        self._thread.join()
        try:
            self._file.close()
        except (OSError, RuntimeError) as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if self.failure is None:
            self.failure = f"recording to {self.path} failed: {_line(error)}"

    def _run(self) -> None:
        while (buffers := self._filled.get()) is not None:
            try:
                if self.failure is None:
                    self._write(buffers.arrays())
            except Exception as error:  # whatever it is, training goes on without the recording
                self._fail(error)
                _detach(self._file)
            finally:
                self._free.put(buffers)
                self._filled.task_done()

    def _write(self, rollout: dict[str, np.ndarray]) -> None:
        step, world = np.nonzero(rollout["terminated"] | rollout["truncated"])
        rows = {name: rollout[name] for name in STEPPED} | {
            "terminal_observation": rollout["terminal_observation"][step, world],
            "terminal_step": step + self._written["step"],
            "terminal_world": world,
        }
        for name, values in rows.items():
            start = self._written[DATASETS[name].axes[0]]
            self._file[name].resize(start + len(values), axis=0)
            self._file[name][start:] = values
        self._file.flush()
        self._written["step"] += len(rollout["reward"])
        self._written["terminal"] += len(step)
        self._file.attrs.modify("complete_steps", self._written["step"])
        self._file.flush()


def _open(path: Path) -> Any:
    """Opens a file to write to it.

    The bounds choose HDF5 1.10's index of chunks, which grows without moving what it holds; the older B-tree
    lost the whole file to a kill while it split a node. Without a chunk cache rows go to the file at once.
    """
    return h5py.File(path, "r+", libver=("v110", "v110"), rdcc_nbytes=0)


def _create(path: Path, sizes: Mapping[str, int], provenance: Mapping[str, Value]) -> None:
    """Makes an empty recording, which is whole from the moment it stands at `path`."""
    if path.exists():
        raise InputError(f"{path} exists already and is not overwritten: resume it or move it away")
    own = {"format": FORMAT, "format_version": FORMAT_VERSION, "complete_steps": 0}
    with atomic(path) as temporary:
        # The file itself is of the oldest kind: a newer one is marked while open, and refused after a kill.
        h5py.File(temporary, "w", libver="earliest").close()
        with _open(temporary) as file:
            file.attrs.update({**provenance, **own})
            for dataset in DATASETS.values():
                dataset.create(file, sizes)


def _check_resumable(path: Path, sizes: Mapping[str, int], steps: int) -> None:
    with Recording(path) as recording:
        if recording.sizes != sizes:
            raise InputError(f"{path} was recorded with sizes {recording.sizes}, this run has {dict(sizes)}")
        if recording.steps < steps:
            raise InputError(f"{path} has {recording.steps} complete steps, the checkpoint asks for {steps}")


def _cut(file: Any, steps: int) -> dict[str, int]:
    """Cuts a recording to its first rows; returns the length left of each axis that grows."""
    left = {"step": steps, "terminal": int(_terminals_before(file, steps)[-1])}
    # The promise goes first: a kill half way then leaves more rows than are promised, never fewer.
    file.attrs.modify("complete_steps", steps)
    file.flush()
    for name, dataset in DATASETS.items():
        file[name].resize(left[dataset.axes[0]], axis=0)
    file.flush()
    return left


def _detach(file: Any) -> None:
    """Sends what HDF5 still has to write nowhere, so that the file stays as a kill would leave it now.

    Closed after a failed write, it would record an end that was never reached, and would not open again.
    """
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, file.id.get_vfd_handle())
        os.close(nowhere)
