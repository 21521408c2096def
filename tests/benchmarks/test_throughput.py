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


def test_settings_are_varied_one_by_one(tmp_path: Path) -> None:
    sweep = ["--vary", "networks.flow_steps", "1", "-3", "4", "--vary", "networks.decoder", "[8,8]", "[32,32]"]
    code, out, result = measure(tmp_path, "--num-envs", "8", "16", "--stages", "rollout", *sweep)
    assert code == 1  # a decoder of -3 steps is one failure, with both numbers of worlds
    rows = result["measurements"]
    cases = [("networks.flow_steps", 1), ("networks.flow_steps", -3), ("networks.flow_steps", 4)]
    cases += [("networks.decoder", [8, 8]), ("networks.decoder", [32, 32])]
    assert [(row["varied"], row["num_envs"]) for row in rows] == [({n: v}, w) for n, v in cases for w in (8, 16)]
    for row in rows:
        ((name, value),) = row["varied"].items()
        if value == -3:
            assert "flow_steps" in row["stages"]["build"]["failure"]
            continue
        built = row["stages"]["build"]["settings"]
        # What is not varied is as the command says.
        assert built == {**built, "networks.flow_steps": 3, "networks.decoder": [16, 16], name: value}
        assert row["stages"]["rollout_fitted"]["steps_per_second"] > 0
    last = out[out.rindex("CartpoleBalance, steps/s") :].splitlines()
    (line,) = [line for line in last if "networks.decoder=[32,32]" in line and " 16 " in line]
    assert f"{rows[-1]['stages']['rollout_fitted']['steps_per_second']:,.0f}" in line


def test_a_sweep_shows_memory_where_it_was_measured() -> None:
    memory = {"torch_peak": 3 * 2**30, "device_used": 5 * 2**30, "warp": 0}
    rows = [
        {"num_envs": 4096, "varied": {"networks.flow_steps": 1}, "stages": {"memory": memory}},
        {"num_envs": 4096, "varied": {"networks.flow_steps": 2}, "stages": {"build": {"failure": "no memory"}}},
    ]
    shown = throughput.sweep_table("HopperStand", rows)
    assert [column.header for column in shown.columns] == ["setting", "worlds", "torch's peak", "taken of the GPU"]
    assert [list(column.cells) for column in shown.columns[2:]] == [["3.00 GiB", ""], ["5.00 GiB", ""]]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["networks.flow_steps"], "--vary networks.flow_steps: expected a setting and one or more values"),
        (["networks.flowsteps", "3"], "did you mean 'networks.flow_steps'"),
        (["num_envs", "3"], "the benchmark decides that itself"),
    ],
)
def test_what_cannot_be_varied_is_said_at_once(tmp_path: Path, words: list[str], line: str) -> None:
    code, out, result = measure(tmp_path, "--num-envs", "8", "--vary", *words)
    assert code == 2
    assert line in out
    assert not result


def test_a_sweep_does_not_take_the_place_of_the_usual_result() -> None:
    result = {"task": "HopperStand", "device": "NVIDIA H200"}
    usual = throughput._usual_file(result, [{}])
    assert usual.name == "hopperstand-nvidia-h200.json"
    varied = throughput._usual_file(result, [{"networks.flow_steps": 1}, {"networks.flow_steps": 2}])
    assert varied.name == "hopperstand-nvidia-h200-networks-flow-steps.json"


def test_a_failing_part_does_not_lose_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: stages.Bench) -> dict[str, Any]:
        raise RuntimeError("CUDA error:\nan illegal memory access")

    monkeypatch.setattr(stages.Bench, "environment", fail)
    code, out, result = measure(tmp_path, "--num-envs", "8", "--stages", "physics,env", "update")
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
        "cache = pathlib.Path(os.environ['WARP_CACHE_PATH'])\n"
        "time.sleep(0.0 if cache.exists() else 1.0); cache.mkdir(parents=True, exist_ok=True)\n"
        "lines = ['steps,time/steps_per_second,time/elapsed', '64,100.0,0.1', '']\n"
        "(folder / 'metrics.csv').write_text('\\n'.join(lines))\n"
        "time.sleep(60)\n"
    )
    cold, warm = (start(["task=T"], tmp_path / "caches", program) for _ in range(2))
    assert 0.9 <= cold["seconds"] < 5.0
    assert cold["first_iteration"] == pytest.approx(0.1)
    assert warm["seconds"] < cold["seconds"] - 0.3  # found what the first had left
    program.write_text("raise SystemExit('error: no such task')")
    with pytest.raises(InputError, match=r"^no such task$"):
        start(["task=T"], tmp_path / "caches", program)


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
