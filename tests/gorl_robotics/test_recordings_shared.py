"""Recordings of as many processes as there were, for as many as there are now."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from recorded_stage import SAMPLES, STEPS, Run, assert_data, filled, interrupted
from torch import Tensor

from gorl_robotics.recorder import shared_out


def first_column(data: tuple[Tensor, Tensor]) -> list[float]:
    """One observed number of each row, which tells the rows apart."""
    return data[0][:, 0, 0].tolist()


@pytest.mark.parametrize("enabled", [True, False], ids=["disk", "memory"])
@pytest.mark.parametrize("processes", [1, 3])
def test_recordings_are_shared_out_among_another_number_of_processes(
    tmp_path: Path, enabled: bool, processes: int
) -> None:
    """Two recorded rollouts 8 and 9, and 5 and 6. The newcomers add 10; the checkpoint goes through a file."""
    written = {0: (8, 9), 1: (5, 6)}
    states = []
    for rank, numbers in written.items():
        run = Run(tmp_path, enabled, rank=rank)
        for number in numbers:
            for name, value in filled(number).items():
                getattr(run.rollout, name).copy_(value)
            run.recorder.add(9 * SAMPLES)
        states.append(interrupted(run, tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.h5")}
    assert len(before) == 2 * enabled

    expected = torch.cat([filled(n)["observation"] for n in (8, 9, 5, 6)])[:, 0, 0].tolist()
    found, added = [], filled(10)["observation"][:, 0, 0].tolist()
    for rank in range(processes):
        run = Run(tmp_path, enabled, shared_out(states, rank, processes), rank=rank, kept=10)
        run.add(10)
        column = first_column(run.recorder.data())
        assert column[-STEPS:] == added
        assert abs(len(column) - STEPS - len(expected) / processes) < 1
        found += column[:-STEPS]
    assert found == expected
    assert all(path.read_bytes() == content for path, content in before.items())


def test_recordings_are_shared_out_again(tmp_path: Path) -> None:
    """One process records rollout 8, two record 9 and 10, and one goes on with 10."""

    def resumed(processes: int) -> list[Run]:
        return [
            Run(tmp_path, resume=shared_out(states, rank, processes), rank=rank, kept=10) for rank in range(processes)
        ]

    run = Run(tmp_path)
    run.add(8)
    states = [interrupted(run, tmp_path)]
    for run, number in zip(resumed(2), (9, 10), strict=True):
        run.add(number)
        states.append(interrupted(run, tmp_path))
    del states[0]
    (run,) = resumed(1)
    run.add(10)
    rows = {number: filled(number)["observation"][:, 0, 0].tolist() for number in (8, 9, 10)}
    half = STEPS // 2
    assert first_column(run.recorder.data()) == [*rows[8][:half], *rows[9], *rows[8][half:], *rows[10], *rows[10]]


def test_nothing_recorded_is_nothing_to_share(tmp_path: Path) -> None:
    assert shared_out([None, None], 0, 3) is None
    states = [interrupted(Run(tmp_path, rank=rank), tmp_path) for rank in range(2)]
    run = Run(tmp_path, resume=shared_out(states, 0, 1))
    run.add(10)
    assert_data(run.recorder.data(), 10)
    assert run.path.exists(), "the name is that of any run"
