"""An asynchronous writer of HDF5 recordings of rollouts, one file per stage.

Rows are only ever appended. Each append is flushed twice, first the rows, then `complete_steps`, the number
of rows to be trusted: a process killed at any write leaves a file that opens and holds whole rollouts.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from gorl_robotics.errors import InputError
from gorl_robotics.files import atomic
from gorl_robotics.recording import (
    DATASETS,
    FORMAT,
    FORMAT_VERSION,
    ROLLOUT,
    STEPPED,
    Recording,
    Value,
    error_line,
    terminals_before,
)


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
        self._finished = False
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
        if self._finished:
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
        if self._finished:
            self._thread.join()
            return
        self._filled.join()
        self._sync()

    def finish(self) -> None:
        """Takes no more: what was appended goes to disk, and the file is closed, beside what the caller does next."""
        if not self._finished:
            self._finished = True
            self._filled.put(None)

    def close(self) -> None:
        """Finishes and waits for it; a second call does nothing."""
        self.finish()
        self._thread.join()

    def _sync(self) -> None:
        if self.failure is None:
            try:
                os.fsync(self._file.id.get_vfd_handle())
            except (OSError, RuntimeError) as error:
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        if self.failure is None:
            self.failure = f"recording to {self.path} failed: {error_line(error)}"

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
        self._sync()
        try:
            self._file.close()
        except (OSError, RuntimeError) as error:
            self._fail(error)

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
    left = {"step": steps, "terminal": int(terminals_before(file, steps)[-1])}
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
