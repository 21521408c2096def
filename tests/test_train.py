"""The whole program: a run leaves what it promises, and goes on after any end as if there had been none."""

from __future__ import annotations

import gc
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from running import (
    SAMPLES,
    STAGE_ENDS,
    TINY,
    TRAIN,
    Ended,
    contents,
    curve,
    evaluations,
    here,
    killed,
    largest_file,
    no_export,
    only_run,
    process,
    rows,
    same_policy,
    saved,
    settings,
    signalled,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from envs.engine import load_engine
from gorl_robotics import checkpoint, export
from gorl_robotics.config import Config, config_values
from gorl_robotics.recording import read_rollouts

EXPORTED = {
    "policy.onnx",
    "policy_stochastic.onnx",
    "task.onnx",
    "initial_states.npz",
    "policy.json",
    "golden.npz",
    "model.xml",
}
# The others name the commit, which may change while tests run; what the policy does is in the golden pairs.
SAME_BYTES = ("golden.npz", "initial_states.npz", "task.onnx", "model.xml")
ITERATIONS = STAGE_ENDS[-1]


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ended, Path]:
    """A run from start to end, as a process with its output in a pipe."""
    cwd = tmp_path_factory.mktemp("complete")
    ended = process([str(TRAIN), *settings()], cwd)
    assert ended.code == 0, ended.err
    return ended, only_run(cwd)


@pytest.fixture
def run(complete: tuple[Ended, Path], tmp_path: Path) -> Path:
    """A copy of the complete run that may be changed."""
    return shutil.copytree(complete[1], tmp_path / "copy" / complete[1].name)


def assert_same(folder: Path, expected: Path) -> None:
    """Both runs have the same curve, times aside, and the same policy in the end."""
    found, wanted = curve(folder), curve(expected)
    for number, (row, other) in enumerate(zip(found, wanted, strict=False)):
        assert row == other, f"row {number} is the first that differs"
    assert len(found) == len(wanted)
    assert same_policy(folder, expected)


# What a run leaves


def test_a_run_leaves_what_it_promises(complete: tuple[Ended, Path]) -> None:
    folder = complete[1]
    assert {path.name for path in (folder / "export").iterdir()} >= EXPORTED
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert names == {"latest.pt", "stage-1.pt", "stage-2.pt", "stage-3.pt"}
    written = (folder / "config.yaml").read_text()
    assert "task: CartpoleBalance\n" in written
    assert f"total_steps: {TINY['total_steps']}\n" in written
    assert not [path for path in folder.rglob(".*")], "temporary files are left"


def test_every_step_is_counted(complete: tuple[Ended, Path]) -> None:
    found = rows(complete[1])
    learnt = [row for row in found if row["loss/value"]]
    assert [int(row["iteration"]) for row in learnt] == list(range(1, ITERATIONS + 1))
    assert [int(row["steps"]) for row in learnt] == [SAMPLES * k for k in range(1, ITERATIONS + 1)]
    stages = [sum(int(row["iteration"]) > end for end in STAGE_ENDS) + 1 for row in learnt]
    assert [int(row["stage"]) for row in learnt] == stages
    assert int(found[-1]["steps"]) <= TINY["total_steps"]
    assert [int(row["iteration"]) for row in evaluations(complete[1])] == list(STAGE_ENDS)
    # Without any whole episode the tests below would compare a curve of nothing.
    assert any(math.isfinite(float(row["return/monitor_mean"])) for row in learnt)


def test_the_events_are_the_curve(complete: tuple[Ended, Path]) -> None:
    events = EventAccumulator(str(complete[1]))
    events.Reload()
    drawn = events.Scalars("loss/value")
    assert [event.step for event in drawn] == [SAMPLES * k for k in range(1, ITERATIONS + 1)]
    assert len(events.Scalars("evaluation/deterministic_mean")) == len(STAGE_ENDS)


def test_each_stages_last_samples_are_recorded(complete: tuple[Ended, Path]) -> None:
    iterations = (8, 7, 7)  # as many as refit.samples allows, of those there were
    for stage, count in enumerate(iterations, start=1):
        with read_rollouts(complete[1] / "rollouts" / f"stage-{stage}-rank-0.h5") as recording:
            assert recording.steps * recording.num_worlds == count * SAMPLES
            assert recording.provenance["task"] == "CartpoleBalance"
            assert abs(recording.read(["action"])["action"]).max() > 0


def test_the_decoder_is_refitted_between_stages(complete: tuple[Ended, Path]) -> None:
    ended, folder = complete
    assert ended.out.count("refit to ") == len(STAGE_ENDS) - 1
    displaced = [float(row["evaluation/decoder_displacement"]) for row in evaluations(folder)]
    assert displaced[0] == 0
    assert min(displaced[1:]) > 0
    first, last = (saved(folder, f"stage-{k}.pt")["policy"] for k in (1, 3))
    decoder = [name for name in first if name.startswith("decoder.network")]
    assert any(not torch.equal(first[name], last[name]) for name in decoder)


def test_a_pipe_gets_plain_lines(complete: tuple[Ended, Path]) -> None:
    ended, folder = complete
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\x9b]", ended.out + ended.err)
    assert len(ended.out.splitlines()) < 40
    assert f"exported to {folder}/export" in ended.out.replace("to runs", f"to {folder.parents[2]}/runs")


def test_the_same_seed_gives_the_same_curve_without_storage(complete: tuple[Ended, Path], tmp_path: Path) -> None:
    closing = mock.patch("torch.utils.tensorboard.SummaryWriter.close")
    with no_export(), closing as closed:
        ended = here(settings(storage__enabled="false"), tmp_path)
    assert ended.code == 0, ended.err
    closed.assert_called_once_with()  # several processes end without Python's cleaning up
    folder = only_run(tmp_path)
    assert not (folder / "rollouts").exists()
    assert ended.out.count("refit to ") == len(STAGE_ENDS) - 1
    assert_same(folder, complete[1])


def test_evaluations_within_stages_change_nothing_else(complete: tuple[Ended, Path], tmp_path: Path) -> None:
    """Where a multiple of so many steps is passed, once each, even if the run is stopped right there."""
    with signalled(5, signal.SIGTERM):
        ended = here(settings(evaluation_steps=SAMPLES * 9 // 2), tmp_path)
    assert ended.code == 0, ended.err
    folder = only_run(tmp_path)
    with no_export():
        assert here([f"resume={folder}"], tmp_path).code == 0
    within = (5, 14, 18)  # 9 and 22.5 iterations are where a stage ends
    assert [int(row["iteration"]) for row in evaluations(folder)] == sorted((*STAGE_ENDS, *within))
    kept = [
        row for row in curve(folder) if not (row["evaluation/deterministic_mean"] and int(row["iteration"]) in within)
    ]
    assert kept == curve(complete[1])
    assert same_policy(folder, complete[1])
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert names == {*(f"steps-{n * SAMPLES}.pt" for n in within), *(f"stage-{k}.pt" for k in (1, 2, 3)), "latest.pt"}


def test_what_was_evaluated_within_a_stage_goes_on_and_is_exported(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    with no_export():
        assert here(settings(evaluation_steps=7 * SAMPLES), tmp_path / "first").code == 0
    first = only_run(tmp_path / "first")
    before, kept = contents(first), first / "checkpoints" / f"steps-{14 * SAMPLES}.pt"
    with no_export():
        ended = here([f"resume={kept}"], tmp_path)
    assert (ended.code, ended.err) == (0, "")
    assert contents(first) == before, "what was recorded after it included"
    folder = only_run(tmp_path)
    assert_same(folder, first)
    (evaluated,) = [row for row in evaluations(first) if int(row["iteration"]) == 14]
    assert here([str(kept)], tmp_path, export.main).code == 0
    described = json.loads((first / f"export-{kept.stem}" / "policy.json").read_text())
    returns = described["provenance"]["returns"]
    assert returns["deterministic_mean"] == pytest.approx(float(evaluated["evaluation/deterministic_mean"]))


# How a run goes on


def test_any_end_may_be_gone_on_from(complete: tuple[Ended, Path], tmp_path: Path) -> None:
    """Killed in the first stage, stopped in the second and at the very last step: the curve is the same."""
    ended = killed(4, settings(checkpoint_seconds=0), tmp_path)
    assert ended.code == -signal.SIGKILL, ended.err
    folder = only_run(tmp_path)
    assert saved(folder)["iteration"] == 3, "one iteration is lost, since every one leaves a checkpoint"

    stopped_in_stage_2 = STAGE_ENDS[0] + 3
    for iteration, kind in ((stopped_in_stage_2, signal.SIGTERM), (ITERATIONS, signal.SIGINT)):
        with signalled(iteration, kind):
            ended = here([f"resume={folder}"], tmp_path)
        assert (ended.code, ended.err) == (0, "")
        assert f"python train.py resume={folder}" in ended.out.splitlines()[-1]
        assert saved(folder)["iteration"] == iteration
        assert only_run(tmp_path) == folder
        if iteration == stopped_in_stage_2:
            assert saved(folder)["recorder"]["rows"] > 0, "no recording was under way"

    ended = here([f"resume={folder}"], tmp_path)
    assert ended.code == 0, ended.err
    assert_same(folder, complete[1])
    assert {path.name for path in (folder / "export").iterdir()} >= EXPORTED
    for name in SAME_BYTES:
        assert (folder / "export" / name).read_bytes() == (complete[1] / "export" / name).read_bytes(), name


def test_a_signal_from_outside_ends_a_run_cleanly(tmp_path: Path) -> None:
    """The run would last for hours, so that the signal, sent as soon as there is a curve, always meets it training."""
    command = [sys.executable, str(TRAIN), *settings(total_steps="1e9")]
    child = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not [path for path in tmp_path.glob("runs/*/*/metrics.csv") if path.read_text().count("\n") > 1]:
            assert time.monotonic() < deadline
            assert child.poll() is None
            time.sleep(0.02)
        child.send_signal(signal.SIGTERM)
        out, err = child.communicate(timeout=60)
    finally:
        child.kill()
    folder = only_run(tmp_path)
    assert (child.returncode, err) == (0, "")
    assert f"python train.py resume={folder.relative_to(tmp_path)}" in out.splitlines()[-1]
    assert saved(folder)["rows"] == len(rows(folder))


def test_a_run_stopped_before_its_first_evaluation_is_exported_and_goes_on(tmp_path: Path) -> None:
    with signalled(2, signal.SIGINT):
        assert here(settings(), tmp_path).code == 0
    folder = only_run(tmp_path)
    assert saved(folder)["evaluation"] is None
    ended = here([str(folder)], tmp_path, export.main)
    assert ended.code == 0, ended.err
    described = json.loads((folder / "export" / "policy.json").read_text())
    assert described["provenance"]["returns"] is None
    assert len(np.load(folder / "export" / "initial_states.npz")["qpos"]) == 2 * TINY["evaluation_worlds"]
    with signalled(3, signal.SIGINT):
        assert here([f"resume={folder}"], tmp_path).code == 0
    assert [int(row["steps"]) for row in rows(folder)] == [SAMPLES, 2 * SAMPLES, 3 * SAMPLES]


def test_an_older_checkpoint_goes_on_in_a_new_folder(complete: tuple[Ended, Path], run: Path, tmp_path: Path) -> None:
    before = contents(run)
    with no_export():
        ended = here([f"resume={run}/checkpoints/stage-1.pt"], tmp_path)
    assert ended.code == 0, ended.err
    assert contents(run) == before
    folder = only_run(tmp_path)
    assert_same(folder, complete[1])
    assert not (folder / "rollouts" / "stage-1-rank-0.h5").exists()


def test_a_raised_total_goes_on(complete: tuple[Ended, Path], run: Path, tmp_path: Path) -> None:
    former = curve(complete[1])
    with no_export():
        ended = here([f"resume={run}", f"total_steps={TINY['total_steps'] + 2 * SAMPLES}"], tmp_path)
    assert ended.code == 0, ended.err
    assert curve(run)[: len(former)] == former
    added = rows(run)[len(former) :]
    assert [(int(row["iteration"]), int(row["stage"])) for row in added] == [(24, 3), (25, 3), (25, 3)]
    assert saved(run)["steps"] == 25 * SAMPLES
    assert not same_policy(run, complete[1])


def test_a_complete_run_is_not_gone_on_from(run: Path, tmp_path: Path) -> None:
    before = contents(run)
    ended = here([f"resume={run}"], tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: ")
    assert ended.err.endswith("the run is complete at 11,776 steps; raise total_steps, to at least 12288\n")
    assert contents(run) == before


def test_a_failing_recorder_costs_nothing_else(run: Path, tmp_path: Path) -> None:
    limit = int(1.15 * (run / "checkpoints" / "latest.pt").stat().st_size)
    for stage in (2, 3):
        assert (run / "rollouts" / f"stage-{stage}-rank-0.h5").stat().st_size > limit, "nothing would fail"
    shutil.rmtree(run / "rollouts")  # else copying them would fail
    with largest_file(limit):
        ended = here([f"resume={run}/checkpoints/stage-1.pt"], tmp_path)
    assert (ended.code, ended.err) == (0, "")
    failures = [line for line in ended.out.splitlines() if "recording to " in line]
    assert len(failures) == 2, "a line for each stage, the last one included"
    assert all("stage-" in line and "File too large" in line for line in failures)
    assert ended.out.count("refit to ") == 1
    folder = only_run(tmp_path)
    assert saved(folder)["steps"] == saved(run)["steps"]
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"latest.pt", "stage-2.pt", "stage-3.pt"}
    assert {path.name for path in (folder / "export").iterdir()} >= EXPORTED


def test_there_is_no_refit_to_nothing(tmp_path: Path) -> None:
    """A run whose disk failed, interrupted after the last rollout of a stage."""
    with signalled(STAGE_ENDS[0], signal.SIGTERM):
        assert here(settings(), tmp_path).code == 0
    folder = only_run(tmp_path)
    failed = saved(folder)
    failed["recorder"].update(rows=0, memory=[])
    checkpoint.save(folder / "checkpoints" / checkpoint.LATEST, failed)
    with signalled(STAGE_ENDS[0] + 1, signal.SIGTERM):
        ended = here([f"resume={folder}"], tmp_path)
    assert ended.code == 0, ended.err
    assert "no refit: nothing is recorded of stage 1" in ended.out
    assert "refit to " not in ended.out
    first, last = (saved(folder, name)["policy"] for name in ("stage-1.pt", checkpoint.LATEST))
    for name, value in failed["policy"].items():
        assert torch.equal(first[name], value)
        assert not name.startswith("decoder") or torch.equal(last[name], value)


# What a run is used for


def test_a_policy_is_tested(complete: tuple[Ended, Path], tmp_path: Path) -> None:
    folder = complete[1]
    ended = here(["test=true", f"checkpoint={folder}"], tmp_path)
    assert (ended.code, ended.err) == (0, "")
    assert not list(tmp_path.iterdir())
    last = evaluations(folder)[-1]
    for kind in ("deterministic", "stochastic"):
        pattern = rf"{kind} +return +([\d.]+) +standard deviation +([\d.]+) +10th percentile +([\d.]+)"
        (found,) = re.findall(pattern, ended.out)
        expected = [float(last[f"evaluation/{kind}_{what}"]) for what in ("mean", "std", "p10")]
        assert [float(number) for number in found] == pytest.approx(expected, abs=0.006)


def test_a_run_is_exported_and_played(complete: tuple[Ended, Path], run: Path, tmp_path: Path) -> None:
    shutil.rmtree(run / "export")
    ended = process(["-m", "gorl_robotics.export", str(run)], tmp_path)
    assert (ended.code, ended.out) == (0, f"{run}/export\n"), ended.err
    for name in SAME_BYTES:
        assert (run / "export" / name).read_bytes() == (complete[1] / "export" / name).read_bytes(), name
    ended = process(["-m", "gorl_robotics.playback", str(run), "--episodes", "2", "--json"], tmp_path)
    assert ended.code == 0, ended.err
    result = json.loads(ended.out)
    assert (result["task"], result["episodes"]) == ("CartpoleBalance", 2)
    assert abs(result["difference_mean"]) < 0.01 * result["return_mean"]


def test_help_lists_every_setting(tmp_path: Path) -> None:
    ended = here(["--help"], tmp_path)
    assert (ended.code, ended.err) == (0, "")
    for name in config_values(Config()):
        assert f"  {name}=" in ended.out
    assert not list(tmp_path.iterdir())


def test_garbage_is_collected_after_all_imports() -> None:
    assert gc.isenabled()  # `running` has imported train.py
    load_engine(torch.device("cuda"))
    assert gc.isenabled()
