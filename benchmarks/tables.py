"""The results as a Markdown page: figures of every seed, beside what is published."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.series import Series, published

HEAD = """# Results

    python -m benchmarks.report {folders}

wrote this page from the result files there. The return is that of the last policy: a frozen evaluation, acting with
the latent mean, over whole episodes from the same starts; in brackets the 10th percentile over these episodes. ± is the
standard deviation over seeds. "Stochastic" acts with sampled latents. A seed counts as failed if its run broke off, or
if its 10th percentile is below half of the best seed's return on that task: a share of the starts was never solved.

"""
FAILED_BELOW = 0.5  # of the best seed's return on the task
BESIDE = "GoRL paper"


def page(every: list[Series], folders: Iterable[str]) -> str:
    """The whole page."""
    tasks = dict.fromkeys(series.task for series in every)
    parts = [HEAD.format(folders=" ".join(folders)), results_table(every), "\n", origins_table(every)]
    notes = [f"- {entry.name}: {entry.source}.\n" for entry in published()]
    return "".join([*parts, "\n## Published finals\n\n", published_table(tasks), "\n", *notes])


def results_table(every: list[Series]) -> str:
    """A row for each series."""
    head = ["Task", "Method", "Steps", "Mean", "Every seed", "Stochastic", "Failed", f"{BESIDE}, same method"]
    best = {task: _best(every, task) for task in {series.task for series in every}}
    return _markdown(head, [_row(series, best[series.task]) for series in every])


def origins_table(every: list[Series]) -> str:
    """Where each series ran, from which commit and how fast."""
    head = ["Task", "Method", "Hardware", "Commit", "First training step to last checkpoint", "Training steps/s"]
    return _markdown(head, [_origin(series) for series in every if series.results])


def published_table(tasks: Iterable[str]) -> str:
    """What every source reports of every method on these tasks."""
    columns = [(entry, method) for entry in published() for method in entry.finals]
    head = ["Task", *(f"{entry.name}, {method}" for entry, method in columns)]
    rows = [[task, *(_figure(entry.finals[method].get(task)) for entry, method in columns)] for task in tasks]
    return _markdown(head, rows)


def failed(series: Series, best: float) -> list[int]:
    """Seeds whose run broke off or whose final 10th percentile is below half of `best`."""
    low = [seed for seed, run in series.results.items() if run["final"]["deterministic_p10"] < FAILED_BELOW * best]
    return sorted([*low, *series.broken])


def _row(series: Series, best: float) -> list[str]:
    paper = next(entry for entry in published() if entry.name == BESIDE)
    beside = _figure(paper.finals.get(series.method, {}).get(series.task))
    lost = failed(series, best)
    seeds = sorted([*series.results, *series.broken])
    one_by_one = ", ".join(f"{seed}: {_final(series, seed)}" for seed in seeds)
    shown = f"{len(lost)} of {len(seeds)}"
    if not series.results:
        return [series.task, series.label, "", "", one_by_one, "", shown, beside]
    steps = sorted({result["steps"] for result in series.results.values()})
    budget = _range(f"{steps[0] / 1e6:.3g} M", f"{steps[-1] / 1e6:.3g} M")
    mean, stochastic = _plus_minus(series, "deterministic_mean"), _plus_minus(series, "stochastic_mean")
    return [series.task, series.label, budget, f"**{mean}**", one_by_one, stochastic, shown, beside]


def _final(series: Series, seed: int) -> str:
    if seed not in series.results:
        return "broke off"
    final = series.results[seed]["final"]
    return f"{final['deterministic_mean']:.0f} ({final['deterministic_p10']:.0f})"


def _origin(series: Series) -> list[str]:
    results = [result for _, result in sorted(series.results.items())]
    seconds = [
        result["seconds"].get("first_training_step_to_last_checkpoint")
        or result["seconds"]["first_iteration_to_last_evaluation"]
        for result in results
    ]
    rates = [result["steps_per_second"]["rollouts_and_updates"] for result in results]
    return [
        series.task,
        series.label,
        "; ".join(dict.fromkeys(result["hardware"] for result in results)),
        ", ".join(dict.fromkeys(_commit(result) for result in results)),
        _range(f"{min(seconds):.0f} s", f"{max(seconds):.0f} s"),
        _range(f"{min(rates):,}", f"{max(rates):,}"),
    ]


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
    return " ± ".join(f"{value:.0f}" for value in figure) if figure else ""


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
