"""The pictures: learning curves, a panel for each task, and rates against the number of worlds, a line for each."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.arguments import as_arguments
from benchmarks.series import Series, published
from gorl_robotics.files import atomic

COLORS = {"gorl_flow": "C0", "gorl_diffusion": "C2", "gaussian": "C1", "fpo": "C4", "dppo": "C3"}
MARKS = ("<", "D", "x")  # of the published sources, in their order
PPO = "gaussian"  # whose published figures stand beside every method
PANEL = (4.6, 3.4)  # inches
SMALL_PANEL = (3.0, 2.3)  # where there are many
MANY = 9  # panels
RATES = {"physics": "physics alone", "rollout_fitted": "rollout, fitted decoder", "train": "training"}


def draw_learning(every: list[Series], path: Path) -> None:
    """Mean over seeds in a band of one standard deviation, thin lines for every seed, published finals at the edge."""
    tasks = list(dict.fromkeys(series.task for series in every))
    colors = _colors(every)
    columns = max(3, math.ceil(math.sqrt(len(tasks))))
    figure, panels = _panels(len(tasks), columns)
    methods = {series.method for series in every}
    for task, axes in zip(tasks, panels, strict=False):
        mine = [series for series in every if series.task == task and series.results]
        for series in mine:
            _draw_series(axes, series, colors[series.label])
        _draw_published(axes, {series.method: colors[series.label] for series in reversed(mine)}, task, methods)
        axes.set(title=task, ylim=(0, 1000))
    figure.supxlabel("million environment steps", fontsize="medium")
    figure.supylabel("deterministic return", fontsize="medium")
    _legend(figure, panels)
    _save(figure, path)


def draw_throughput(measurements: list[dict[str, Any]], path: Path) -> bool:
    """Control steps per second against the number of worlds: a row for each machine, a panel for each part of training.

    What was measured with several numbers of worlds, in one file or in several, and all else the same is a line: of a
    task, and where it has several of its settings and commit. False if there is none.
    """
    rows: dict[tuple[str, str, tuple[str, ...], str], list[dict[str, Any]]] = {}
    for result in measurements:
        others = {name: value for name, value in result["settings"].items() if name != "task"}
        key = (_short(result["hardware"]), result["task"], tuple(as_arguments(others)), result["commit"])
        rows.setdefault(key, []).extend(row for row in result["measurements"] if "varied" not in row)
    rows = {key: each for key, each in rows.items() if len({row["num_envs"] for row in each}) > 1}
    if not rows:
        return False
    by_machine: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for (machine, task, settings, commit), each in rows.items():
        alone = sum(key[:2] == (machine, task) for key in rows) == 1
        label = task if alone else ", ".join([task, *settings, commit])
        by_machine.setdefault(machine, {})[label] = each
    labels = sorted({label for lines in by_machine.values() for label in lines})
    shades = pyplot.get_cmap("turbo")([(i + 0.5) / len(labels) for i in range(len(labels))])
    colors = dict(zip(labels, shades, strict=True))
    figure, panels = _panels(len(RATES) * len(by_machine), len(RATES), sharey="row")
    places = [(machine, lines, *rate) for machine, lines in by_machine.items() for rate in RATES.items()]
    for (machine, lines, name, label), axes in zip(places, panels, strict=True):
        for line, each in sorted(lines.items()):
            _draw_rates(axes, each, name, colors[line], line)
        if not axes.lines:
            axes.set_axis_off()
        axes.set(title=f"{machine}:\n{label}", xscale="log", yscale="log")
        measured = sorted({row["num_envs"] for each in lines.values() for row in each})
        axes.set_xticks(measured, [_count(worlds) for worlds in measured])
        axes.xaxis.minorticks_off()
        axes.grid(alpha=0.3)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda rate, _: f"{rate:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    figure.supxlabel("worlds", fontsize="medium")
    figure.supylabel("million control steps per second", fontsize="medium")
    _legend(figure, panels)
    _save(figure, path)
    return True


def _draw_rates(axes: Any, rows: list[dict[str, Any]], name: str, color: Any, label: str) -> None:
    points = sorted(
        (row["num_envs"], row["stages"][name]["steps_per_second"] / 1e6)
        for row in rows
        if row["stages"].get(name, {}).get("steps_per_second")
    )
    if points:
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, color=color, label=label)


def _count(worlds: int) -> str:
    return f"{worlds // 1024}k" if worlds >= 1024 and worlds % 1024 == 0 else f"{worlds}"


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


def _draw_published(axes: Any, colors: dict[str, str], task: str, methods: set[str]) -> None:
    """Marks at the right edge, in the colour of the method, of PPO and of all `methods`: their steps are others."""
    for entry, mark in zip(published(), MARKS, strict=True):
        for method, finals in entry.finals.items():
            if task in finals and method in {PPO, *methods}:
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


def _panels(count: int, columns: int, sharey: Any = False) -> tuple[Any, list[Any]]:
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    width, height = PANEL if count <= MANY else SMALL_PANEL
    size = (max(width * columns, 8.0), height * rows + 0.9)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=size, dpi=120, squeeze=False, layout="constrained", sharey=sharey
    )
    panels = list(axes.flat)
    for unused in panels[count:]:
        unused.set_axis_off()
    return figure, panels[:count]


def _legend(figure: Any, panels: list[Any]) -> None:
    entries: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    for columns in (4, 3, 2, 1):  # as many as are not wider than the figure
        place = {"loc": "outside upper center", "ncols": columns, "fontsize": 8, "frameon": False}
        legend = figure.legend(entries.values(), entries.keys(), **place)
        if legend.get_window_extent(figure.canvas.get_renderer()).width <= figure.bbox.width or columns == 1:
            return
        legend.remove()


def _save(figure: Any, path: Path) -> None:
    with atomic(path) as temporary:
        figure.savefig(temporary, format=path.suffix.removeprefix(".") or "png")
    pyplot.close(figure)


def _short(hardware: str) -> str:
    return hardware.partition(" (")[0].partition(", ")[0]
