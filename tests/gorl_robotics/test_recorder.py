"""What a refit is given: the tail of a stage, from disk or memory, after a failing disk and after a resume."""

from __future__ import annotations

import errno
import math
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_environment import small_config
from recorded_stage import KEPT, SAMPLES, STEPS, WORLDS, Run, assert_data, interrupted

from gorl_robotics import recorder, storage
from gorl_robotics.recorder import Recorder, shared_out
from gorl_robotics.recording import Recording


@pytest.mark.parametrize("enabled", [True, False], ids=["disk", "memory"])
def test_data_is_the_tail_of_the_stage(tmp_path: Path, enabled: bool) -> None:
    run = Run(tmp_path, enabled)
    run.add(*range(1, 11))
    assert_data(run.recorder.data(), 8, 9, 10)
    assert run.recorder.failure is None
    assert run.path.exists() is enabled


def test_what_is_in_memory_does_not_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path)
    run.recorder._kept = []  # as on a GPU
    run.add(*range(1, 10))
    run.recorder.state_dict()  # everything so far is on disk
    ready, write = threading.Event(), storage.RolloutWriter._write

    def late(writer: storage.RolloutWriter, rollout: Any) -> None:
        assert ready.wait(30)
        write(writer, rollout)

    monkeypatch.setattr(storage.RolloutWriter, "_write", late)
    run.add(10)
    assert_data(run.recorder.data(), 8, 9, 10)
    ready.set()
    run.recorder.close()
    assert run.recorder.failure is None
    with Recording(run.path) as recording:
        assert recording.steps == KEPT * STEPS


@pytest.mark.gpu
def test_on_cuda_data_is_kept_in_memory_too(tmp_path: Path) -> None:
    run = Run(tmp_path, device="cuda")
    run.add(*range(1, 11))
    data = run.recorder.data()
    assert data[0].is_cuda
    assert_data((data[0].cpu(), data[1].cpu()), 8, 9, 10)
    run.recorder.close()
    with Recording(run.path) as recording:
        assert torch.equal(torch.from_numpy(recording.read(["action"])["action"]), data[1].cpu())


def test_the_file_holds_the_tail_and_where_it_comes_from(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.add(*range(1, 8))
    assert not run.path.exists()
    run.add(8, 9, 10)
    run.recorder.close()
    with Recording(run.path) as recording:
        assert recording.steps == KEPT * STEPS
        assert recording.provenance["task"] == "Fake"
        assert recording.read(["reward"])["reward"][:, 0].tolist() == [8.0] * 8 + [9.0] * 8 + [10.0] * 8


def test_a_stage_shorter_than_the_refit_is_recorded_whole(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.recorder = Recorder(run.path, run.rollout, 2 * SAMPLES, small_config(refit__samples=KEPT * SAMPLES), {})
    run.add(1, 2)
    assert_data(run.recorder.data(), 1, 2)


@pytest.mark.parametrize("enabled", [True, False], ids=["disk", "memory"])
def test_a_stage_that_nothing_is_kept_of(tmp_path: Path, enabled: bool) -> None:
    run = Run(tmp_path)
    config = small_config(refit__samples=KEPT * SAMPLES, storage__enabled=enabled)
    run.recorder = Recorder(run.path, run.rollout, math.inf, config, {})
    run.add(*range(1, 11))
    kept = run.recorder.state_dict()
    assert (kept["rows"], kept["memory"]) == (0, [])
    assert not run.path.exists()


@pytest.mark.parametrize("enabled", [True, False], ids=["disk", "memory"])
def test_a_resumed_stage_gives_the_same_data(tmp_path: Path, enabled: bool) -> None:
    run = Run(tmp_path, enabled)
    run.add(*range(1, 9))
    saved = interrupted(run, tmp_path)
    run.add(7)  # recorded after the checkpoint, and lost with the kill
    run.recorder.close()
    again = Run(tmp_path, enabled, saved)
    again.add(9, 10)
    assert_data(again.recorder.data(), 8, 9, 10)


@pytest.mark.parametrize("enabled", [True, False], ids=["disk", "memory"])
def test_a_run_interrupted_at_the_stages_end_still_has_its_data(tmp_path: Path, enabled: bool) -> None:
    run = Run(tmp_path, enabled)
    run.add(*range(1, 11))
    saved = interrupted(run, tmp_path)
    run.recorder.close()
    again = Run(tmp_path, enabled, saved)
    assert_data(again.recorder.data(), 8, 9, 10)


def test_interrupted_twice(tmp_path: Path) -> None:
    first = Run(tmp_path)
    first.add(*range(1, 9))
    saved = interrupted(first, tmp_path)
    first.recorder.close()
    second = Run(tmp_path, resume=saved)
    saved = interrupted(second, tmp_path)  # before anything was added
    second.recorder.close()
    third = Run(tmp_path, resume=saved)
    third.add(9)
    saved = interrupted(third, tmp_path)
    third.recorder.close()
    fourth = Run(tmp_path, resume=saved)
    fourth.add(10)
    assert_data(fourth.recorder.data(), 8, 9, 10)


def test_what_was_recorded_after_the_checkpoint_is_replaced(tmp_path: Path) -> None:
    run = Run(tmp_path)
    saved = interrupted(run, tmp_path)  # before the tail began
    run.add(8, 9)
    run.recorder.close()
    again = Run(tmp_path, resume=saved)
    again.add(8, 9, 10)
    assert_data(again.recorder.data(), 8, 9, 10)


@pytest.mark.parametrize("enabled", [True, False], ids=["disk", "memory"])
@pytest.mark.parametrize("former", [False, True], ids=["now", "formerly"])
def test_a_stage_that_has_become_longer_gives_its_own_tail_alone(tmp_path: Path, enabled: bool, former: bool) -> None:
    run = Run(tmp_path, enabled)
    run.add(8, 9)
    saved = interrupted(run, tmp_path)
    run.recorder.close()
    if former:
        del saved["steps"]
    longer = Run(tmp_path, enabled, saved, end=12 * SAMPLES)
    longer.add(10)  # from here on it is recorded: 9 is a rollout too early, and there are more than three in the end
    longer.add(11, 12)
    assert_data(longer.recorder.data(), 10, 11, 12)
    if enabled:
        with Recording(run.path) as recording:
            assert recording.steps == 5 * STEPS, "something recorded is gone"


@pytest.mark.parametrize("enabled", [True, False], ids=["disk", "memory"])
def test_what_still_belongs_to_a_longer_stages_tail_counts(tmp_path: Path, enabled: bool) -> None:
    run = Run(tmp_path, enabled)
    run.add(8, 9, 10)
    saved = interrupted(run, tmp_path)
    run.recorder.close()
    longer = Run(tmp_path, enabled, saved, end=11 * SAMPLES + SAMPLES // 2)
    assert_data(longer.recorder.data(), 9, 10)  # interrupted again before there was another


def test_what_another_number_of_processes_recorded_too_early_does_not_count(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.add(8, 9)
    states = [interrupted(run, tmp_path)]
    longer = Run(tmp_path, resume=shared_out(states, 0, 2), end=20 * SAMPLES)
    longer.add(18, 19, 20)
    assert_data(longer.recorder.data(), 18, 19, 20)


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_that_cannot_be_created_leaves_it_to_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "RolloutWriter", full_disk)
    run = Run(tmp_path)
    run.add(*range(1, 11))
    assert_data(run.recorder.data(), 8, 9, 10)
    assert run.recorder.failure is not None
    assert str(run.path) in run.recorder.failure
    assert "No space left" in run.recorder.failure


def test_a_folder_that_cannot_be_made_leaves_it_to_memory(tmp_path: Path) -> None:
    (tmp_path / "rollouts").write_text("in the way")
    run = Run(tmp_path)
    run.add(8, 9, 10)
    assert_data(run.recorder.data(), 8, 9, 10)
    assert run.recorder.failure is not None
    assert (tmp_path / "rollouts").read_text() == "in the way"


class FailingWrites:
    """Writes the first rollouts, then the disk is full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, good: int) -> None:
        original = storage.RolloutWriter._write
        self.left = good

        def write(writer: storage.RolloutWriter, rollout: dict[str, Any]) -> None:
            if self.left == 0:
                full_disk()
            self.left -= 1
            original(writer, rollout)

        monkeypatch.setattr(storage.RolloutWriter, "_write", write)


def test_a_disk_that_fills_leaves_the_rest_to_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FailingWrites(monkeypatch, good=1)
    run = Run(tmp_path)
    run.add(8, 9)
    saved = interrupted(run, tmp_path)  # waits for the writer, which fails
    assert run.recorder.failure is not None
    assert "No space left" in run.recorder.failure
    run.add(10)
    assert_data(run.recorder.data(), 10)
    assert (saved["rows"], saved["memory"]) == (0, [])


def test_what_was_in_memory_before_the_disk_failed_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path)
    run.recorder._kept = []  # as on a GPU
    with monkeypatch.context() as patch:
        FailingWrites(patch, good=1)
        run.add(8)
        assert interrupted(run, tmp_path)["memory"] == [], "it is on disk"
        run.add(9)
        interrupted(run, tmp_path)  # waits for the writer, which fails
        run.add(10)
        saved = interrupted(run, tmp_path)
    assert_data(Run(tmp_path, resume=saved).recorder.data(), 8, 9, 10)
    assert_data(run.recorder.data(), 8, 9, 10)


def test_a_disk_that_fails_at_the_very_end_leaves_the_last_rollout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FailingWrites(monkeypatch, good=0)
    run = Run(tmp_path)
    run.add(10)
    assert_data(run.recorder.data(), 10)
    assert run.recorder.failure is not None


def test_a_run_resumed_after_a_failure_keeps_what_memory_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(recorder, "RolloutWriter", full_disk)
        run = Run(tmp_path)
        run.add(8, 9)
        saved = interrupted(run, tmp_path)
    again = Run(tmp_path, resume=saved)
    again.add(10)  # the disk has room again
    assert_data(again.recorder.data(), 8, 9, 10)
    assert again.recorder.failure is None


def test_a_run_resumed_after_a_failure_at_the_stages_end_has_no_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        FailingWrites(patch, good=0)
        run = Run(tmp_path)
        run.add(10)
        saved = interrupted(run, tmp_path)
    observation, action = Run(tmp_path, resume=saved).recorder.data()
    assert (observation.shape, action.shape) == ((0, WORLDS, 4), (0, WORLDS, 2))


def test_closing_twice_or_unopened_is_fine(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.recorder.close()
    run.add(10)
    run.recorder.close()
    run.recorder.close()
    assert_data(run.recorder.data(), 10)
