"""The report: its numbers are those of the files, its pictures are drawn."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest
from running import here

import tasks
from benchmarks import report
from benchmarks.provenance import RESULTS
from benchmarks.series import load, published
from benchmarks.tables import failed, results_table

HOPPER = RESULTS / "hopper_stand"


def test_the_table_says_what_the_committed_files_say(tmp_path: Path) -> None:
    ended = here([str(HOPPER), "--figure", "docs/l.png", "--table", "docs/t.md"], tmp_path, report.main)
    assert ended.code == 0
    assert (tmp_path / "docs/l.png").read_bytes().startswith(b"\x89PNG")
    finals = {seed: json.loads((HOPPER / f"gorl-s{seed}.json").read_text())["final"] for seed in (1, 2, 3)}
    means = [final["deterministic_mean"] for final in finals.values()]
    lines = (tmp_path / "docs/t.md").read_text().splitlines()
    row = next(line for line in lines if line.startswith("| HopperStand | gorl_flow"))
    assert f"**{fmean(means):.1f} ± {stdev(means):.1f}**" in row
    for seed, final in finals.items():
        assert f"{seed}: {final['deterministic_mean']:.0f} ({final['deterministic_p10']:.0f})" in row
    assert "| 99.9 M |" in row
    assert row.endswith("| 1 of 3 | 734 ± 224 |")  # seed 1 never stood up from one side


def test_every_committed_learning_result_is_read() -> None:
    every, throughput = load([HOPPER, HOPPER / "trail", RESULTS / "cpu"])
    count = sum("final" in json.loads(path.read_text()) for path in RESULTS.glob("[ch]*/**/*.json"))
    assert sum(len(series.results) for series in every) == count
    assert not throughput
    variants = {series.label: sorted(series.results) for series in every if series.task == "HopperStand"}
    assert variants["gaussian (kl-to-prior-gaussian)"] == [1]
    assert variants["gorl_flow (correlated-noise)"] == [1, 2, 3, 4]
    steps, returns = next(series for series in every if series.variant == "gorl").curves()
    assert returns.shape == (3, len(steps))
    assert np.isfinite(returns).all()
    assert abs(returns[1, -1] - 917) < 40


def test_a_run_that_broke_off_is_shown_and_counts_as_failed(tmp_path: Path) -> None:
    shutil.copy(HOPPER / "gorl-s2.json", tmp_path / "HopperStand-gorl_flow-100M-s2.json")
    cell = {"task": "HopperStand", "method": "gorl_flow", "seed": 5, "steps": 10**8, "settings": {}}
    (tmp_path / "HopperStand-gorl_flow-100M-s5.failed.json").write_text(
        json.dumps({"cell": cell, "failure": "no luck"})
    )
    (tmp_path / "other.json").write_text("[1, 2]")
    ((series,), _) = load([tmp_path])
    assert failed(series, best=917.0) == [5]
    assert "5: broke off" in results_table([series])
    assert "| 1 of 2 |" in results_table([series])


def test_runs_with_other_settings_are_told_apart(tmp_path: Path) -> None:
    result = json.loads((HOPPER / "gorl-s2.json").read_text())
    for name, settings in (("a", {}), ("b", {"ppo.clip": 0.1})):
        cell = {"task": "HopperStand", "method": "gorl_flow", "seed": 2, "steps": 10**8, "settings": settings}
        (tmp_path / f"{name}-s2.json").write_text(json.dumps({**result, "cell": cell}))
    every, _ = load([tmp_path])
    assert [series.label for series in every] == ["gorl_flow (100 M)", "gorl_flow (100 M ppo.clip=0.1)"]


def test_rates_are_drawn_against_worlds(tmp_path: Path) -> None:
    stages = {name: {"steps_per_second": 1e5 * (i + 1)} for i, name in enumerate(("physics", "env", "train"))}
    measurements = [
        {"num_envs": 1024, "stages": stages},
        {"num_envs": 4096, "stages": {**stages, "env": {"failure": "no memory"}}},
    ]
    content = {"task": "HopperStand", "hardware": "1x GPU (driver 1)", "measurements": measurements}
    (tmp_path / "throughput.json").write_text(json.dumps(content))
    ended = here([".", "--throughput", "rates.png"], tmp_path, report.main)
    assert ended.code == 0
    assert (tmp_path / "rates.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rates.png", "throughput.json"]


def test_published_figures_are_of_tasks_that_there_are() -> None:
    for entry in published():
        assert entry.source
        for finals in entry.finals.values():
            assert set(finals) <= set(tasks.names())
            assert all(0 <= value <= 1000 for figure in finals.values() for value in figure)


@pytest.mark.parametrize(("folder", "line"), [("nowhere", "there is no folder nowhere"), (".", "no result files in .")])
def test_nothing_to_report_is_one_line(tmp_path: Path, folder: str, line: str) -> None:
    ended = here([folder], tmp_path, report.main)
    assert ended.code == 2
    assert line in ended.err
