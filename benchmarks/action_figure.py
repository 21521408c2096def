"""The picture of actions: histograms in a few states, a row for each policy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot
from torch import Tensor

from benchmarks.figures import COLORS
from benchmarks.modes import Modes
from gorl_robotics.files import atomic

REACH, BINS = 6.0, 96  # of the pre-tanh axis; what lies beyond is counted in the outermost bins
STYLES: dict[str, dict[str, Any]] = {
    "recorded": {"color": "0.45", "linestyle": ":", "linewidth": 1.5},
    "prior": {"color": "black", "linestyle": "-"},
    "mirrored": {"color": "black", "linestyle": "--"},
}
_DIPS = ("policy", "prior", "mirrored")  # that are told in a panel's title


@dataclass(frozen=True)
class Row:
    """What is drawn of a policy."""

    label: str
    method: str
    sampled: dict[str, Tensor]  # pre-tanh actions (S, n, a) by where they come from
    modes: dict[str, Modes]


def draw(rows: list[Row], task: str, path: Path) -> None:
    """Three states in each row: the first, and those where the policy's and the prior's dips are largest."""
    figure, panels = pyplot.subplots(
        len(rows), 3, figsize=(10.5, 1.75 * len(rows) + 0.8), dpi=110, squeeze=False, sharex=True, layout="constrained"
    )
    for row, line in zip(rows, panels, strict=True):
        places = [("the first start", 0), ("the policy's largest dip", _largest(row.modes["policy"]))]
        if "prior" in row.modes:
            places.append(("the prior's largest dip", _largest(row.modes["prior"])))
        for axes, (title, state) in zip(line, places, strict=False):
            _draw_state(axes, row, state)
            dips = [f"{name} {modes.dip[state].max():.3f}" for name, modes in row.modes.items() if name in _DIPS]
            axes.set_title(f"{title}\ndip: {', '.join(dips)}", fontsize=7)
        for axes in line[len(places) :]:
            axes.set_axis_off()
        line[0].set_ylabel(row.label.replace(", ", "\n"), fontsize=7)
    for axes in panels[-1]:
        axes.set_xlabel("pre-tanh action", fontsize=8)
    figure.suptitle(task, fontsize=10)
    _legend(figure, panels)
    with atomic(path) as temporary:
        figure.savefig(temporary, format=path.suffix.removeprefix(".") or "png")
    pyplot.close(figure)


def _draw_state(axes: Any, row: Row, state: int) -> None:
    """The action dimension in which the policy's dip is largest."""
    axis = int(row.modes["policy"].dip[state].argmax())
    edges = np.linspace(-REACH, REACH, BINS + 1)
    for name, actions in row.sampled.items():
        values = actions[state, :, axis].numpy().clip(-REACH, REACH)
        if np.isnan(values).any():
            continue
        if name == "policy":
            axes.hist(values, edges, density=True, color=COLORS.get(row.method, "0.4"), alpha=0.6, label="policy")
        elif name in STYLES:
            axes.hist(values, edges, density=True, histtype="step", label=name, **STYLES[name])
    axes.tick_params(labelsize=6)
    axes.set_yticks([])


def _largest(modes: Modes) -> int:
    return int(modes.dip.max(axis=1).argmax())


def _legend(figure: Any, panels: Any) -> None:
    entries: dict[str, Any] = {}
    for axes in panels.flat:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
