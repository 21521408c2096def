"""The whole program as two processes: one run, however it ends and on however many processes it goes on."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from running import (
    WORLDS,
    Ended,
    curve,
    evaluations,
    here,
    only_run,
    rows,
    same_policy,
    saved,
    settings,
    signalled,
    stopping_one,
)
from running import torchrun as launched

from gorl_robotics.recording import read_rollouts

STEPS = 32
SAMPLES = 2 * WORLDS * STEPS  # of an iteration of two processes
RUN: dict[str, Any] = {
    "total_steps": 9 * SAMPLES,
    "ppo.rollout_steps": STEPS,
    "evaluation_worlds": 2,
    "stages.fractions": "[0.7,0.3]",
    "refit.samples": 4 * SAMPLES,
}
FIRST_STAGE, ITERATIONS = 6, 9


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ended, Path]:
    cwd = tmp_path_factory.mktemp("complete")
    ended = launched(settings(**RUN), cwd)
    assert ended.code == 0, ended.err
    return ended, only_run(cwd)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped while its first stage was being recorded."""
    cwd = tmp_path_factory.mktemp("stopped")
    ended = launched(settings(**RUN), cwd, stopping_one(after=4))
    assert ended.code == 0, ended.err
    return only_run(cwd)


def test_two_processes_are_one_run(complete: tuple[Ended, Path]) -> None:
    ended, folder = complete
    learnt = [row for row in rows(folder) if row["loss/value"]]
    assert [int(row["steps"]) for row in learnt] == [SAMPLES * k for k in range(1, ITERATIONS + 1)]
    assert [int(row["iteration"]) for row in evaluations(folder)] == [FIRST_STAGE, ITERATIONS]
    assert (folder / "export" / "policy.onnx").is_file()
    assert ended.out.count("exported to") == ended.out.count("stage 1 ends: ") == 1
    samples = RUN["refit.samples"] * 7 // 8  # of both processes, without the worlds of validation
    assert f"refit to {samples:,} samples" in ended.out


def test_each_process_records_worlds_of_its_own(complete: tuple[Ended, Path]) -> None:
    names = {path.name for path in (complete[1] / "rollouts").iterdir()}
    assert names == {f"stage-{stage}-rank-{rank}.h5" for stage in (1, 2) for rank in (0, 1)}
    observations = []
    for rank in (0, 1):
        with read_rollouts(complete[1] / "rollouts" / f"stage-1-rank-{rank}.h5") as recording:
            assert recording.steps * recording.num_worlds == 2 * SAMPLES  # half of refit.samples
            assert (recording.provenance["rank"], recording.provenance["processes"]) == (rank, 2)
            observations.append(recording.read(["observation"])["observation"])
    assert observations[0].shape == observations[1].shape
    assert not (observations[0] == observations[1]).all(axis=-1).any()


def test_all_stop_where_one_was_asked_to(stopped: Path) -> None:
    content = saved(stopped)
    assert content["iteration"] == 4
    assert [state["recorder"]["rows"] for state in (content, *content["other_processes"])] == [2 * STEPS] * 2
    assert saved(stopped)["rows"] == len(rows(stopped))


def test_a_run_goes_on_as_if_it_had_not_stopped(complete: tuple[Ended, Path], stopped: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(stopped, tmp_path / stopped.name)
    ended = launched([f"resume={folder}"], tmp_path)
    assert ended.code == 0, ended.err
    assert curve(folder) == curve(complete[1])
    assert same_policy(folder, complete[1])


def test_a_run_goes_on_on_another_number_of_processes(stopped: Path, tmp_path: Path) -> None:
    """From two to one and back to two, in the middle of a stage: what was recorded before counts."""
    folder = shutil.copytree(stopped, tmp_path / stopped.name)
    with signalled(5, signal.SIGINT):
        ended = here([f"resume={folder}"], tmp_path)
    assert (ended.code, ended.err) == (0, "")
    assert saved(folder)["steps"] == 4 * SAMPLES + SAMPLES // 2
    assert saved(folder)["other_processes"] == []

    ended = launched([f"resume={folder}"], tmp_path, stopping_one(after=7))
    assert ended.code == 0, ended.err
    assert saved(folder)["iteration"] == 7
    first_stage = [int(row["steps"]) / SAMPLES for row in rows(folder) if row["stage"] == "1" and row["loss/value"]]
    assert first_stage == [1, 2, 3, 4, 4.5, 5.5]
    # Iterations 3 and 4 by two processes, 5 by one and 6 by two again; an eighth of the worlds is for validation.
    assert f"refit to {int(3.5 * SAMPLES * 7 / 8):,} samples" in ended.out
    assert len(saved(folder)["other_processes"]) == 1
    parts = {path.name for path in (folder / "rollouts").glob("stage-1-*")}
    assert parts == {f"stage-1-rank-{name}.h5" for name in ("0", "1", "0-part-2", "0-part-3", "1-part-3")}
    networks = saved(folder)["policy"]
    assert all(value.isfinite().all() for value in networks.values() if isinstance(value, torch.Tensor))


def test_one_processs_failure_ends_all_with_its_reason(tmp_path: Path) -> None:
    code = """
from unittest import mock
from envs.simulation import SimulationError
from gorl_robotics.errors import run_main
def judge(env, faults):
    if rank == 1 and env.generator.initial_seed() != 3:
        raise SimulationError("CartpoleBalance: 9 of 12 worlds became non-finite")
    return ""
with mock.patch("envs.vector_env.VectorEnv.judge", judge): run_main(train.main)
"""
    begin = time.monotonic()
    ended = launched(settings(**RUN), tmp_path, code)
    assert time.monotonic() - begin < 60, "the other process waited for its timeout"
    assert ended.code != 0
    own = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert "error: CartpoleBalance: 9 of 12 worlds became non-finite" in own
    assert len(own) <= 2
    assert all("no longer reach one another" in line for line in own if "non-finite" not in line)
