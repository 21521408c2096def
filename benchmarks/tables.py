"""The results as a Markdown page: figures of every seed, beside what is published."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from statistics import fmean
from typing import Any

from benchmarks.series import Series, published

HEAD = """# Results

    python -m benchmarks.report {folders}

wrote this page from the result files there. The return is that of the last policy: a frozen evaluation, acting with
the latent mean, over whole episodes from the same starts; in brackets the 10th percentile over these episodes. ± is the
standard deviation over seeds, means are over those that came to their end. All steps that are learnt from are counted.
Training steps/s are those of rollouts and updates; the wall-clock is from the first training step to the last
checkpoint, refits and evaluations included.{shared}

"""
SHARED = (
    ' Where it says "K at once", as many runs shared the GPU (or the CPU): that is not the speed of a run alone, which '
    "is faster."
)
RUNS = """
## The runs

"Stochastic" acts with sampled latents. A seed counts as failed if its run broke off, or if its 10th percentile is below
half of the best seed's return on that task: a share of the starts was never solved.

"""
PUBLISHED = """
## What is published

"""
FAILED_BELOW = 0.5  # of the best seed's return on the task
BESIDE = "GoRL paper"
COMPARED = ("Playground", "SLM-Lab")  # whose PPO
NONE = "–"


def page(every: list[Series], folders: Iterable[str]) -> str:
    """The whole page."""
    shared = SHARED if any(_at_once(result) > 1 for series in every for result in series.results.values()) else ""
    notes = [f"- {entry.name}: {entry.source}.\n" for entry in published()]
    head = HEAD.format(folders=" ".join(folders), shared=shared)
    return "".join([head, suite_table(every), RUNS, runs_table(every), PUBLISHED, *notes])


def suite_table(every: list[Series]) -> str:
    """A row for each series: how well and how fast, beside the published figures of PPO."""
    head = ["Task", "Method", "Seeds", "Steps", "Return", "Training steps/s", "Wall-clock"]
    return _markdown([*head, *(f"{name} PPO" for name in COMPARED), "Ours"], [_summary(series) for series in every])


def runs_table(every: list[Series]) -> str:
    """A row for each series: every seed, where it ran and from which commit."""
    head = ["Task", "Method", "Every seed", "Stochastic", "Failed", f"{BESIDE}, same method", "Commit", "Hardware"]
    best = {task: _best(every, task) for task in {series.task for series in every}}
    return _markdown(head, [_runs(series, best[series.task]) for series in every])


def standing(series: Series) -> str:
    """Whether the mean over seeds reaches the published figures of PPO, or which it is below."""
    figures = {name: figure[0] for name in COMPARED if (figure := _published(name, "gaussian", series.task))}
    if not figures or not series.results:
        return NONE
    mean, _ = series.mean_and_std()
    below = [name for name, figure in figures.items() if mean < figure]
    if below:
        return f"**below {_both(below)}**"
    return f"{'better than' if all(mean > figure for figure in figures.values()) else 'as good as'} {_both(figures)}"


def failed(series: Series, best: float) -> list[int]:
    """Seeds whose run broke off or whose final 10th percentile is below half of `best`."""
    low = [seed for seed, run in series.results.items() if run["final"]["deterministic_p10"] < FAILED_BELOW * best]
    return sorted([*low, *series.broken])


def _summary(series: Series) -> list[str]:
    figures = [_figure(_published(name, "gaussian", series.task)) for name in COMPARED]
    finished, asked = len(series.results), len(series.results) + len(series.broken)
    seeds = f"{finished}" if finished == asked else f"{finished} of {asked}"
    if not series.results:
        return [series.task, series.label, seeds, *[NONE] * 4, *figures, NONE]
    steps = sorted({result["steps"] for result in series.results.values()})
    return [
        series.task,
        series.label,
        seeds,
        _range(f"{steps[0] / 1e6:.3g} M", f"{steps[-1] / 1e6:.3g} M"),
        f"**{_plus_minus(series, 'deterministic_mean')}** ({fmean(series.finals('deterministic_p10')):.0f})",
        _by_sharing(series, lambda result: result["steps_per_second"]["rollouts_and_updates"], "{:,}"),
        _by_sharing(series, _seconds, "{:.0f} s"),
        *figures,
        standing(series),
    ]


def _runs(series: Series, best: float) -> list[str]:
    seeds = sorted([*series.results, *series.broken])
    results = [result for _, result in sorted(series.results.items())]
    return [
        series.task,
        series.label,
        ", ".join(f"{seed}: {_final(series, seed)}" for seed in seeds),
        _plus_minus(series, "stochastic_mean") if results else NONE,
        f"{len(failed(series, best))} of {len(seeds)}",
        _figure(_published(BESIDE, series.method, series.task)),
        ", ".join(dict.fromkeys(_commit(result) for result in results)) or NONE,
        "; ".join(dict.fromkeys(result["hardware"] for result in results)) or NONE,
    ]


def _by_sharing(series: Series, value: Callable[[dict[str, Any]], float], form: str) -> str:
    """The least and the greatest value, apart for runs that had the GPU for themselves and for those that shared it."""
    groups: dict[int, list[float]] = {}
    for result in series.results.values():
        groups.setdefault(_at_once(result), []).append(value(result))
    shown = []
    for together, values in sorted(groups.items()):
        span = _range(form.format(min(values)), form.format(max(values)))
        shown.append(span if together == 1 else f"{span} ({together} at once)")
    return "; ".join(shown)


def _at_once(result: dict[str, Any]) -> int:
    return int(result.get("per_gpu", 1))


def _seconds(result: dict[str, Any]) -> float:
    seconds = result["seconds"]
    return float(seconds.get("first_training_step_to_last_checkpoint") or seconds["first_iteration_to_last_evaluation"])


def _published(name: str, method: str, task: str) -> list[float] | None:
    entry = next(entry for entry in published() if entry.name == name)
    return entry.finals.get(method, {}).get(task)


def _both(names: Collection[str]) -> str:
    return "both" if len(names) == len(COMPARED) else next(iter(names))


def _final(series: Series, seed: int) -> str:
    if seed not in series.results:
        return "broke off"
    final = series.results[seed]["final"]
    return f"{final['deterministic_mean']:.0f} ({final['deterministic_p10']:.0f})"


def _range(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"


def _commit(result: dict[str, object]) -> str:
    return str(result["commit"])[:7] + (" and changes" if result.get("dirty") else "")


def _best(every: list[Series], task: str) -> float:
    finals = [value for series in every if series.task == task and series.results for value in series.finals()]
    return max(finals, default=0.0)


def _plus_minus(series: Series, name: str) -> str:
    mean, std = series.mean_and_std(name)
    return f"{mean:.1f}" if std is None else f"{mean:.1f} ± {std:.1f}"


def _figure(figure: list[float] | None) -> str:
    return " ± ".join(f"{value:.0f}" for value in figure) if figure else NONE


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
