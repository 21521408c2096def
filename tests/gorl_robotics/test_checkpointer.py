"""What a run saves of all its processes, and what it goes on with: here, on another device and from former files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from fake_environment import FakeEnvironment, small_config
from learner_setup import weights
from rich.console import Console
from torch import Tensor

from gorl_robotics import checkpoint
from gorl_robotics.audition import Audition, rows_of
from gorl_robotics.checkpointer import Checkpointer
from gorl_robotics.display import Display
from gorl_robotics.methods.gorl import GorlPolicy
from gorl_robotics.ppo import Learner
from gorl_robotics.progress import Progress
from gorl_robotics.rollout import Collector

WORLDS, COUNT = 512, 2
SETTINGS: dict[str, Any] = {
    "num_envs": WORLDS,
    "stages__candidates": COUNT,
    "stages__audition": 2,
    "refit__samples": 1000,
    "ppo__epochs": 1,
}


class Run:
    """A run in the middle of an audition, in the fake environment."""

    def __init__(self, folder: Path, seed: int = 7, held: int | None = None) -> None:
        torch.manual_seed(seed)
        self.folder, config = folder, small_config(**SETTINGS)
        env, steps = FakeEnvironment(WORLDS, seed=seed), config.ppo.rollout_steps
        self.generator = torch.Generator().manual_seed(seed)
        policy = GorlPolicy.from_config(config, 4, 2)
        self.learner = Learner(policy, 5, config, WORLDS * steps, env.device, self.generator)
        self.learner.earned.fill_(seed)
        self.audition = Audition(
            lambda: GorlPolicy.from_config(config, 4, 2), policy, 5, config, env.device, self.generator, held
        )
        self.collector = Collector(env, policy, steps, env.generator)
        self.checkpointer = Checkpointer(folder, config, self.collector, self.learner, self.generator)
        self.collector.act_with(self.audition.cast)

    def iterate(self) -> list[Tensor]:
        """One iteration; what the candidates are afterwards."""
        self.audition.update(self.collector.collect())
        return [value.clone() for each in self.audition.learners for value in each.policy.state_dict().values()]

    def save(self) -> dict[str, Any]:
        """A checkpoint of it, as a file has it."""
        display = Display("", 1000, 1, Console(quiet=True, force_interactive=False))
        self.checkpointer.save(Progress(self.folder, display), None, audition=self.audition)
        return checkpoint.load(self.folder / "checkpoints" / checkpoint.LATEST)

    def restore(self, saved: dict[str, Any]) -> None:
        self.checkpointer.restore(saved, self.audition)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(tmp_path)
    made.iterate()
    return made


def formerly(saved: dict[str, Any]) -> dict[str, Any]:
    """As versions up to 936ed87 saved it."""
    rows = zip(saved["audition"]["candidates"], saved["generators"].pop("candidates"), strict=True)
    del saved["earned"]
    return {**saved, "audition": {"candidates": [{**row, "generator": state} for row, state in rows]}}


def resumed(saved: dict[str, Any], folder: Path, rank: int, processes: int) -> Run:
    """Process `rank` of so many, which goes on with it."""
    with (
        mock.patch("gorl_robotics.distributed.rank", return_value=rank),
        mock.patch("gorl_robotics.distributed.size", return_value=processes),
    ):
        other = Run(folder, seed=10 + rank, held=len(rows_of(saved)))
        other.restore(saved)
    return other


def candidates_of(*runs: Run) -> list[Tensor]:
    return [weights(learner.policy.latent) for run in runs for learner in run.audition.learners]


@pytest.mark.parametrize("former", [False, True], ids=["now", "formerly"])
def test_a_saved_audition_goes_on_as_it_would_have(run: Run, tmp_path: Path, former: bool) -> None:
    saved, other = run.save(), Run(tmp_path, seed=8)
    other.restore(formerly(saved) if former else saved)
    assert all(torch.equal(found, expected) for found, expected in zip(other.iterate(), run.iterate(), strict=True))


@pytest.mark.parametrize("former", [False, True], ids=["now", "formerly"])
def test_an_audition_goes_on_on_another_kind_of_device(run: Run, tmp_path: Path, former: bool) -> None:
    """Whose generators have states of another size: they begin anew, and the weights are what they were."""
    saved, gpus = {**run.save(), "device": "cuda"}, torch.zeros(16, dtype=torch.uint8)
    saved["generators"].update(learner=gpus, candidates=[gpus] * COUNT)
    other = Run(tmp_path, seed=8)
    before = [generator.get_state() for generator in other.audition.generators]
    other.restore(formerly(saved) if former else saved)
    for found, expected in zip(other.audition.learners, run.audition.learners, strict=True):
        for name, value in expected.policy.state_dict().items():
            assert torch.equal(found.policy.state_dict()[name], value)
    after = [generator.get_state() for generator in other.audition.generators]
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))


def test_another_process_of_a_former_run_does_not_shuffle_as_the_first(run: Run, tmp_path: Path) -> None:
    saved = formerly(run.save())
    own = {name: saved[name] for name in ("environment", "generators", "recorder", "observations")}
    other = resumed({**saved, "other_processes": [own]}, tmp_path, rank=1, processes=2)
    (own_generator,) = other.audition.generators
    assert not any(torch.equal(own_generator.get_state(), each.get_state()) for each in run.audition.generators)
    assert torch.equal(*candidates_of(other), candidates_of(run)[1])  # formerly all processes had both


@pytest.fixture
def pair(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Run], dict[str, Any]]:
    """Two processes' runs, and the checkpoint that the first one writes for both."""
    second = Run(tmp_path / "second", seed=9)
    second.folder.mkdir()
    second.iterate()
    own = second.save()
    monkeypatch.setattr("gorl_robotics.distributed.gather_states", lambda state: [state, own])
    return [run, second], run.save()


def earned(run: Run) -> Tensor:
    return torch.stack([each.earned for each in (run.learner, *run.audition.learners)])


def test_each_process_goes_on_with_what_is_its_own(pair: tuple[list[Run], dict[str, Any]], tmp_path: Path) -> None:
    runs, saved = pair
    assert not torch.equal(earned(runs[0]), earned(runs[1]))
    for rank, run in enumerate(runs):
        other = resumed(saved, tmp_path, rank, processes=2)
        assert torch.equal(earned(other), earned(run))
        assert all(torch.equal(*both) for both in zip(candidates_of(other), candidates_of(run), strict=True))
        for found, expected in zip(other.audition.generators, run.audition.generators, strict=True):
            assert torch.equal(found.get_state(), expected.get_state())


@pytest.mark.parametrize(
    ("processes", "goes_on"),
    [(1, [1, 2]), (3, [0, 1, 2]), (4, [0, 1, 2, 3]), (5, [0, 1, 2, 3, None])],
)
def test_on_another_number_of_processes_the_best_that_there_is_room_for_go_on(
    pair: tuple[list[Run], dict[str, Any]], tmp_path: Path, processes: int, goes_on: list[int | None]
) -> None:
    runs, saved = pair
    for row, reward in zip(rows_of(saved), [0.2, 0.5, 0.3, 0.1], strict=True):
        row["learner"]["earned"].fill_(reward)
    others = [resumed(saved, tmp_path, rank, processes) for rank in range(processes)]
    for other in others:
        torch.testing.assert_close(other.learner.earned, (runs[0].learner.earned + runs[1].learner.earned) / 2)
    before = candidates_of(*runs)
    for found, k in zip(candidates_of(*others), goes_on, strict=True):
        assert [torch.equal(found, each) for each in before] == [i == k for i in range(len(before))]
    shuffles = [generator.get_state() for run in (*others, *runs) for generator in run.audition.generators]
    assert len({bytes(state.tolist()) for state in shuffles}) == len(shuffles), "two shuffle alike"


def test_the_metrics_are_on_disk_before_a_checkpoint_counts_their_rows(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append(f"to {b}"), replace(a, b))[1])
    run.save()
    renamed = events.index(f"to {tmp_path / 'checkpoints' / checkpoint.LATEST}")
    assert events.index(str(tmp_path / "metrics.csv")) < events.index(str(tmp_path)) < renamed


def test_a_run_without_its_metrics_goes_on(run: Run, tmp_path: Path) -> None:
    display = Display("", 1000, 1, Console(quiet=True, force_interactive=False))
    progress = Progress(tmp_path, display)
    (tmp_path / "metrics.csv").unlink()
    run.checkpointer.save(progress, None)
    assert (tmp_path / "checkpoints" / checkpoint.LATEST).is_file()
