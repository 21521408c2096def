"""The matrix of learning runs: what is run, skipped, gone on with, reported; and what a result file holds."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import pytest
from running import here, only_run, rows, settings

from benchmarks import learning, matrix, mps
from benchmarks.arguments import apart, checked
from benchmarks.collect import collect, is_complete
from benchmarks.matrix import Cell, Matrix
from gorl_robotics import checkpoint
from gorl_robotics.config import parse_arguments
from gorl_robotics.errors import InputError

# Does what train.py does to its run folder, in a tenth of a second; what happens to it depends on its seed.
FAKE = """
import csv, os, pathlib, shutil, signal, sys, time
here = pathlib.Path(__file__).parent
given = dict(argument.split("=", 1) for argument in sys.argv[1:])
began = time.monotonic()
def finish(folder, last):
    with (folder / "metrics.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["steps", "return/monitor_mean", "return/monitor_p10", "reward/training_mean",
            "evaluation/deterministic_mean", "evaluation/deterministic_p10", "time/steps_per_second", "time/elapsed"])
        writer.writerow([0, "", "", "", 1.0, 0.5, "", 3.0])
        for steps in range(20, last + 1, 20):
            writer.writerow([steps, steps / 2, "nan", 0.1, "", "", 10.0, 3.0 + steps / 10])
        if last == 100:
            writer.writerow([last, "", "", "", 900.0, 800.0, "", 15.0])
    (folder / "checkpoints").mkdir(exist_ok=True)
    shutil.copy(here / "latest.pt", folder / "checkpoints" / "latest.pt")
with (here / "calls").open("a") as calls:
    print(*map(os.environ.get, ("CUDA_VISIBLE_DEVICES", "CUDA_MPS_PIPE_DIRECTORY")), *sys.argv[1:], file=calls)
if "resume" in given:
    finish(pathlib.Path(given["resume"]), 100)
    sys.exit()
folder = pathlib.Path(given["runs"]) / given["task"] / "run"
folder.mkdir(parents=True)
(folder / "config.yaml").write_text("{num_envs: 10, seed: %s, runs: /somewhere, total_steps: 105, "
    "ppo: {rollout_steps: 2}, stages: {fractions: [1.0]}}" % given["seed"])
if given["seed"] == "2":
    finish(folder, 60)
    os.kill(os.getpid(), signal.SIGKILL)
if given["seed"] == "3":
    sys.exit("error: out of luck")
if given["seed"] == "4":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    (here / "waiting").touch()
    time.sleep(20)
time.sleep(0.1)
finish(folder, 100)
with (here / "spans").open("a") as spans:
    print(os.environ.get("CUDA_VISIBLE_DEVICES"), began, time.monotonic(), file=spans)
"""

# Does what NVIDIA's does for its callers: a daemon that lives until it is told to quit, in the folder that they name.
CONTROL = """#!/bin/sh
echo "$CUDA_VISIBLE_DEVICES $CUDA_MPS_PIPE_DIRECTORY $CUDA_MPS_LOG_DIRECTORY $*" >> "$(dirname "$0")/control"
if [ "$1" = -d ]; then
    sleep 30 &
    echo $! > "$CUDA_MPS_PIPE_DIRECTORY/pid"
    cp "$CUDA_MPS_PIPE_DIRECTORY/pid" "$(dirname "$0")/pid"
else
    read word
    [ "$word" = quit ] && kill "$(cat "$CUDA_MPS_PIPE_DIRECTORY/pid")"
fi
"""


@pytest.fixture
def control(fake: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (fake / mps.CONTROL).write_text(CONTROL)
    (fake / mps.CONTROL).chmod(0o755)
    monkeypatch.setenv("PATH", str(fake), prepend=os.pathsep)
    monkeypatch.setattr(mps, "PROBE", ("true",))
    return fake / "control"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "fake"
    folder.mkdir()
    (folder / "train.py").write_text(FAKE)
    checkpoint.save(folder / "latest.pt", {"elapsed": 16.0})
    monkeypatch.setattr(matrix, "TRAIN", folder / "train.py")
    return folder


def calls(fake: Path) -> list[str]:
    return (fake / "calls").read_text().splitlines()


def run(tmp_path: Path, *seeds: str, more: tuple[str, ...] = ()) -> tuple[int, str]:
    arguments = ["--tasks", "HopperStand", "--seeds", *seeds, "--steps", "105", "--commit", "abc-dirty", *more]
    ended = here([*arguments, "--out", "out", "--runs", "runs"], tmp_path, learning.main)
    return ended.code, ended.out + ended.err


def test_a_finished_cell_is_skipped_and_an_interrupted_one_goes_on(tmp_path: Path, fake: Path) -> None:
    code, out = run(tmp_path, "1", "2")
    assert code == 1
    assert "HopperStand gorl_flow seed 1: return 900.0 (10th percentile 800.0) after 100 steps, 13 s" in out
    result = json.loads((tmp_path / "out/HopperStand-gorl_flow-105-s1.json").read_text())
    assert result["cell"] == {"task": "HopperStand", "method": "gorl_flow", "seed": 1, "steps": 105, "settings": {}}
    assert (result["commit"], result["dirty"]) == ("abc", True)
    assert result["command"] == "python train.py task=HopperStand seed=1 total_steps=105 evaluation_steps=10000000"
    assert {"torch", "mujoco", "python"} <= result["versions"].keys()
    assert "seed 2: FAILED: train.py was ended by SIGKILL" in out
    assert "/somewhere" not in json.dumps(result)
    assert run(tmp_path, "1", "2")[0] == 0
    assert len(calls(fake)) == 3
    assert "resume=runs/HopperStand-gorl_flow-105-s2/HopperStand/run" in calls(fake)[2]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "HopperStand-gorl_flow-105-s1.json",
        "HopperStand-gorl_flow-105-s2.json",
    }
    assert run(tmp_path, "1", "2")[1].startswith("2 runs, 2 of them done already")
    assert len(calls(fake)) == 3


def test_other_settings_methods_or_steps_are_other_runs(tmp_path: Path, fake: Path) -> None:
    assert run(tmp_path, "1")[0] == 0
    assert run(tmp_path, "1", more=("ppo.clip=0.1",))[0] == 0
    assert run(tmp_path, "1", more=("ppo.clip=0.3", "networks.policy=[8, 8]", "--methods", "gaussian"))[0] == 0
    assert len(list((tmp_path / "out").iterdir())) == 3
    assert "method" not in calls(fake)[0]
    assert "ppo.clip=0.1" in calls(fake)[1]
    assert "method=gaussian ppo.clip=0.3 networks.policy=[8,8]" in calls(fake)[2]


def test_a_failing_cell_is_one_line_and_the_others_go_on(tmp_path: Path, fake: Path) -> None:
    code, out = run(tmp_path, "3", "1")
    assert code == 1
    (line,) = [line for line in out.splitlines() if "FAILED" in line]
    assert line.startswith("HopperStand gorl_flow seed 3: FAILED: out of luck (log: runs/")
    assert "out of luck" in Path(tmp_path, line.partition("log: ")[2].rstrip(")")).read_text()
    assert (tmp_path / "out/HopperStand-gorl_flow-105-s1.json").is_file()
    assert "out of luck" in (tmp_path / "out/HopperStand-gorl_flow-105-s3.failed.json").read_text()


def test_every_gpu_runs_one_process_at_a_time(tmp_path: Path, fake: Path) -> None:
    cells = [Cell("HopperStand", "gorl_flow", seed, 105) for seed in (10, 11, 12, 13, 14)]
    Matrix(tmp_path / "out", tmp_path / "runs").run(cells, ["0", "GPU-7"])
    spans = [line.split() for line in (fake / "spans").read_text().splitlines()]
    assert {gpu for gpu, _, _ in spans} == {"0", "GPU-7"}
    assert len(list((tmp_path / "out").iterdir())) == 5
    for gpu in ("0", "GPU-7"):
        mine = sorted((float(began), float(ended)) for which, began, ended in spans if which == gpu)
        assert all(ended <= began for (_, ended), (began, _) in pairwise(mine))


def overlap(fake: Path) -> int:
    """The most processes that were at work at a time."""
    spans = [(float(began), float(ended)) for _, began, ended in map(str.split, (fake / "spans").open())]
    return max(sum(one <= began < ended for one, ended in spans) for began, _ in spans)


def test_two_runs_share_the_processor_and_say_so(tmp_path: Path, fake: Path, control: Path) -> None:
    code, out = run(tmp_path, "10", "11", "12", more=("--per-gpu", "2"))
    assert code == 0
    assert overlap(fake) == 2
    assert "take turns" not in out
    assert not control.exists()  # there is no GPU to be shared
    results = [json.loads(path.read_text()) for path in (tmp_path / "out").iterdir()]
    assert [result["per_gpu"] for result in results] == [2, 2, 2]
    assert run(tmp_path, "13", more=("--per-gpu", "4"))[0] == 0
    assert json.loads((tmp_path / "out/HopperStand-gorl_flow-105-s13.json").read_text())["per_gpu"] == 1  # it was alone


def test_runs_on_one_gpu_are_served_by_mps(tmp_path: Path, fake: Path, control: Path) -> None:
    cells = [Cell("HopperStand", "gorl_flow", seed, 105) for seed in (10, 11, 12, 13)]
    Matrix(tmp_path / "out", tmp_path / "runs").run(cells, ["3", "GPU-7"], 2)
    started, stopped = [line.split() for line in control.read_text().splitlines()]
    assert started[0] == "3,GPU-7"
    assert started[3] == "-d"
    pipe, log = map(Path, started[1:3])
    assert str(pipe) in stopped
    assert not pipe.exists()
    assert not log.exists()
    # As the daemon counts its devices, not as the machine does.
    assert sorted(line.split()[:2] for line in calls(fake)) == [[name, str(pipe)] for name in ("0", "0", "1", "1")]
    assert is_gone(fake)


@contextmanager
def stopping(matrix: Matrix, fake: Path) -> Iterator[None]:
    """Inside it the matrix is stopped as soon as a run is under way."""

    def stop() -> None:
        while not (fake / "waiting").exists():
            time.sleep(0.01)
        matrix.stop()

    stopper = threading.Thread(target=stop)
    stopper.start()
    yield
    stopper.join()


def test_ctrl_c_ends_the_mps_daemon(tmp_path: Path, fake: Path, control: Path) -> None:
    stopped = Matrix(tmp_path / "out", tmp_path / "runs")
    with stopping(stopped, fake):
        stopped.run([Cell("HopperStand", "gorl_flow", seed, 105) for seed in (4, 10)], ["0"], 2)
    assert stopped.stopped
    assert len(control.read_text().splitlines()) == 2
    assert is_gone(fake)


def is_gone(fake: Path) -> bool:
    """Whether the fake daemon, which was told to, has ended soon, be it that nobody has asked yet how."""
    words = Path("/proc", (fake / "pid").read_text().strip(), "cmdline")
    until = time.monotonic() + 5
    with suppress(FileNotFoundError, ProcessLookupError):
        while words.read_text() and time.monotonic() < until:
            time.sleep(0.01)
        return not words.read_text()
    return True


@pytest.mark.parametrize("broken", ["absent", "daemon", "server"])
def test_without_mps_the_processes_take_turns(
    tmp_path: Path,
    fake: Path,
    control: Path,
    monkeypatch: pytest.MonkeyPatch,
    broken: str,
    capfd: pytest.CaptureFixture,
) -> None:
    if broken == "absent":
        monkeypatch.setattr(mps, "CONTROL", "no-such-program")
    elif broken == "daemon":
        (fake / mps.CONTROL).write_text("#!/bin/sh\necho no such device\nexit 1\n")
    else:
        monkeypatch.setattr(mps, "PROBE", ("sh", "-c", "echo no such device; exit 1"))
    cells = [Cell("HopperStand", "gorl_flow", seed, 105) for seed in (10, 11)]
    Matrix(tmp_path / "out", tmp_path / "runs").run(cells, ["3"], 2)
    (line,) = [line for line in capfd.readouterr().out.splitlines() if "take turns" in line]
    assert line.endswith("there is no no-such-program" if broken == "absent" else "no such device")
    assert [line.split()[:2] for line in calls(fake)] == [["3", "None"]] * 2
    assert overlap(fake) == 2
    assert broken != "server" or is_gone(fake)


def test_a_stopped_matrix_ends_its_runs_and_begins_no_other(tmp_path: Path, fake: Path) -> None:
    cells = [Cell("HopperStand", "gorl_flow", seed, 105) for seed in (4, 5)]
    stopped = Matrix(tmp_path / "out", tmp_path / "runs")
    with stopping(stopped, fake):
        stopped.run(cells, [None])
    assert stopped.stopped
    assert stopped.failures == 0
    assert len(calls(fake)) == 1
    assert not (tmp_path / "out").exists()


def test_a_real_run_is_collected_as_its_metrics_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Seconds that say nothing here.
    monkeypatch.setattr("gorl_robotics.export.export_checkpoint", lambda folder: folder)
    assert here(settings(total_steps=2_100, stages__fractions="[0.5,0.5]"), tmp_path).code == 0
    folder = only_run(tmp_path)
    result, written = collect(folder), rows(folder)
    assert is_complete(folder)
    learnt = [row for row in written if row["time/steps_per_second"]]
    assert result["steps"] == int(learnt[-1]["steps"]) == 4 * 512
    assert result["curve"]["steps"] == [int(row["steps"]) for row in learnt]
    assert len(result["evaluations"]) == 2
    assert result["final"]["stochastic_p10"] == pytest.approx(float(written[-1]["evaluation/stochastic_p10"]), rel=1e-4)
    seconds, elapsed = result["seconds"], [float(row["time/elapsed"]) for row in written]
    assert seconds["rollouts_and_updates"] < seconds["first_training_step_to_last_checkpoint"]
    # To the last checkpoint, a moment behind the last evaluation.
    assert seconds["first_training_step_to_last_checkpoint"] == pytest.approx(elapsed[-1], abs=0.3)
    cut = (folder / "metrics.csv").read_text().splitlines()[:-1]
    (folder / "metrics.csv").write_text("\n".join(cut) + "\n")
    assert not is_complete(folder)
    with pytest.raises(InputError, match="has not come to its end"):
        collect(folder)


def test_the_arguments_of_a_cell_are_settings_of_train() -> None:
    given = checked(["networks.policy=[8, 8]", "storage.enabled=false", "num_envs=4e3"], learning.OWN)
    cell = Cell("HopperStand", "gorl_flow", 7, 10**8, given)
    wanted = {"networks.policy": [8, 8], "storage.enabled": False, "num_envs": 4000, "evaluation_steps": 10**7}
    assert parse_arguments(cell.arguments) == {"task": "HopperStand", "seed": 7, "total_steps": 10**8, **wanted}
    assert cell.name.startswith("HopperStand-gorl_flow-100M-")


def test_settings_stand_anywhere_on_the_command_line() -> None:
    settings, others = apart(["--tasks", "A", "ppo.clip=0.1", "B", "--out=x", "num_envs=8"])
    assert settings == ["ppo.clip=0.1", "num_envs=8"]
    assert others == ["--tasks", "A", "B", "--out=x"]


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        (["--tasks", "HoperStand"], "did you mean 'HopperStand'"),
        (["--tasks", "HopperStand", "--methods", "gausian"], "did you mean 'gaussian'"),
        (["--tasks", "HopperStand", "seed=3"], "the benchmark decides that itself"),
        (["--tasks", "HopperStand", "ppo.clipp=3"], "did you mean 'ppo.clip'"),
        (["--tasks", "HopperStand", "--gpus", "99"], "--gpus 99"),
        (["--tasks", "HopperStand", "--per-gpu", "0"], "--per-gpu 0: expected at least 1"),
    ],
)
def test_what_cannot_be_run_is_said_before_anything_runs(tmp_path: Path, wrong: list[str], line: str) -> None:
    ended = here([*wrong, "--steps", "1e6"], tmp_path, learning.main)
    assert ended.code == 2
    assert line in ended.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_the_matrix_resumable(tmp_path: Path, fake: Path, kind: signal.Signals) -> None:
    def interrupt() -> None:
        while not (fake / "waiting").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), kind)

    threading.Thread(target=interrupt).start()
    code, out = run(tmp_path, "4")
    assert code == 130
    assert "the same command goes on" in out
    assert "FAILED" not in out
