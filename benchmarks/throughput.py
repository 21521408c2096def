"""How fast each part of training is, as a rate and as a share of what the physics alone does in the same run.

    python -m benchmarks.throughput --task HopperStand --num-envs 1024 4096 16384
    python -m benchmarks.throughput --task HopperStand --num-envs 4096 --stages start
    python -m benchmarks.throughput --task HopperStand --num-envs 4096 --stages physics,rollout,train
    python -m benchmarks.throughput --task HopperStand --num-envs 4096 --trace trace.json.gz networks.flow_steps=20
    python -m benchmarks.throughput --task HopperStand --num-envs 4096 --stages rollout --vary networks.flow_steps 1 20

`--vary SETTING VALUE ...` measures each value by itself, with every number of worlds; given more than once, one setting
is varied after the other, while the others stay as they are. A table at the end puts rates and memory side by side.
Stages are separated by commas or spaces.

Rates are control steps per second of the worlds that are learnt from, medians over five blocks. The ceiling,
`physics`, is those worlds' captured `step()` under random controls, with the masked reset that a control step needs.
`train` is the whole of a run in its configured proportions of iterations, recording, refits and checkpoints, without
compilation and frozen evaluations. `--stages start` starts `train.py` twice, with empty kernel caches and with those
that the first start has filled.
"""

from __future__ import annotations

import argparse
import gc
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import tasks
from benchmarks.arguments import apart, as_arguments, checked, whole
from benchmarks.provenance import PLACES, RESULTS, provenance, write
from benchmarks.stages import Bench
from benchmarks.start import start
from gorl_robotics import methods
from gorl_robotics.command_line import Parser
from gorl_robotics.config import Config, config_values
from gorl_robotics.device import choose_device
from gorl_robotics.errors import InputError, run_main, unknown

STAGES = ("physics", "env", "rollout", "update", "storage", "refit", "train", "start")
DEFAULT_STAGES = STAGES[:-1]
SWEPT = ("physics", "env", "rollout", "rollout_fitted", "update", "iteration_fitted", "train")
MEMORY = {"torch_peak": "torch's peak", "device_used": "taken of the GPU"}
OWN = ("task", "num_envs", "resume", "checkpoint", "test")
Stage = tuple[str, Callable[[], dict[str, dict[str, Any]]]]


def main() -> None:
    """The command line."""
    settings, others = apart(sys.argv[1:])
    arguments = _parser().parse_args(others)
    given = {"task": arguments.task, **checked(settings, OWN)}
    variations = _variations(arguments.vary)
    stages = [name for word in arguments.stages for name in word.split(",") if name]
    for stage in stages:
        if stage not in STAGES:
            raise unknown("stage", stage, STAGES)
    tasks.make(arguments.task)
    result = {
        "task": arguments.task,
        **provenance(["-m", "benchmarks.throughput", *sys.argv[1:]], arguments.commit),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "settings": {name: value for name, value in given.items() if name not in PLACES},
        "measurements": [],
    }
    cases = [(worlds, one) for one in variations for worlds in arguments.num_envs]
    out, failures = arguments.out or _usual_file(result, variations), 0
    console = Console(width=None if sys.stdout.isatty() else 120)
    for worlds, varied in cases:
        measurement: dict[str, Any] = {"num_envs": worlds, **({"varied": varied} if varied else {}), "stages": {}}
        result["measurements"].append(measurement)
        trace = arguments.trace if (worlds, varied) == cases[-1] else None  # one timeline is enough
        for name in _measure({**given, **varied, "num_envs": worlds}, stages, trace, measurement):
            failures += "failure" in measurement["stages"].get(name, {})
            write(out, result)
        console.print(table(arguments.task, measurement))
    if arguments.vary:
        console.print(sweep_table(arguments.task, result["measurements"]))
    print(out)
    if failures:
        sys.exit(1)


def table(task: str, measurement: dict[str, Any]) -> Table:
    """The measurement of one number of worlds, for people."""
    case = [f"{measurement['num_envs']:,} worlds", *as_arguments(measurement.get("varied", {}))]
    shown = Table(title=", ".join([task, *case]), title_justify="left")
    for column, justify in (("part", "left"), ("steps/s", "right"), ("ms per control step", "right")):
        shown.add_column(column, justify=justify)  # type: ignore[arg-type]
    shown.add_column("of physics", justify="right")
    shown.add_column("", overflow="fold")
    for name, numbers in measurement["stages"].items():
        if "failure" in numbers:
            shown.add_row(name, "", "", "", f"failed: {numbers['failure']}")
            continue
        rate, share = numbers.get("steps_per_second"), numbers.get("share")
        shown.add_row(
            name,
            "" if rate is None else f"{rate:,.0f}",
            f"{numbers['ms_per_control_step']:.3f}" if rate else "",
            "" if share is None else f"{share:.1%}",
            _remark(name, numbers),
        )
    return shown


def sweep_table(task: str, measurements: list[dict[str, Any]]) -> Table:
    """Rates of all measured parts, in steps/s, and GPU memory, a row for each value of each varied setting."""
    parts = [name for name in SWEPT if any(_rate(row, name) for row in measurements)]
    sizes = [name for name in MEMORY if any(name in row["stages"].get("memory", {}) for row in measurements)]
    shown = Table(title=f"{task}, steps/s", title_justify="left")
    shown.add_column("setting")
    for column in ("worlds", *(name.replace("_", " ") for name in parts), *(MEMORY[name] for name in sizes)):
        shown.add_column(column, justify="right")
    for row in measurements:
        memory = row["stages"].get("memory", {})
        shown.add_row(
            *as_arguments(row["varied"]),
            f"{row['num_envs']:,}",
            *(f"{rate:,.0f}" if (rate := _rate(row, name)) else "" for name in parts),
            *(f"{memory[name] / 2**30:.2f} GiB" if name in memory else "" for name in sizes),
        )
    return shown


def configuration(given: dict[str, Any]) -> Config:
    """The settings as `train.py` resolves them for the device."""
    task = tasks.make(given["task"])
    on_cpu = choose_device(given.get("device", "auto")).type == "cpu"
    return methods.configure(given, task.compile().nu, on_cpu, task.overrides)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m benchmarks.throughput",
        usage="%(prog)s --task TASK --num-envs N ... [options] [SETTING=VALUE ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--task", required=True)
    parser.add_argument("--num-envs", type=whole, nargs="+", required=True, metavar="N")
    parser.add_argument("--stages", nargs="+", default=DEFAULT_STAGES, metavar="STAGE", help=f"of {','.join(STAGES)}")
    parser.add_argument(
        "--vary", nargs="+", action="append", default=[], metavar="WORD", help="a setting and its values"
    )
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write a timeline of rollout and update")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: a file in benchmarks/results/throughput")
    parser.add_argument("--commit", default="", help="of this code, where git cannot tell")
    return parser


def _measure(
    given: dict[str, Any], stages: list[str], trace: Path | None, measurement: dict[str, Any]
) -> Iterator[str]:
    """Measures one stage after the other into `measurement`; yields the name of each, or of what failed, when done."""
    runs = Path(given.get("runs", "runs"))  # the disk that runs are recorded to
    runs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="throughput-", dir=runs) as folder:
        bench: list[Bench] = []
        for name, work in _stages(given, stages, trace, bench, Path(folder)):
            try:
                measurement["stages"].update(work())
            except Exception as error:  # whatever it is, the other stages' numbers are worth having
                reason = " ".join(str(error).split()) or type(error).__name__
                measurement["stages"][name] = {"failure": reason[:500]}
            _add_shares(measurement["stages"])
            yield name
        for made in bench:
            made.close()
        bench.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _stages(
    given: dict[str, Any], stages: list[str], trace: Path | None, bench: list[Bench], folder: Path
) -> Iterator[Stage]:
    """What is to be done, in the order in which one part disturbs the next least."""
    if "start" in stages:
        command = as_arguments(given)
        caches = folder / "caches"  # the first start fills what the second finds
        yield "start_cold", lambda: {"start_cold": start(command, caches)}
        yield "start_warm", lambda: {"start_warm": start(command, caches)}
    if stages == ["start"] and trace is None:
        return
    yield "build", lambda: _build(given, bench, folder)
    if not bench:
        return
    made = bench[0]
    known = {
        "physics": made.physics,
        "env": made.environment,
        "rollout": made.rollout,
        "storage": made.storage,
        "refit": made.refit,
        "train": made.train,
        "update": made.update,
    }
    for name, work in known.items():
        if name in stages:
            yield name, work
    if made.device.type == "cuda":
        yield "memory", made.memory
    if trace is not None:
        yield "trace", lambda: made.trace(trace)


def _build(given: dict[str, Any], bench: list[Bench], folder: Path) -> dict[str, dict[str, Any]]:
    """Makes the worlds and networks, once, and says how long that took."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    began = perf_counter()
    bench.append(Bench(configuration(given), folder))
    values = {name: value for name, value in config_values(bench[0].config).items() if name not in PLACES}
    return {"build": {"seconds": perf_counter() - began, "settings": values}}


def _add_shares(stages: dict[str, dict[str, Any]]) -> None:
    ceiling = stages.get("physics", {}).get("steps_per_second")
    for numbers in stages.values():
        if ceiling and "steps_per_second" in numbers:
            numbers["share"] = numbers["steps_per_second"] / ceiling


def _remark(name: str, numbers: dict[str, Any]) -> str:
    if "time_shares" in numbers:
        return ", ".join(f"{part.replace('_', ' ')} {share:.1%}" for part, share in numbers["time_shares"].items())
    if "monitor_share" in numbers:
        return f"monitor worlds take {numbers['monitor_share']:.1%}"
    if "cost" in numbers:
        return f"recording costs {numbers['cost']:.1%}"
    if "torch_peak" in numbers:
        return ", ".join(f"{part.replace('_', ' ')} {size / 2**30:.2f} GiB" for part, size in numbers.items())
    if "file" in numbers:
        return str(numbers["file"])
    if "steps_per_second" not in numbers:
        return f"{numbers['seconds']:.2f} s" + (f" for {numbers['samples']:,} samples" if "samples" in numbers else "")
    return ""


def _variations(vary: list[list[str]]) -> list[dict[str, Any]]:
    """The settings of each measurement that differ from the others'; [{}] if none is varied.

    Raises:
        InputError: a setting or a value is wrong, or there is no value.
    """
    for name, *values in vary:
        if not values:
            raise InputError(f"--vary {name}: expected a setting and one or more values for it")
    return [checked([f"{name}={value}"], OWN) for name, *values in vary for value in values] or [{}]


def _rate(measurement: dict[str, Any], part: str) -> float | None:
    return measurement["stages"].get(part, {}).get("steps_per_second")


def _usual_file(result: dict[str, Any], variations: list[dict[str, Any]]) -> Path:
    varied = dict.fromkeys(name for one in variations for name in one)
    words = re.findall(r"[a-z0-9]+", " ".join([result["task"], result["device"], *varied]).lower())
    return RESULTS / "throughput" / f"{'-'.join(words)}.json"


if __name__ == "__main__":
    run_main(main)
