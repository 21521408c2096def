"""Progress: an iteration is told once the next one is under way, and everything before anything is saved."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_environment import FakeEnvironment, small_config
from rich.console import Console

from gorl_robotics import distributed
from gorl_robotics.display import Display
from gorl_robotics.errors import InputError
from gorl_robotics.methods.gorl import GorlPolicy
from gorl_robotics.ppo import Learner
from gorl_robotics.progress import Progress
from gorl_robotics.rollout import Collector


class Run:
    """A learner in a fake environment that reports to a folder."""

    def __init__(self, folder: Path) -> None:
        config = small_config()
        self.env = FakeEnvironment(config.num_envs)
        policy, generator = GorlPolicy.from_config(config, 4, 2), torch.Generator().manual_seed(0)
        steps = config.ppo.rollout_steps
        self.learner = Learner(policy, 5, config, config.num_envs * steps, self.env.device, generator)
        self.collector = Collector(self.env, policy, steps, generator)
        self.progress = Progress(folder, Display("", 1000, 1, Console(quiet=True, force_interactive=False)))
        self._metrics = folder / "metrics.csv"

    def iterate(self) -> float:
        """One iteration; returns the mean reward of its rollout."""
        rollout = self.collector.collect()
        self.progress.advance(rollout.samples)
        self.learner.update(rollout)
        self.progress.report(self.collector, self.learner, rollout.samples)
        return float(rollout.reward.mean())

    def rows(self) -> list[dict[str, Any]]:
        return list(csv.DictReader(self._metrics.open())) if self._metrics.exists() else []


def test_each_iteration_is_told_once_with_its_own_numbers(tmp_path: Path) -> None:
    run = Run(tmp_path)
    rewards = []
    for told in range(3):
        rewards.append(run.iterate())
        assert (len(run.rows()), run.env.checked) == (told, told)  # the last one is still under way
    for _ in range(2):  # a second time there is nothing left
        run.progress.flush()
        assert run.env.checked == 3
    rows = run.rows()
    assert [int(row["steps"]) for row in rows] == [48, 96, 144]
    assert [float(row["reward/training_mean"]) for row in rows] == pytest.approx(rewards)
    assert all(float(row["time/steps_per_second"]) > 0 for row in rows)
    assert run.progress.state_dict()["rows"] == 3


def test_an_iterations_seconds_are_its_own(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.progress.begin()
    begin, seconds = time.monotonic(), []
    for _ in range(4):
        run.iterate()
        seconds.append(time.monotonic() - begin)
        begin = time.monotonic()
    time.sleep(0.5)  # what comes before the last one is told is not its
    run.progress.flush()
    rows = run.rows()
    spent = [48 / float(row["time/steps_per_second"]) for row in rows]
    assert all(one == pytest.approx(other, rel=0.5, abs=0.02) for one, other in zip(spent, seconds, strict=True))
    assert sum(spent) < float(rows[-1]["time/elapsed"]) < sum(seconds) + 0.4


def test_a_fault_that_can_be_lived_with_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, notes = Run(tmp_path), []
    monkeypatch.setattr(run.env, "judge", lambda faults: "Fake: 1 of 8 worlds")
    monkeypatch.setattr(run.progress._display, "note", notes.append)
    for _ in range(3):
        run.iterate()
    run.progress.flush()
    assert [note for note in notes if "Fake" in note] == ["Fake: 1 of 8 worlds; training goes on"]
    assert len(run.rows()) == 3


def test_a_fault_is_raised_by_the_next_report_or_the_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def judge(faults: torch.Tensor) -> str:
        raise ArithmeticError(int(faults))

    run = Run(tmp_path)
    monkeypatch.setattr(run.env, "judge", judge)
    run.iterate()
    with pytest.raises(ArithmeticError, match="1"):
        run.progress.flush()
    run.progress.flush()
    run.iterate()
    with pytest.raises(ArithmeticError, match="1"):
        run.iterate()
    assert run.rows() == []


@pytest.mark.parametrize("broken", ["policy", "critic"])
def test_weights_that_are_no_numbers_end_the_run_before_anything_is_saved(tmp_path: Path, broken: str) -> None:
    run = Run(tmp_path)
    run.iterate()
    network = run.learner.critic if broken == "critic" else run.learner.policy.trained
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    run.iterate()
    with pytest.raises(InputError, match=r"loss/\w+ is nan after 96 steps; lower ppo.learning_rate"):
        run.progress.flush()  # which comes before a checkpoint


def test_a_fault_of_another_process_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(own: torch.Tensor) -> torch.Tensor:
        other = own.clone()
        other[-2] = 1
        return torch.stack([own, other])

    run, notes = Run(tmp_path), []
    monkeypatch.setattr(run.progress._display, "note", notes.append)
    monkeypatch.setattr(distributed, "gather", gather)
    for _ in range(2):
        run.iterate()
    run.progress.flush()
    monkeypatch.setattr(run.env, "judge", lambda faults: "Fake: raise it")  # whose fault says what to do
    run.iterate()
    run.progress.flush()
    told = [note.partition("; training goes on")[0] for note in notes if "goes on" in note]
    assert told == ["what another process simulates does not fit everywhere", "Fake: raise it"]


def test_worlds_lost_are_those_of_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path)
    run.env.lost = 5

    def gather(own: torch.Tensor) -> torch.Tensor:
        other = own.clone()
        other[-1] = 2  # what the other one has lost
        return torch.stack([own, other])

    run.iterate()
    monkeypatch.setattr(distributed, "gather", gather)
    monkeypatch.setattr(distributed, "size", lambda: 2)
    run.progress.flush()
    assert [row["worlds/lost"] for row in run.rows()] == ["7"]
