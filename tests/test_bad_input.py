"""Whatever a user gives that cannot be used: one line, exit code 2, and nothing half-written."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import mujoco
import pytest
import torch
from running import TRAIN, Ended, contents, here, largest_file, only_run, process, saved, settings, signalled

import tasks
from assets import load
from envs.task import Task
from gorl_robotics import export, playback
from tasks import registry

HELD_BACK = "held back"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run stopped in its first stage, with a recording under way."""
    cwd = tmp_path_factory.mktemp("stopped")
    with signalled(2, signal.SIGTERM):
        ended = here(settings(), cwd)
    assert ended.code == 0, ended.err
    folder = only_run(cwd)
    assert saved(folder)["recorder"]["rows"] == 64
    return folder


@pytest.fixture
def stopped(original: Path, tmp_path: Path) -> Path:
    """A copy of it that may be changed, apart from where `refused` runs the program."""
    return shutil.copytree(original, tmp_path / HELD_BACK / original.name)


def refused(arguments: list[str], tmp_path: Path, main: Callable[[], None] | None = None) -> str:
    """The one line that answers the arguments, which changed no file."""
    before = contents(tmp_path)
    cwd = tmp_path / "cwd"
    cwd.mkdir(exist_ok=True)
    ended = here(arguments, cwd, main) if main else here(arguments, cwd)
    assert contents(tmp_path) == before
    assert not [path for path in cwd.rglob("*") if path.parent.parent.name == "runs"], "an empty run folder is left"
    return line_of(ended)


def line_of(ended: Ended) -> str:
    assert ended.code == 2
    assert ended.err.startswith("error: ")
    assert ended.err.endswith("\n")
    assert ended.err.count("\n") == 1
    return ended.err.removeprefix("error: ").rstrip("\n")


# Settings


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["task=CartpolBalance"], ["'CartpolBalance'", "did you mean 'CartpoleBalance'?"]),
        (["num_envs=8"], ["task=NAME is missing", "CartpoleBalance", "HopperStand"]),
        ([*settings(), "num_env=8"], ["'num_env'", "did you mean 'num_envs'?"]),
        ([*settings(), "ppo.epoch=8"], ["'ppo.epoch'", "did you mean 'ppo.epochs'?"]),
        ([*settings(), "num_envs=many"], ["num_envs='many'", "expected a whole number"]),
        ([*settings(), "num_envs=8.5"], ["num_envs='8.5'", "expected a whole number"]),
        ([*settings(), "storage.enabled=perhaps"], ["storage.enabled='perhaps'", "expected true or false"]),
        ([*settings(), "networks.policy=wide"], ["networks.policy='wide'", "expected a list"]),
        ([*settings(), "num_envs=0"], ["num_envs=0", "expected at least 1"]),
        ([*settings(), "device=foo"], ["device='foo'", "expected auto, cuda, cuda:N or cpu"]),
        ([*settings(), "device=mps"], ["device='mps'", "expected auto, cuda, cuda:N or cpu"]),
        ([*settings(), "ppo.minibatches=3"], ["ppo.minibatches=3", "expected a divisor", "= 512"]),
        ([*settings(), "total_steps=1000"], ["total_steps=1000", "at least 1707", "= 512"]),
        ([*settings(), "fast"], ["'fast' is not a setting", "NAME=VALUE"]),
        ([*settings(), "--fast"], ["'--fast' is not a setting", "--help"]),
        (["config=missing.yaml"], ["config=missing.yaml", "No such file"]),
        (["config=."], ["config=.", "Is a directory"]),
        (["config="], ["config=FILE is missing"]),
        (["resume="], ["resume=RUN is missing"]),
        (["test=true"], ["checkpoint=RUN is missing"]),
    ],
)
def test_a_setting_that_cannot_be_used(arguments: list[str], fragments: list[str], tmp_path: Path) -> None:
    line = refused(arguments, tmp_path)
    assert all(fragment in line for fragment in fragments), line


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("task: [unclosed", "is not YAML"),
        ("just words", "holds no settings"),
        ("task: CartpoleBalance\nnum_env: 8", "did you mean 'num_envs'?"),
        ("task: CartpoleBalance\nppo:\n  clip: wide", "ppo.clip='wide': expected a number"),
        (b"\xff\xfe\x00", "this is no text"),
    ],
)
def test_a_file_of_settings_that_cannot_be_used(text: str | bytes, fragment: str, tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    assert fragment in refused([f"config={path}"], tmp_path)


def test_cuda_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device; expected device=cpu or" in refused(settings(device="cuda"), tmp_path)


def test_the_process_itself_says_one_line(tmp_path: Path) -> None:
    ended = process([str(TRAIN), "task=HoperStand"], tmp_path)
    assert line_of(ended) == "unknown task 'HoperStand'; did you mean 'HopperStand'?"
    assert ended.out == ""
    assert not list(tmp_path.iterdir())


# Tasks


class Broken(type(tasks.make("CartpoleBalance"))):  # type: ignore[misc]
    """A cart-pole with a moving body that weighs nothing, which MuJoCo does not compile."""

    name = "Broken"

    def model(self) -> mujoco.MjSpec:
        spec = mujoco.MjSpec()
        spec.worldbody.add_body(name="ghost").add_freejoint()
        return spec


class Unreadable(Broken):
    """The same from a file that is no model."""

    path: Path

    def model(self) -> mujoco.MjSpec:
        return load(f"file:{self.path}")


def test_a_model_that_does_not_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._TASKS, "Broken", Broken)
    assert "Broken: the model does not compile" in refused(settings(task="Broken"), tmp_path)


@pytest.mark.parametrize("text", ["<mujoco><worldbody></mujoco>", "no model", None])
def test_a_model_file_that_cannot_be_read(text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "robot.xml"
    if text is not None:
        path.write_text(text)
    task: type[Task] = type("Unreadable", (Unreadable,), {"path": path})
    monkeypatch.setitem(registry._TASKS, "Broken", task)
    assert "robot.xml" in refused(settings(task="Broken"), tmp_path)


# Runs


@pytest.mark.parametrize("setting", [["resume"], ["test=true", "checkpoint"]])
def test_a_run_that_is_none(setting: list[str], stopped: Path, tmp_path: Path) -> None:
    *other, name = setting
    assert "does not exist" in refused([*other, f"{name}={stopped.parent}/missing"], tmp_path)
    assert stopped.name in refused([*other, f"{name}={stopped.parent}/missing"], tmp_path), "no run there is offered"
    assert "expected a run folder" in refused([*other, f"{name}={stopped.parent}"], tmp_path)
    assert "not a readable checkpoint" in refused([*other, f"{name}={stopped}/config.yaml"], tmp_path)


@pytest.mark.parametrize("setting", [["resume"], ["test=true", "checkpoint"]])
def test_a_damaged_checkpoint(setting: list[str], stopped: Path, tmp_path: Path) -> None:
    *other, name = setting
    path = stopped / "checkpoints" / "latest.pt"
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-1], b"", b"words\n"):
        path.write_bytes(damaged)
        assert "latest.pt is not a readable checkpoint" in refused([*other, f"{name}={stopped}"], tmp_path)


@pytest.mark.parametrize(
    ("argument", "fragments"),
    [
        ("task=HopperStand", ["task=HopperStand", "has task=CartpoleBalance", "cannot change"]),
        ("num_envs=16", ["num_envs=16", "has num_envs=8", "cannot change"]),
        ("ppo.clip=0.3", ["ppo.clip=0.3", "has ppo.clip=0.2", "cannot change"]),
        ("total_steps=5000", ["total_steps=5000", "has 12100"]),
        ("task=HoperStand", ["task=HoperStand", "has task=CartpoleBalance"]),
    ],
)
def test_a_setting_that_a_run_cannot_change(argument: str, fragments: list[str], stopped: Path, tmp_path: Path) -> None:
    line = refused([f"resume={stopped}", argument], tmp_path)
    assert all(fragment in line for fragment in fragments), line


def test_more_processes_than_the_steps_are_enough_for(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gorl_robotics.distributed.size", lambda: 8)
    line = refused([f"resume={stopped}"], tmp_path)
    assert "expected at least 13654, so that every stage has a rollout of 8 processes x num_envs" in line


def test_a_truncated_recording(stopped: Path, tmp_path: Path) -> None:
    """It is told before anything is overwritten: with the recording back in its place the run goes on."""
    path = stopped / "rollouts" / "stage-1-rank-0.h5"
    whole, before = path.read_bytes(), contents(stopped)
    for damaged in (whole[: len(whole) // 2], whole[:100], b""):
        path.write_bytes(damaged)
        line = line_of(here([f"resume={stopped}"], tmp_path))
        assert "stage-1-rank-0.h5 is not a readable HDF5 file" in line
        assert path.read_bytes() == damaged
    path.write_bytes(whole)
    after = contents(stopped)
    assert {name: after[name] for name in before if "tfevents" not in name} == {
        name: before[name] for name in before if "tfevents" not in name
    }
    with signalled(3, signal.SIGTERM):
        ended = here([f"resume={stopped}"], tmp_path)
    assert (ended.code, ended.err) == (0, "")
    assert saved(stopped)["recorder"]["rows"] == 128


def test_a_lost_recording(stopped: Path, tmp_path: Path) -> None:
    shutil.rmtree(stopped / "rollouts")
    assert "there is no recording at" in line_of(here([f"resume={stopped}"], tmp_path))


def test_lost_metrics(stopped: Path, tmp_path: Path) -> None:
    (stopped / "metrics.csv").unlink()
    assert "metrics.csv is missing" in refused([f"resume={stopped}"], tmp_path)


def test_a_checkpoint_out_of_its_run_folder_is_not_gone_on_from(stopped: Path, tmp_path: Path) -> None:
    """What is around it is not a run's: nothing there is written or removed."""
    (tmp_path / "mine").mkdir()
    path = shutil.copy(stopped / "checkpoints" / "latest.pt", tmp_path / "mine")
    before = {each for each in tmp_path.rglob("*")}
    assert "is in no run folder; expected RUN/checkpoints/latest.pt" in refused([f"resume={path}"], tmp_path)
    assert before <= {each for each in tmp_path.rglob("*")}


@pytest.mark.parametrize("program", [export, playback])
def test_a_run_that_cannot_be_exported_or_played(
    program: object, stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = program.main  # type: ignore[attr-defined]
    assert "missing" in refused([str(tmp_path / "missing")], tmp_path, main)
    (stopped / "checkpoints" / "latest.pt").write_text("words")
    assert refused([str(stopped)], tmp_path, main)


# Disks


def test_a_folder_of_runs_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    line = refused(settings(runs=f"{tmp_path}/file/runs"), tmp_path)
    assert "file/runs" in line
    assert "Not a directory" in line


def test_a_disk_too_full_for_a_checkpoint_leaves_the_former_one(stopped: Path, tmp_path: Path) -> None:
    before = contents(stopped / "checkpoints")
    with largest_file(30_000):
        line = line_of(here([f"resume={stopped}", "checkpoint_seconds=0"], tmp_path))
    assert "latest.pt: the checkpoint could not be written; is the disk full?" in line
    assert contents(stopped / "checkpoints") == before


def test_a_disk_too_full_for_a_run_to_begin_from_another(stopped: Path, tmp_path: Path) -> None:
    (stopped / "checkpoints" / "latest.pt").rename(stopped / "checkpoints" / "stage-0.pt")
    with largest_file(20_000):
        line = refused([f"resume={stopped}/checkpoints/stage-0.pt"], tmp_path)
    assert line.endswith("File too large")
