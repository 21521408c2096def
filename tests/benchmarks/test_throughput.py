"""Throughput on the CPU, very small: every part is measured, and one that fails loses no other."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from running import here

from benchmarks import stages, throughput, timing
from benchmarks.provenance import provenance
from benchmarks.start import start
from benchmarks.throughput import DEFAULT_STAGES, STAGES
from gorl_robotics.errors import InputError

SMALL = [
    "device=cpu",
    "threads=1",
    "monitors=4",
    "evaluation_worlds=2",
    "networks.policy=[16,16]",
    "networks.critic=[16,16]",
    "networks.decoder=[16,16]",
    "networks.flow_steps=3",
    "ppo.rollout_steps=8",
    "ppo.epochs=1",
    "ppo.minibatches=2",
    "stages.fractions=[0.5,0.5]",
    "total_steps=12800",
    "refit.samples=640",
    "refit.updates=5",
    "refit.batch=64",
    "refit.draws=1",
]
RATES = (
    "physics",
    "physics_step",
    "physics_monitors",
    "env",
    "rollout",
    "rollout_fitted",
    "iteration",
    "iteration_recorded",
    "iteration_fitted",
    "train",
    "update",
)


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "BLOCK_SECONDS", 0.003)


def measure(tmp_path: Path, *arguments: str) -> tuple[int, str, dict[str, Any]]:
    command = ["--task", "CartpoleBalance", "--out", "result.json", *arguments, *SMALL]
    ended = here(command, tmp_path, throughput.main)
    path = tmp_path / "result.json"
    return ended.code, ended.out + ended.err, json.loads(path.read_text()) if path.exists() else {}


def test_every_part_is_a_rate_and_a_share_of_the_physics(tmp_path: Path) -> None:
    code, out, result = measure(tmp_path, "--num-envs", "8", "16", "--trace", "trace.json.gz")
    assert code == 0, out
    assert {"command", "commit", "dirty", "hardware", "versions", "settings"} <= result.keys()
    assert [row["num_envs"] for row in result["measurements"]] == [8, 16]
    for row in result["measurements"]:
        measured = row["stages"]
        assert {*RATES, "build", "refit", "evaluation", "checkpoint"} <= measured.keys()
        for name in RATES:
            numbers = measured[name]
            assert numbers["fastest"] <= numbers["seconds"] <= numbers["slowest"]
            assert numbers["steps_per_second"] == pytest.approx(row["num_envs"] * 8 / numbers["seconds"])
            assert numbers["ms_per_control_step"] == pytest.approx(1e3 * numbers["seconds"] / 8)
            share = numbers["steps_per_second"] / measured["physics"]["steps_per_second"]
            assert numbers["share"] == pytest.approx(share)
        # A whole is slower than its part.
        assert measured["iteration"]["seconds"] > measured["update"]["fastest"]
        assert measured["refit"]["samples"] == 640
        whole = measured["train"]
        assert sum(whole["time_shares"].values()) == pytest.approx(1)
        assert whole["run_seconds"] == pytest.approx(12800 / whole["steps_per_second"])
    with gzip.open(tmp_path / "trace.json.gz") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {"rollout", "update"} <= names
    assert "physics" in out
    assert not list((tmp_path / "runs").iterdir())  # nothing is left behind


def test_a_failing_part_does_not_lose_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: stages.Bench) -> dict[str, Any]:
        raise RuntimeError("CUDA error:\nan illegal memory access")

    monkeypatch.setattr(stages.Bench, "environment", fail)
    code, out, result = measure(tmp_path, "--num-envs", "8", "--stages", "physics", "env", "update")
    assert code == 1
    (row,) = result["measurements"]
    assert row["stages"]["env"] == {"failure": "CUDA error: an illegal memory access"}
    assert row["stages"]["update"]["share"] > 0
    assert "failed: CUDA error" in out


def test_worlds_that_cannot_be_built_do_not_lose_the_others(tmp_path: Path) -> None:
    code, _, result = measure(tmp_path, "--num-envs", "0", "8", "--stages", "update")
    assert code == 1
    first, second = result["measurements"]
    assert "num_envs=0" in first["stages"]["build"]["failure"]
    assert second["stages"]["update"]["steps_per_second"] > 0


def test_the_parts_of_a_run_add_up(tmp_path: Path) -> None:
    code, _, result = measure(tmp_path, "--num-envs", "8", "--stages", "train", "storage")
    assert code == 0
    measured = result["measurements"][0]["stages"]
    first = 100 * measured["iteration"]["seconds"]  # 6,400 steps of a rollout of 64
    assert measured["train"]["run_seconds"] * measured["train"]["time_shares"]["first_stage"] == pytest.approx(first)
    refit = measured["train"]["run_seconds"] * measured["train"]["time_shares"]["refits"]
    assert 0 < refit < measured["train"]["run_seconds"]
    assert "share" not in measured["train"]  # without the physics there is nothing to compare with


def test_a_start_is_timed_from_the_command_to_the_first_iteration(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import os, pathlib, sys, time\n"
        "runs = next(a for a in sys.argv if a.startswith('runs=')).removeprefix('runs=')\n"
        "folder = pathlib.Path(runs) / 'T' / 'run'; folder.mkdir(parents=True)\n"
        f"pathlib.Path({str(tmp_path / 'cache')!r}).write_text(os.environ.get('WARP_CACHE_PATH', 'usual'))\n"
        "time.sleep(0.3)\n"
        "lines = ['steps,time/steps_per_second,time/elapsed', '0,,0.5', '64,100.0,0.6', '']\n"
        "(folder / 'metrics.csv').write_text('\\n'.join(lines))\n"
        "time.sleep(60)\n"
    )
    cold = start(["task=T"], cold=True, program=program)
    assert 0.2 <= cold["seconds"] < 5.0
    assert cold["untrained_evaluation"] == 0.5
    assert cold["first_iteration"] == pytest.approx(0.1)
    assert not Path((tmp_path / "cache").read_text()).exists()  # was its own, and is gone
    start(["task=T"], cold=False, program=program)
    assert "tmp" not in (tmp_path / "cache").read_text()
    program.write_text("raise SystemExit('error: no such task')")
    with pytest.raises(InputError, match=r"^no such task$"):
        start(["task=T"], cold=False, program=program)


def test_blocks_of_several_works_alternate() -> None:
    calls: list[str] = []
    results = timing.alternately([lambda: calls.append("a"), lambda: calls.append("b")], torch.device("cpu"))
    assert len(results) == 2
    runs = "".join(calls).replace("a" * results[0].calls, "A").replace("b" * results[1].calls, "B")
    assert runs.endswith("ABABABABAB")


def test_stages_are_checked_before_anything_is_built(tmp_path: Path) -> None:
    code, out, _ = measure(tmp_path, "--num-envs", "8", "--stages", "physic")
    assert code == 2
    assert "did you mean 'physics'?" in out
    assert set(DEFAULT_STAGES) < set(STAGES)


def test_a_command_is_told_without_the_places_of_its_files() -> None:
    given = ["-m", "benchmarks.x", "--out", "/a/b.json", "--trace=/c", "runs=/d", "--num-envs", "64", "ppo.clip=0.1"]
    assert provenance(given, "abc")["command"] == "python -m benchmarks.x --num-envs 64 ppo.clip=0.1"
