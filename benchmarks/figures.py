"""The pictures: learning curves, one panel a task, and rates against the number of worlds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from benchmarks.series import Series, published
from gorl_robotics.files import atomic

COLORS = {"gorl_flow": "C0", "gorl_diffusion": "C2", "gaussian": "C1", "fpo": "C4", "dppo": "C3"}
MARKS = ("<", "D", "x")  # of the published sources, in their order
PANEL = (4.6, 3.4)  # inches
COLUMNS = 3
RATES = {
    "physics": "physics alone",
    "env": "environment step",
    "rollout": "rollout, identity decoder",
    "rollout_fitted": "rollout, fitted decoder",
    "train": "training",
}


def draw_learning(every: list[Series], path: Path) -> None:
    """Mean over seeds in a band of one standard deviation, thin lines for every seed, published finals at the edge."""
    tasks = list(dict.fromkeys(series.task for series in every))
    colors = _colors(every)
    figure, panels = _panels(len(tasks))
    for task, axes in zip(tasks, panels, strict=False):
        mine = [series for series in every if series.task == task and series.results]
        for series in mine:
            _draw_series(axes, series, colors[series.label])
        _draw_published(axes, {series.method: colors[series.label] for series in reversed(mine)}, task)
        axes.set(title=task, xlabel="million environment steps", ylabel="deterministic return", ylim=(0, 1000))
    _legend(figure, panels)
    _save(figure, path)


def draw_throughput(measurements: list[dict[str, Any]], path: Path) -> None:
    """Control steps per second of each stage against the number of worlds, a panel for each task and machine."""
    by_panel: dict[str, list[dict[str, Any]]] = {}
    for result in measurements:
        by_panel.setdefault(f"{result['task']}, {_short(result['hardware'])}", []).extend(result["measurements"])
    figure, panels = _panels(len(by_panel))
    for (title, rows), axes in zip(by_panel.items(), panels, strict=False):
        for name, label in RATES.items():
            points = sorted(
                (row["num_envs"], row["stages"][name]["steps_per_second"])
                for row in rows
                if row["stages"].get(name, {}).get("steps_per_second")
            )
            if points:
                worlds, rates = zip(*points, strict=True)
                axes.plot(worlds, [rate / 1e6 for rate in rates], marker="o", markersize=4, label=label)
        axes.set(title=title, xlabel="worlds", ylabel="million control steps per second", xscale="log", yscale="log")
        measured = sorted({row["num_envs"] for row in rows})
        axes.set_xticks(measured, [f"{worlds:,}" for worlds in measured])
        axes.xaxis.minorticks_off()
        for choose in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            choose(lambda rate, _: f"{rate:g}")
    _legend(figure, panels)
    _save(figure, path)


def _draw_series(axes: Any, series: Series, color: str) -> None:
    steps, returns = series.curves()
    if not len(steps):
        return
    millions, mean, std = steps / 1e6, returns.mean(axis=0), returns.std(axis=0, ddof=min(1, len(returns) - 1))
    axes.fill_between(millions, mean - std, mean + std, color=color, alpha=0.15, linewidth=0)
    for one in returns:
        axes.plot(millions, one, color=color, linewidth=0.6, alpha=0.6)
    axes.plot(millions, mean, color=color, linewidth=2, label=series.label)
    axes.set_xlim(0, max(axes.get_xlim()[1], millions[-1]))


def _draw_published(axes: Any, colors: dict[str, str], task: str) -> None:
    """Marks at the right edge, in the colour of the method: their number of steps is another."""
    for entry, mark in zip(published(), MARKS, strict=True):
        for method, finals in entry.finals.items():
            if task in finals:
                color = colors.get(method) or COLORS.get(method, "0.4")
                axes.plot(
                    [1.0],
                    [finals[task][0]],
                    mark,
                    color=color,
                    transform=axes.get_yaxis_transform(),
                    clip_on=False,
                    label=f"{method}, {entry.name}",
                )


def _colors(every: Iterable[Series]) -> dict[str, str]:
    """A colour for each label; variants of one method get colours of their own, the first the method's."""
    chosen: dict[str, str] = {}
    spare = iter(f"C{i % 10}" for i in range(5, 1000))
    for series in every:
        if series.label not in chosen:
            own = COLORS.get(series.method)
            chosen[series.label] = own if own and own not in chosen.values() else next(spare)
    return chosen


def _panels(count: int) -> tuple[Any, list[Any]]:
    columns = min(COLUMNS, count)
    rows = math.ceil(count / columns)
    size = (max(PANEL[0] * columns, 8.0), PANEL[1] * rows + 0.9)
    figure, axes = pyplot.subplots(rows, columns, figsize=size, dpi=120, squeeze=False, layout="constrained")
    panels = list(axes.flat)
    for unused in panels[count:]:
        unused.set_axis_off()
    return figure, panels[:count]


def _legend(figure: Any, panels: list[Any]) -> None:
    entries: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)


def _save(figure: Any, path: Path) -> None:
    with atomic(path) as temporary:
        figure.savefig(temporary, format=path.suffix.removeprefix(".") or "png")
    pyplot.close(figure)


def _short(hardware: str) -> str:
    return hardware.partition(" (")[0].partition(", ")[0]
