"""Draws the learning curves of result files: python -m benchmarks.plot FILE.json [...] --out picture.png."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from gorl_robotics.errors import run_main

PUBLISHED = {"GoRL paper, diffusion, 180 M": 874.6, "GoRL paper, flow, 180 M": 733.7, "GoRL paper, PPO, 180 M": 286.1}


def draw(results: list[dict[str, Any]], out: Path) -> None:
    """One line a run: the mean over its monitor worlds; the band below reaches to their 10th percentile."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.6), dpi=120)
    for number, result in enumerate(results):
        curve, color = result["curve"], f"C{number}"
        known = [i for i, mean in enumerate(curve["return/monitor_mean"]) if mean is not None]
        steps = [curve["steps"][i] / 1e6 for i in known]
        mean = [curve["return/monitor_mean"][i] for i in known]
        low = [curve["return/monitor_p10"][i] for i in known]
        label = f"seed {result['settings']['seed']}: final {result['final']['deterministic_mean']:.0f}"
        axes.plot(steps, mean, color=color, linewidth=1.4, label=label)
        axes.fill_between(steps, low, mean, color=color, alpha=0.12, linewidth=0)
    for (name, value), style in zip(PUBLISHED.items(), ("--", "-.", ":"), strict=True):
        axes.axhline(value, color="0.4", linestyle=style, linewidth=1, label=f"{name}: {value:.0f}")
    axes.set(xlabel="million environment steps", ylabel="deterministic return", ylim=(0, 1000), xlim=(0, None))
    axes.set_title(f"{results[0]['settings']['task']}: monitor worlds, mean and down to the 10th percentile")
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, frameon=False)
    figure.tight_layout()
    figure.savefig(out)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    draw([json.loads(file.read_text()) for file in arguments.files], arguments.out)


if __name__ == "__main__":
    run_main(main)
