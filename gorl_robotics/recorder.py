"""What a refit will be fitted to: the last samples of a stage, on disk as HDF5 or, without storage, in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gorl_robotics import distributed, run_folder
from gorl_robotics.config import Config
from gorl_robotics.display import Display
from gorl_robotics.recording import read_rollouts
from gorl_robotics.rollout import Rollout
from gorl_robotics.storage import RolloutWriter

_FITTED = ("observation", "action")


class Recorder:
    """Records the tail of one stage.

    Only the last `refit.samples` samples are written at all: what a ring would hold at the end of the stage, without
    writing what it would lose. If the disk fails, training goes on and the rest is kept in memory. Where `stage_end` is
    another one when a run goes on, what was recorded too early stays in the file, and `data` leaves it out.

    Args:
        path: of the stage's HDF5 file of this process.
        rollout: for its sizes.
        stage_end: count of environment steps at which the stage ends; infinity records nothing.
        config: settings.
        provenance: what the file says about where it comes from.
        resume: what `state_dict` gave when the run was interrupted in this stage, or `shared_out` made of it.
        fitted: whether a refit will ask for the data.
    """

    def __init__(
        self,
        path: Path,
        rollout: Rollout,
        stage_end: float,
        config: Config,
        provenance: Mapping[str, str | int | float],
        resume: Mapping[str, Any] | None = None,
        fitted: bool = True,
    ) -> None:
        self.path, self._begin = path, stage_end - config.refit.samples
        self._part = 1
        self._earlier: list[tuple[str, int, int]] = []  # file, first row, row after the last
        self._device = rollout.reward.device
        self._rollout = rollout
        self._memory: list[dict[str, Tensor]] = []
        self._writer: RolloutWriter | None = None
        self.failure: str | None = None
        self._rows = 0  # on disk when an interrupted run goes on
        self._collected = False
        self._steps = stage_end  # the run's count with the last rollout; formerly not saved
        self._provenance, self._enabled = provenance, config.storage.enabled
        if resume is not None:
            self._memory, self._rows = resume["memory"], resume["rows"]
            self._part, self._earlier = resume.get("part", 1), resume.get("earlier", [])
            self._steps = resume.get("steps") or stage_end
        # A GPU has the room, and its refit need not wait for the disk; what was resumed is in the file alone.
        keep = fitted and resume is None and self._device.type == "cuda"
        self._kept: list[dict[str, Tensor]] | None = [] if keep else None
        if self._part > 1:  # files that other processes began are read from, never written to
            self.path = path.with_stem(f"{path.stem}-part-{self._part}")

    def add(self, steps: int) -> None:
        """Records the rollout that has just been collected; `steps` is the run's count with it."""
        self._collected, self._steps = True, steps
        if steps <= self._begin:
            return
        if self._enabled and self._writer is None:
            self._open()
        if self._writer is not None:
            self._writer.append(self._rollout.recorded())
            self.failure = self._writer.failure
        fitted = self._memory if self._writer is None or self.failure is not None else self._kept
        if fitted is not None:
            fitted.append({name: getattr(self._rollout, name).clone() for name in _FITTED})

    def data(self) -> tuple[Tensor, Tensor]:
        """Takes no more, and gives what was recorded: observations (S, N, obs) and actions (S, N, a).

        S is 0 where nothing was recorded: a run may go on where a stage has no room for a rollout any more.
        """
        if self._kept and self._writer is not None:
            self._writer.finish()  # a refit need not wait for the disk
        else:
            self.close()
        # As time went on: what a resumed run has in memory is older than its file.
        own = self._kept + self._memory if self._kept else self._memory + self._from_file()
        parts = self._from_earlier() + own
        self._memory, self._kept = [], None
        rows = self._rows_in_window()
        if not parts or rows == 0:  # the disk failed under the stage's last rollout, or there was no other
            rows = len(self._rollout.reward)
            parts = [{name: getattr(self._rollout, name)[: rows * self._collected].clone() for name in _FITTED}]
        return tuple(torch.cat([part[name].to(self._device) for part in parts])[-rows:] for name in _FITTED)  # type: ignore[return-value]

    def state_dict(self) -> dict[str, object]:
        """What a resumed run needs; everything recorded so far is on disk afterwards or, if that failed, in here."""
        rows = self._rows
        if self._writer is not None:
            self._writer.flush()
            self.failure = self._writer.failure
            rows = 0 if self.failure else self._writer.steps
        memory = [*(self._kept or []), *self._memory] if self.failure else list(self._memory)
        own = {"file": self.path.name, "rows": rows, "memory": memory, "steps": self._steps}
        return {**own, "part": self._part, "earlier": list(self._earlier)}

    def close(self) -> None:
        """Waits until everything is on disk and closes the file."""
        if self._writer is not None:
            self._writer.close()
            self.failure = self._writer.failure

    def _rows_in_window(self) -> int:
        """Rows of the rollouts that came after the window's begin, as many processes as now collecting them."""
        rollouts = math.ceil((self._steps - self._begin) / (distributed.size() * self._rollout.samples))
        return max(0, rollouts) * len(self._rollout.reward)

    def _open(self) -> None:
        """Opens the file at the first rollout that belongs in it, cut to where an interrupted run had got."""
        try:
            if self._rows == 0:
                self.path.unlink(missing_ok=True)  # written after the checkpoint that is gone on from
            self._writer = RolloutWriter(
                self.path,
                num_worlds=self._rollout.reward.shape[1],
                observation_size=self._rollout.observation.shape[2],
                action_size=self._rollout.action.shape[2],
                provenance=self._provenance,
                resume_steps=self._rows,
            )
        except OSError as error:
            self._enabled, self.failure = False, f"{self.path}: {error.strerror or error}"

    def _from_earlier(self) -> list[dict[str, Tensor]]:
        """This process's share of what was recorded by another number of processes."""
        parts = []
        for name, start, stop in self._earlier:
            with read_rollouts(self.path.with_name(name)) as recording:
                arrays = recording.read(_FITTED, start, stop)
            parts.append({key: torch.from_numpy(array) for key, array in arrays.items()})
        return parts

    def _from_file(self) -> list[dict[str, Tensor]]:
        if self._writer is None and self._rows == 0:
            return []
        if self.failure is not None:
            return []
        # Without a writer the run was interrupted after the stage's last rollout: the checkpoint knows how much counts.
        stop = self._rows if self._writer is None else None
        with read_rollouts(self.path) as recording:
            arrays = recording.read(_FITTED, stop=stop)
        return [{name: torch.from_numpy(array) for name, array in arrays.items()}]


class Recordings:
    """The recorders of a run, one for each stage.

    Args:
        folder: the run folder.
        config: all settings.
        rollout: what is recorded.
        observation_terms: names of the terms in an observation, in order.
        refits: whether something is refitted to each stage but the last.
        display: is told of failures.
        resume: what the first recorder goes on with; see `Recorder`.
    """

    def __init__(
        self,
        folder: Path,
        config: Config,
        rollout: Rollout,
        observation_terms: Sequence[str],
        refits: bool,
        display: Display,
        resume: Mapping[str, Any] | None = None,
    ) -> None:
        self._folder, self._config, self._rollout = folder / "rollouts", config, rollout
        self._terms, self._refits, self._display, self._resume = ", ".join(observation_terms), refits, display, resume

    def begin(self, stage: int, end: float) -> Recorder:
        """This process's recorder of a stage, counted from 0, that ends at `end` environment steps."""
        path = self._folder / f"stage-{stage + 1}-rank-{distributed.rank()}.h5"
        provenance = {**run_folder.provenance(), "task": self._config.task, "seed": self._config.seed}
        provenance.update(method=self._config.method, rank=distributed.rank(), processes=distributed.size())
        provenance["observation_terms"] = self._terms
        # The last stage's samples are kept to be looked at, those of the others for a refit.
        last = stage == len(self._config.stages.fractions) - 1
        wanted = self._config.storage.enabled if last else self._refits
        resume, self._resume = self._resume, None
        return Recorder(path, self._rollout, end if wanted else math.inf, self._config, provenance, resume, not last)

    def end(self, recorder: Recorder) -> None:
        """Closes it and says where recording has failed, in any process."""
        recorder.close()
        for state in distributed.gather_states({"failure": recorder.failure}):
            if state["failure"]:
                self._display.note(f"going on without recording this stage, its samples in memory: {state['failure']}")


def shared_out(recorders: Sequence[Mapping[str, Any] | None], rank: int, processes: int) -> dict[str, Any] | None:
    """What recorder `rank` of `processes` goes on with where another number of them was interrupted.

    Their rows, one recorder's behind the other's, are cut into equal runs of rows. Rows stay on disk where they are.
    An episode that such a cut divides may be trained on by one process and validated on by the next.

    Args:
        recorders: each one's `state_dict`, in order of rank; None where no stage had begun.
        rank: which one this is.
        processes: how many there are now.
    """
    states = [state for state in recorders if state is not None]
    if not states:
        return None
    files = [row for state in states for row in (*state["earlier"], (state["file"], 0, state["rows"]))]
    memory = [rollout for state in states for rollout in state["memory"]]
    lengths = [stop - start for _, start, stop in files] + [len(rollout[_FITTED[0]]) for rollout in memory]
    share = _share(lengths, rank, processes)
    return {
        "rows": 0,
        "steps": states[0].get("steps"),
        "part": max(state["part"] for state in states) + any(stop > start for _, start, stop in files),
        "earlier": [
            (name, start + first, start + last)
            for (name, start, _), (first, last) in zip(files, share, strict=False)
            if last > first
        ],
        "memory": [
            {name: rows[first:last].clone() for name, rows in rollout.items()}
            for rollout, (first, last) in zip(memory, share[len(files) :], strict=True)
            if last > first
        ],
    }


def _share(lengths: Sequence[int], rank: int, processes: int) -> list[tuple[int, int]]:
    """Where share `rank` begins and ends in each of several pieces of these lengths, laid end to end."""
    begin, end = (sum(lengths) * k // processes for k in (rank, rank + 1))
    places, offset = [], 0
    for length in lengths:
        places.append((min(max(begin - offset, 0), length), min(max(end - offset, 0), length)))
        offset += length
    return places
