"""Saves a run, all its processes in one file, and restores it on as many processes or on another number of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from gorl_robotics import checkpoint, distributed
from gorl_robotics.audition import Audition, earned_by, rows_of
from gorl_robotics.config import Config, to_yaml
from gorl_robotics.files import sync
from gorl_robotics.ppo import Learner
from gorl_robotics.progress import Progress
from gorl_robotics.recorder import Recorder, shared_out
from gorl_robotics.rollout import Collector

_EXAMPLES = 256  # observations of the last rollout's end that are kept; an export shows the policy's actions on them


class Checkpointer:
    """Writes the checkpoints of a run and goes on from one.

    Args:
        folder: the run folder.
        config: all settings.
        collector: with the environment and the policy.
        learner: improves that policy.
        generator: draws what learning needs, in this process.
    """

    def __init__(
        self, folder: Path, config: Config, collector: Collector, learner: Learner, generator: torch.Generator
    ) -> None:
        self._run, self._folder, self._config = folder, folder / checkpoint.FOLDER, config
        self._collector, self._learner, self._generator = collector, learner, generator
        self._env, self._policy = collector.env, learner.policy
        self._saved_at = time.monotonic()

    def due(self) -> bool:
        """Whether the last checkpoint is too old, by this process's clock."""
        return time.monotonic() - self._saved_at > self._config.checkpoint_seconds

    def save(
        self,
        progress: Progress,
        recorder: Recorder | None,
        name: str | None = None,
        audition: Audition | None = None,
    ) -> None:
        """Writes the newest checkpoint and, if named, a copy that stays; the first process does, for all."""
        own = {
            "environment": self._env.state_dict(),
            "generators": {
                "learner": self._generator.get_state(),
                "torch": torch.get_rng_state(),
                "candidates": [each.get_state() for each in audition.generators] if audition else [],
            },
            "audition": audition.state_dict() if audition else None,
            "earned": earned_by(self._learner),
            "recorder": recorder.state_dict() if recorder else None,
            "observations": self._collector.rollout.observation[-1, :_EXAMPLES].clone(),
        }
        processes = distributed.gather_states(own)
        self._saved_at = time.monotonic()
        if not distributed.is_main():
            return
        content = {
            "config": to_yaml(self._config),
            "device": self._env.device.type,
            **progress.state_dict(),
            "policy": self._policy.state_dict(),
            "generative": self._policy.generative,
            "learner": self._learner.state_dict(),
            **own,
            "other_processes": processes[1:],
        }
        with suppress(FileNotFoundError):  # whoever has removed it loses the curve, not the run
            sync(self._run / "metrics.csv")  # a resumed run asks for all the rows that there are by now
        sync(self._run)
        for target in filter(None, (name, checkpoint.LATEST)):
            checkpoint.save(self._folder / target, content)

    def restore(self, saved: Mapping[str, Any], audition: Audition | None = None) -> dict[str, Any] | None:
        """Goes on from what `save` wrote; returns what the stage's recorder goes on with, if there was one.

        On another number of processes the worlds begin anew and what was recorded is shared out.
        """
        self._policy.restore(saved)
        self._learner.load_state_dict(saved["learner"])
        if audition is not None:
            audition.restore(rows_of(saved))
        torch.set_rng_state(saved["generators"]["torch"])  # of new weights, which are the same everywhere
        processes = [saved, *saved.get("other_processes", [])]
        rank, size = distributed.rank(), distributed.size()
        own = processes[rank % len(processes)]
        self._restore_earned(processes)
        # If there is no rollout any more, the next checkpoint's examples are these.
        self._collector.rollout.observation[-1, :_EXAMPLES] = own["observations"]
        if len(processes) != size:
            return shared_out([process["recorder"] for process in processes], rank, size)
        if saved["device"] == self._env.device.type:
            self._env.load_state_dict(own["environment"])
            self._generator.set_state(own["generators"]["learner"])
            if audition is not None:
                for generator, state in zip(audition.generators, _of_candidates(saved, own), strict=False):
                    generator.set_state(state)
        return own["recorder"]

    def _restore_earned(self, processes: Sequence[Mapping[str, Any]]) -> None:
        """What this process's worlds have earned; where they are others now, the mean of those that there were."""
        if "earned" not in processes[0]:  # formerly the first process's alone was saved, with the learner
            return
        earned = torch.stack([process["earned"][0] for process in processes])
        self._learner.earned.copy_(earned[distributed.rank()] if len(earned) == distributed.size() else earned.mean())


def _of_candidates(saved: Mapping[str, Any], own: Mapping[str, Any]) -> list[torch.Tensor]:
    """States of a process's generators, one for each candidate of the audition."""
    if "candidates" in own["generators"]:
        return own["generators"]["candidates"]
    # Formerly only the first process's were saved: the others shuffle anew, or all would shuffle alike.
    return [each["generator"] for each in saved["audition"]["candidates"]] if own is saved else []
