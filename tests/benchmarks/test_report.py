"""The report: its numbers are those of the files, its pictures are drawn."""

from __future__ import annotations

import json
import shutil
from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from running import here

import tasks
from benchmarks import figures, report
from benchmarks.provenance import RESULTS
from benchmarks.series import load, published
from benchmarks.tables import failed, runs_table, standing, suite_table

HOPPER = RESULTS / "hopper_stand"


def test_the_table_says_what_the_committed_files_say(tmp_path: Path) -> None:
    ended = here([str(HOPPER), "--figure", "docs/l.png", "--table", "docs/t.md"], tmp_path, report.main)
    assert ended.code == 0
    assert (tmp_path / "docs/l.png").read_bytes().startswith(b"\x89PNG")
    finals = {seed: json.loads((HOPPER / f"gorl-s{seed}.json").read_text())["final"] for seed in (1, 2, 3)}
    means = [final["deterministic_mean"] for final in finals.values()]
    lines = (tmp_path / "docs/t.md").read_text().splitlines()
    summary, row = (line for line in lines if line.startswith("| HopperStand | gorl_flow"))
    low = fmean(final["deterministic_p10"] for final in finals.values())
    assert f"| 3 | 99.9 M | **{fmean(means):.1f} ± {stdev(means):.1f}** ({low:.0f}) |" in summary
    assert summary.endswith("| 70 | 237 | better than both |")
    assert "at once" not in "".join(lines)
    for seed, final in finals.items():
        assert f"{seed}: {final['deterministic_mean']:.0f} ({final['deterministic_p10']:.0f})" in row
    assert "| 1 of 3 | 734 ± 224 |" in row  # seed 1 never stood up from one side


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
    assert "5: broke off" in runs_table([series])
    assert "| 1 of 2 |" in runs_table([series])
    assert "| 1 of 2 | 99.9 M |" in suite_table([series])
    series.results.clear()
    assert "| 0 of 1 | – | – | – | – | 70 | 237 | – |" in suite_table([series])


def made_up(
    folder: Path, task: str, seed: int, steps: int, mean: float, method: str = "gorl_flow", **more: Any
) -> None:
    """A result file like those that benchmarks.learning writes."""
    end = steps - 10**5
    count = 50
    result = {
        "cell": {"task": task, "method": method, "seed": seed, "steps": steps, "settings": {}},
        "commit": "0123456789",
        "hardware": "1x GPU (driver 1)",
        "steps": end,
        "seconds": {"first_training_step_to_last_checkpoint": end / 5e5},
        "steps_per_second": {"rollouts_and_updates": 10**6 + seed},
        "final": {"deterministic_mean": mean, "deterministic_p10": mean - 50, "stochastic_mean": mean - 20},
        "curve": {
            "steps": np.linspace(end / count, end, count).tolist(),
            "return/monitor_mean": (mean * np.linspace(0, 1, count) ** 0.3).tolist(),
        },
        **more,
    }
    (folder / f"{task}-{method}-{steps // 10**6}M-s{seed}.json").write_text(json.dumps(result))


def test_one_folder_holds_tasks_of_different_steps(tmp_path: Path) -> None:
    made_up(tmp_path, "CheetahRun", 1, 6 * 10**7, 900)
    made_up(tmp_path, "AcrobotSwingup", 1, 10**8, 230)
    made_up(tmp_path, "Ant", 1, 10**7, 500)
    ended = here([".", "--figure", "", "--table", "t.md"], tmp_path, report.main)
    assert ended.code == 0
    text = (tmp_path / "t.md").read_text()
    assert "| AcrobotSwingup | gorl_flow | 1 | 99.9 M | **230.0** (180) | 1,000,001 | 200 s | 220 | 253 |" in text
    assert "| CheetahRun | gorl_flow | 1 | 59.9 M | **900.0** (850) | 1,000,001 | 120 s | 850 | 883 |" in text
    assert "| Ant | gorl_flow | 1 | 9.9 M | **500.0** (450) | 1,000,001 | 20 s | – | – | – |" in text


@pytest.mark.parametrize(
    ("mean", "said"),
    [
        (900, "better than both"),
        (883, "as good as both"),
        (870, "**below SLM-Lab**"),
        (800, "**below both**"),
    ],
)
def test_what_is_below_a_published_figure_is_marked(tmp_path: Path, mean: float, said: str) -> None:
    made_up(tmp_path, "CheetahRun", 1, 10**7, mean + 10)
    made_up(tmp_path, "CheetahRun", 2, 10**7, mean - 10)
    ((series,), _) = load([tmp_path])
    assert standing(series) == said
    assert suite_table([series]).endswith(f"| {said} |\n")


def test_speeds_of_runs_that_shared_a_gpu_are_marked(tmp_path: Path) -> None:
    made_up(tmp_path, "CheetahRun", 1, 10**7, 900, per_gpu=1)
    made_up(tmp_path, "CheetahRun", 2, 10**7, 900, per_gpu=4)
    made_up(tmp_path, "CheetahRun", 3, 10**7, 900, per_gpu=4)
    ended = here([".", "--figure", "", "--table", "t.md"], tmp_path, report.main)
    assert ended.code == 0
    text = (tmp_path / "t.md").read_text()
    assert "| 1,000,001; 1,000,002 to 1,000,003 (4 at once) | 20 s; 20 s (4 at once) |" in text
    assert "not the speed of a run alone" in text


def test_runs_with_other_settings_are_told_apart(tmp_path: Path) -> None:
    result = json.loads((HOPPER / "gorl-s2.json").read_text())
    for name, settings in (("a", {}), ("b", {"ppo.clip": 0.1})):
        cell = {"task": "HopperStand", "method": "gorl_flow", "seed": 2, "steps": 10**8, "settings": settings}
        (tmp_path / f"{name}-s2.json").write_text(json.dumps({**result, "cell": cell}))
    every, _ = load([tmp_path])
    assert [series.label for series in every] == ["gorl_flow (100 M)", "gorl_flow (100 M ppo.clip=0.1)"]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures instead of their files."""
    kept: list[Figure] = []
    monkeypatch.setattr(figures, "_save", lambda figure, path: kept.append(figure))
    return kept


def test_every_task_has_its_line_of_rates_against_worlds(tmp_path: Path, drawn: list[Figure]) -> None:
    worlds = [1024 * 2**i for i in range(7)]
    for k, task in enumerate(("HopperStand", "CheetahRun")):
        rows = [
            {
                "num_envs": n,
                "stages": {part: {"steps_per_second": n * 100.0 * (k + 1)} for part in ("physics", "train")},
            }
            for n in worlds
        ]
        rows[2]["stages"]["train"] = {"failure": "no memory"}
        rows.append({**rows[0], "num_envs": 7, "varied": {"networks.flow_steps": 5}})
        rates(tmp_path / f"{task}.json", task, rows)
    alone = {"task": "Ant", "hardware": "2 cores of x", "measurements": [{"num_envs": 256, "stages": {}}]}
    alone.update(settings={"task": "Ant"}, commit="a")
    (tmp_path / "alone.json").write_text(json.dumps(alone))  # is no line
    ended = here([".", "--throughput", "rates.png"], tmp_path, report.main)
    assert ended.code == 0, ended.err
    assert ended.out == "rates.png\n"
    (figure,) = drawn
    assert [axes.get_title() for axes in figure.axes] == [f"1x GPU:\n{label}" for label in figures.RATES.values()]
    physics, _, training = ({line.get_label(): line for line in axes.lines} for axes in figure.axes)
    assert list(physics) == list(training) == ["CheetahRun", "HopperStand"]
    assert physics["CheetahRun"].get_xdata() == pytest.approx(worlds)
    assert physics["CheetahRun"].get_ydata() == pytest.approx([n * 200 / 1e6 for n in worlds])
    assert training["HopperStand"].get_xdata() == pytest.approx(worlds[:2] + worlds[3:])


def test_one_number_of_worlds_is_no_picture(tmp_path: Path, drawn: list[Figure]) -> None:
    rates(tmp_path / "alone.json", "Ant", [{"num_envs": 256, "stages": {}}])
    assert here(["."], tmp_path, report.main).out == ""
    assert not drawn


def test_files_that_differ_in_worlds_alone_are_one_line(tmp_path: Path, drawn: list[Figure]) -> None:
    def rows(worlds: int) -> list[dict[str, Any]]:
        return [{"num_envs": worlds, "stages": {"physics": {"steps_per_second": 1e3 * worlds}}}]

    for worlds in (64, 256):
        rates(tmp_path / f"{worlds}.json", "Ant", rows(worlds))
        rates(tmp_path / f"{worlds}-new.json", "Ant", rows(worlds), commit="b")
        rates(tmp_path / f"{worlds}-tf32.json", "Ant", rows(worlds), commit="b", **{"networks.tf32": True})
    rates(tmp_path / "wide.json", "Ant", rows(64), **{"networks.flow_steps": 20})
    assert here(["."], tmp_path, report.main).code == 0
    physics, *others = drawn[0].axes
    assert [line.get_label() for line in physics.lines] == ["Ant, a", "Ant, b", "Ant, networks.tf32=true, b"]
    assert physics.lines[1].get_xdata() == pytest.approx([64, 256])
    assert physics.axison
    assert not any(axes.axison for axes in others)  # nothing was measured


def rates(path: Path, task: str, rows: list[dict[str, Any]], commit: str = "a", **settings: Any) -> None:
    """A file as the throughput benchmark writes it."""
    content = {"task": task, "hardware": "1x GPU (driver 1), 2 cores of x", "commit": commit, "measurements": rows}
    path.write_text(json.dumps({**content, "settings": {"task": task, **settings}}))


def test_the_whole_suite_is_a_square_of_panels(tmp_path: Path, drawn: list[Figure]) -> None:
    suite = sorted(set(tasks.names()) - {"Ant", "AntVelocity"})
    for task in suite:
        made_up(tmp_path, task, 1, 6 * 10**7, 900)
    made_up(tmp_path, "CheetahRun", 2, 6 * 10**7, 800)
    made_up(tmp_path, "CheetahRun", 1, 6 * 10**7, 400, method="fpo")
    assert here([".", "--table", ""], tmp_path, report.main).code == 0
    (figure,) = drawn
    assert [axes.get_title() for axes in figure.axes] == suite
    assert figure.axes[0].get_gridspec().get_geometry() == (5, 5)
    labels = [line.get_label() for line in figure.axes[suite.index("CheetahRun")].lines]
    assert [label for label in labels if not label.startswith("_")] == [
        "fpo",
        "gorl_flow",
        "gaussian, GoRL paper",
        "fpo, GoRL paper",
        "gorl_flow, GoRL paper",
        "gaussian, SLM-Lab",
        "gaussian, Playground",
    ]
    figure.canvas.draw()
    (legend,) = figure.legends
    below = [*(axes.title for axes in figure.axes), *figure.texts]
    assert not any(legend.get_window_extent().overlaps(text.get_window_extent()) for text in below)
    titles = [axes.title.get_window_extent() for axes in figure.axes]
    assert not any(one.overlaps(other) for one, other in combinations(titles, 2))


def test_a_legend_of_long_names_is_no_wider_than_its_figure(tmp_path: Path, drawn: list[Figure]) -> None:
    result = json.loads((HOPPER / "gorl-s2.json").read_text())
    for name, settings in (("a", {}), ("b", {"num_envs": 16384}), ("c", {"num_envs": 16384, "networks.tf32": True})):
        cell = {"task": "HopperStand", "method": "gorl_flow", "seed": 2, "steps": 10**8, "settings": settings}
        (tmp_path / f"{name}-s2.json").write_text(json.dumps({**result, "cell": cell}))
    assert here([".", "--table", ""], tmp_path, report.main).code == 0
    (figure,) = drawn
    figure.canvas.draw()
    (legend,) = figure.legends
    assert "gorl_flow (100 M num_envs=16384 networks.tf32=true)" in [text.get_text() for text in legend.texts]
    place = legend.get_window_extent()
    assert place.x0 >= 0
    assert place.x1 <= figure.bbox.width
    assert not place.overlaps(figure.axes[0].title.get_window_extent())


def test_published_figures_are_of_tasks_that_there_are() -> None:
    for entry in published():
        assert entry.source
        for finals in entry.finals.values():
            assert set(finals) <= set(tasks.names())
            assert all(0 <= value <= 1000 for figure in finals.values() for value in figure)
    suite = set(tasks.names()) - {"Ant", "AntVelocity"}
    for name in ("Playground", "SLM-Lab"):
        (entry,) = (entry for entry in published() if entry.name == name)
        assert set(entry.finals["gaussian"]) == suite


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "run-s1.json").write_text("{")
    ended = here(["."], tmp_path, report.main)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "run-s1.json is no readable result file" in ended.err


@pytest.mark.parametrize(("folder", "line"), [("nowhere", "there is no folder nowhere"), (".", "no result files in .")])
def test_nothing_to_report_is_one_line(tmp_path: Path, folder: str, line: str) -> None:
    ended = here([folder], tmp_path, report.main)
    assert ended.code == 2
    assert line in ended.err
