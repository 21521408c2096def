"""A whole run with an audition: it is held where it should be, and the run goes on from any point of it."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from running import (
    Ended,
    curve,
    evaluations,
    here,
    no_export,
    only_run,
    rows,
    same_policy,
    saved,
    settings,
    signalled,
    stopping_one,
    torchrun,
)

from gorl_robotics import checkpoint

WORLDS, ROLLOUT_STEPS, AUDITION = 512, 4, 2
SAMPLES = WORLDS * ROLLOUT_STEPS
HELD: dict[str, Any] = {
    "num_envs": WORLDS,
    "ppo__rollout_steps": ROLLOUT_STEPS,
    "total_steps": 20 * SAMPLES,
    "stages__fractions": "[0.5,0.5]",  # of the 18 iterations that an audition of two leaves
    "stages__audition": AUDITION,
    "refit__samples": 3 * SAMPLES,
}
TOGETHER = {**HELD, "total_steps": 40 * SAMPLES, "refit__samples": 6 * SAMPLES}  # two processes'
STAGE_ENDS = (11, 20)


@pytest.fixture(scope="module", autouse=True)
def unexported() -> Iterator[None]:
    with no_export():
        yield


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ended, Path]:
    """A run from start to end."""
    cwd = tmp_path_factory.mktemp("complete")
    ended = here(settings(**HELD), cwd)
    assert ended.code == 0, ended.err
    return ended, only_run(cwd)


def weights(checkpoint: dict[str, Any]) -> list[torch.Tensor]:
    return [tensor for name, tensor in checkpoint["policy"].items() if name.startswith("latent")]


def test_it_is_held_in_the_first_stage_and_every_step_counts(complete: tuple[Ended, Path]) -> None:
    ended, folder = complete
    (line,) = [line for line in ended.out.splitlines() if line.startswith("audition: ")]
    first, *others = (float(number) for number in re.findall(r"\d\.\d{3}", line))
    assert len(others) == 2
    assert ("the best of them goes on" in line) == (max(others) > 1.05 * first)
    learnt = [row for row in rows(folder) if row["loss/value"]]
    assert [int(row["steps"]) for row in learnt] == [SAMPLES * k for k in range(1, 21)]
    assert [int(row["iteration"]) for row in evaluations(folder)] == list(STAGE_ENDS)
    assert saved(folder)["audition"] is None


@pytest.mark.parametrize("iteration", [2, 3, 4])
def test_a_run_that_is_stopped_around_it_goes_on_as_it_would_have(
    complete: tuple[Ended, Path], tmp_path: Path, iteration: int
) -> None:
    with signalled(iteration, signal.SIGTERM):
        ended = here(settings(**HELD), tmp_path)
    assert ended.code == 0, ended.err
    folder = only_run(tmp_path)
    stopped = saved(folder)
    assert stopped["iteration"] == iteration
    auditioning = AUDITION < iteration <= 2 * AUDITION
    assert (stopped["audition"] is not None) == auditioning
    if auditioning:
        assert len(stopped["audition"]["candidates"]) == 2
    assert here([f"resume={folder}"], tmp_path).code == 0
    assert curve(folder) == curve(complete[1])
    assert same_policy(folder, complete[1])


def test_what_is_saved_in_it_is_the_first_policy(tmp_path: Path) -> None:
    found = []
    for iteration in (AUDITION, AUDITION + 1):
        cwd = tmp_path / str(iteration)
        cwd.mkdir()
        with signalled(iteration, signal.SIGTERM):
            assert here(settings(**HELD), cwd).code == 0
        found.append(weights(saved(only_run(cwd))))
    assert all(torch.equal(before, after) for before, after in zip(*found, strict=True))


@pytest.mark.parametrize("method", ["fpo", "dppo"])
def test_methods_without_a_gaussian_can_audition(method: str, tmp_path: Path) -> None:
    ended = here(settings(**HELD, method=method), tmp_path)
    assert ended.code == 0, ended.err
    assert "audition: " in ended.out


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ended, Path]:
    """A run of two processes."""
    cwd = tmp_path_factory.mktemp("together")
    ended = torchrun(settings(**TOGETHER), cwd)
    assert ended.code == 0, ended.err
    return ended, only_run(cwd)


def test_two_processes_hold_one_together(together: tuple[Ended, Path]) -> None:
    ended, folder = together
    assert ended.out.count("audition: ") == ended.out.count("the other 4 ") == 1
    learnt = [row for row in rows(folder) if row["loss/value"]]
    assert [int(row["steps"]) for row in learnt] == [2 * SAMPLES * k for k in range(1, 21)]
    assert [int(row["iteration"]) for row in evaluations(folder)] == list(STAGE_ENDS)


def test_two_processes_go_on_in_it_as_they_would_have_and_one_with_the_best(
    together: tuple[Ended, Path], tmp_path: Path
) -> None:
    ended = torchrun(settings(**TOGETHER), tmp_path, stopping_one(after=3))
    assert ended.code == 0, ended.err
    folder = only_run(tmp_path)
    copy = shutil.copytree(folder, tmp_path / "copy")
    ended = torchrun([f"resume={folder}"], tmp_path)
    assert ended.code == 0, ended.err
    assert curve(folder) == curve(together[1])
    assert same_policy(folder, together[1])
    ended = here([f"resume={copy}"], tmp_path)
    assert ended.code == 0, ended.err
    assert "the other 2 " in ended.out, "there is no room for more"


def test_it_is_dropped_where_more_processes_leave_no_room_for_it(tmp_path: Path) -> None:
    with signalled(3, signal.SIGTERM):
        assert here(settings(**HELD), tmp_path).code == 0
    folder = only_run(tmp_path)
    assert saved(folder)["audition"] is not None
    with mock.patch("train.candidates", return_value=0):
        ended = here([f"resume={folder}"], tmp_path)
    assert ended.code == 0, ended.err
    assert "audition: " not in ended.out
    assert int(rows(folder)[-1]["steps"]) == 20 * SAMPLES


@pytest.mark.parametrize(("iteration", "held"), [(AUDITION, True), (AUDITION + 1, False)])
def test_raised_steps_make_room_for_a_whole_one_or_none(tmp_path: Path, iteration: int, held: bool) -> None:
    with signalled(iteration, signal.SIGTERM):
        assert here(settings(**{**HELD, "total_steps": 10 * SAMPLES}), tmp_path).code == 0
    folder = only_run(tmp_path)
    with signalled(AUDITION + 2, signal.SIGTERM):
        ended = here([f"resume={folder}", f"total_steps={20 * SAMPLES}"], tmp_path)
    assert ended.code == 0, ended.err
    assert (saved(folder)["audition"] is not None) == held


@pytest.mark.parametrize("steps", [3 * SAMPLES // 2, 6 * SAMPLES], ids=["more processes", "fewer processes"])
def test_on_another_number_of_processes_it_has_as_many_iterations(tmp_path: Path, steps: int) -> None:
    """Half as many, or twice as many, would have done so many steps when it was interrupted."""
    with signalled(AUDITION + 1, signal.SIGTERM):
        assert here(settings(**HELD), tmp_path).code == 0
    folder = only_run(tmp_path)
    checkpoint.save(folder / "checkpoints" / checkpoint.LATEST, {**saved(folder), "steps": steps})
    for iteration, over in ((2 * AUDITION, False), (2 * AUDITION + 1, True)):
        with signalled(iteration, signal.SIGTERM):
            ended = here([f"resume={folder}"], tmp_path)
        assert ended.code == 0, ended.err
        assert (saved(folder)["audition"] is None) == over
        assert ("audition: " in ended.out) == over
