"""Whether trained policies have several ways in one state: peaks in the distribution of actions, state by state.

    python -m benchmarks.multimodality RUN [RUN ...] [--mirrored] [--out FILE.json] [--figure FILE.png]

A RUN is a run folder, or a checkpoint in one; all of one task. All policies are looked at in the same states: start
states, and states along the deterministic rollouts of every policy. Of each state 1,024 pre-tanh actions are drawn

    policy     as it acts: z = μ + σ·noise, decoded
    prior      from z ~ N(0, I) through the decoder (GoRL): what the refit has learnt, what a stage begins with
    recorded   the 256 nearest samples of the recording that the decoder was fitted to (of other methods: the last one)
    clipped    those, clipped as the refit clips them
    mirrored   `prior` of another decoder, fitted to that recording and its mirror image (with --mirrored), by the run's
               own settings of a refit except those given here

and tested for more than one peak (`benchmarks.modes`). A Gaussian policy has one peak by construction: what the test
finds there is its error rate. `mirrored` is the control on the other side: a decoder whose data have both ways. The
return shown beside them is that with which the stage ended, before its refit.

Task: CartpoleSwingup. Cart and rail, pole and limits are symmetric, and so is the reward; mirrored states with mirrored
forces lead to mirrored states and the same reward (a test holds that to be so). An episode starts with the pole hanging
still and the cart in the middle, up to a hundredth, and there the best policy has two answers of the same worth: set
out to the left or to the right. Each start is visited with its image, and the state half-way between two images is
its own: a policy that knows both ways has two peaks there.
"""

from __future__ import annotations

import argparse
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import tasks
from benchmarks.action_figure import Row, draw
from benchmarks.action_sources import (
    NEIGHBOURS,
    RADIUS,
    Trained,
    fitted_to_both,
    from_neighbours,
    from_policy,
    from_prior,
    load,
    recorded,
    refit_settings,
)
from benchmarks.arguments import apart
from benchmarks.modes import LEVEL, Modes, measure
from benchmarks.provenance import RESULTS, provenance, write
from benchmarks.symmetry import MIRRORS, Mirror, Visited, visit
from gorl_robotics.command_line import Parser
from gorl_robotics.config import config_values, resolve
from gorl_robotics.errors import InputError, run_main
from gorl_robotics.methods.gorl import GorlPolicy

SAMPLES = 1024
GROUPS = ("start", "rollout")


def main() -> None:
    """The command line."""
    settings, others = apart(sys.argv[1:])
    arguments, given = _parser().parse_args(others), refit_settings(settings)
    every = [load(run) for run in arguments.runs]
    task = _one_task(every)
    mirror = MIRRORS.get(task)
    if arguments.mirrored and mirror is None:
        raise InputError(f"--mirrored: no mirror is known of {task}; known: {', '.join(sorted(MIRRORS))}")
    states = visit(tasks.make(every[0].config.task), [one.policy for one in every], mirror)
    result: dict[str, Any] = {
        "task": task,
        **provenance(["-m", "benchmarks.multimodality", *sys.argv[1:]], arguments.commit),
        "measure": {"test": "Hartigan's dip of pre-tanh actions", "level": LEVEL, "samples": SAMPLES},
        "neighbourhood": {"samples": NEIGHBOURS, "radius": RADIUS},
        "settings": given,
        "policies": [],
    }
    result["versions"]["diptest"] = metadata.version("diptest")
    rows: dict[str, Row] = {}
    for one in every:
        sampled = _sources(one, states, mirror if arguments.mirrored else None, given)
        modes = {name: measure(actions) for name, actions in sampled.items()}
        result["policies"].append(_entry(one, states, modes))
        rows.setdefault(one.config.method, Row(one.label, one.config.method, sampled, modes))
    Console(width=None if sys.stdout.isatty() else 120).print(table(result))
    write(arguments.out or RESULTS / "multimodality" / f"{task.lower()}.json", result)
    if arguments.figure:
        draw(list(rows.values()), task, arguments.figure)


def table(result: dict[str, Any]) -> Table:
    """The shares of states with more than one peak, for people."""
    shown = Table(title=f"{result['task']}: states with more than one peak", title_justify="left")
    for column in ("policy", "return", "actions"):
        shown.add_column(column, justify="right" if column == "return" else "left")
    for column in ("starts", "largest dip", "both ways", "rollouts", "largest dip", "both ways"):
        shown.add_column(column, justify="right")
    for entry in result["policies"]:
        name, score = entry["label"], f"{entry['return']:.0f}"
        for source, groups in entry["actions"].items():
            shown.add_row(name, score, source, *(cell for group in GROUPS for cell in _cells(groups[group])))
            name = score = ""
        shown.add_section()
    return shown


def _cells(numbers: dict[str, Any]) -> tuple[str, str, str]:
    if not numbers["states"]:
        return "no data", "", ""
    share = f"{numbers['multimodal']:.1%} of {numbers['states']}"
    return share, f"{numbers['dip_largest']:.3f}", f"{numbers['both_ways']:.1%}"


def _sources(one: Trained, states: Visited, mirror: Mirror | None, given: dict[str, Any]) -> dict[str, Tensor]:
    """Pre-tanh actions (S, n, a) by where they come from; `mirrored` if there is a mirror."""
    generator, seen = torch.Generator().manual_seed(0), states.observation
    sampled, data = {"policy": from_policy(one.policy, seen, SAMPLES, generator)}, recorded(one)
    if isinstance(one.policy, GorlPolicy) and one.policy.generative:
        sampled["prior"] = from_prior(one.policy.decoder, seen, SAMPLES, generator)
    if data is not None:
        bound = one.config.refit.action_bound
        sampled["recorded"] = from_neighbours(data, seen)
        sampled["clipped"] = sampled["recorded"].clamp(-bound, bound)
        if mirror and isinstance(one.policy, GorlPolicy):
            config = resolve({**config_values(one.config), **given})
            decoder = fitted_to_both(one.policy, data, config, mirror, generator)
            sampled["mirrored"] = from_prior(decoder, seen, SAMPLES, generator)
    return sampled


def _entry(one: Trained, states: Visited, modes: dict[str, Modes]) -> dict[str, Any]:
    chosen = {"start": states.start.numpy(), "rollout": ~states.start.numpy()}
    first = np.arange(len(states)) == 0
    return {
        "label": one.label,
        "method": one.config.method,
        "seed": one.config.seed,
        "stage": one.stage,
        "steps": one.steps,
        "commit": one.commit,
        "return": round(one.evaluation["deterministic_mean"], 1),
        "actions": {
            name: {"middle": found.summary(first), **{group: found.summary(chosen[group]) for group in GROUPS}}
            for name, found in modes.items()
        },
    }


def _one_task(every: list[Trained]) -> str:
    names = list(dict.fromkeys(one.config.task_name for one in every))
    if len(names) > 1:
        raise InputError(f"runs of {' and '.join(names)}: expected runs of one task, which are seen in the same states")
    return names[0]


def _parser() -> Parser:
    parser = Parser(
        prog="python -m benchmarks.multimodality",
        usage="%(prog)s RUN [RUN ...] [options] [refit.NAME=VALUE ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder, or a checkpoint in one")
    parser.add_argument("--mirrored", action="store_true", help="fit a decoder to each recording and its mirror image")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="default: benchmarks/results/multimodality/TASK")
    parser.add_argument("--figure", type=Path, metavar="FILE.png", help="draw actions of the first RUN of each method")
    parser.add_argument("--commit", default="", help="of this code, where git cannot tell")
    return parser


if __name__ == "__main__":
    run_main(main)
