"""Tries a task out before it is trained: `python -m tasks check NAME`, or FILE.py:CLASS."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import mujoco
import torch
from rich.console import Console
from rich.table import Table

import tasks
from envs.dry_run import Layout, dry_run
from envs.fake_run import FakeRun, Returned, fake_run
from envs.onnx_trace import trace
from envs.random_play import TOLERANCE, agreement, measure_peaks
from envs.rehearsal import masked_reset, play, separate_worlds
from envs.task import Task
from envs.user_code import defined_at, fault, raised_at, summary
from envs.vector_env import VectorEnv
from gorl_robotics.errors import InputError, unknown

WORLDS = {"cpu": 256, "cuda": 4096}
STATES = 128  # compared between the two simulations
STEPS = 100  # control steps that are timed
_CLOSE = 1e-2  # differences above it, in one state in a hundred, are told
_ROOM = 1.5  # a capacity below so many times what random actions needed is told


class Caution(Exception):
    """A check that passed, with something to think about."""


class NotRun(Exception):
    """A check that this machine cannot run, or that makes no sense after a failed one."""


@dataclass
class Subject:
    """A task, and what the checks share; each part is made when it is first asked for."""

    name: str
    task: Task = field(init=False)

    def __post_init__(self) -> None:
        self.task = tasks.make(self.name)

    @cached_property
    def model(self) -> mujoco.MjModel:
        """The compiled model."""
        return self.task.compile()

    @cached_property
    def layout(self) -> Layout:
        """What a dry run finds."""
        return dry_run(self.task, self.model)

    @cached_property
    def fake(self) -> FakeRun:
        """What a run without data finds."""
        return fake_run(self.task, self.model, self.layout)

    @cached_property
    def env(self) -> VectorEnv:
        """Worlds on the CPU."""
        return VectorEnv(self.task, WORLDS["cpu"])


@dataclass(frozen=True)
class Outcome:
    """How a check ended: its verdict (ok, caution, failed, not run), and one line or more about it."""

    check: str
    verdict: str
    lines: tuple[str, ...]


def check(subject: Subject, tell: Callable[[str], None] = lambda _: None) -> list[Outcome]:
    """Runs all checks; `tell` hears which one is under way. Where model or methods fail the rest is not run."""
    outcomes: list[Outcome] = []
    for name, function in CHECKS.items():
        tell(name)
        if any(outcome.verdict == "failed" for outcome in outcomes if outcome.check in _FIRST):
            outcomes.append(Outcome(name, "not run", ("what failed above comes first",)))
        else:
            outcomes.append(_outcome(name, function, subject))
    return outcomes


def _outcome(name: str, function: Callable[[Subject], str], subject: Subject) -> Outcome:
    try:
        return Outcome(name, "ok", (function(subject),))
    except Caution as caution:
        return Outcome(name, "caution", (str(caution),))
    except NotRun as reason:
        return Outcome(name, "not run", (str(reason),))
    except _Faults as faults:
        return Outcome(name, "failed", faults.lines)
    except InputError as error:
        return Outcome(name, "failed", (str(error),))
    except Exception as error:  # whatever a check makes of a task, the others are run
        where = raised_at(type(subject.task), error)
        return Outcome(name, "failed", (f"{where + ': ' if where else ''}{subject.task.name}: {summary(error)}",))


class _Faults(Exception):
    def __init__(self, lines: tuple[str, ...]) -> None:
        self.lines = lines


def _model(subject: Subject) -> str:
    model = subject.model
    return f"{model.nbody - 1} bodies, {model.njnt} joints, {model.nu} actuators, {model.nsensor} sensors"


def _methods(subject: Subject) -> str:
    layout, task = subject.layout, subject.task
    for name in task.units:
        if name not in {**layout.observation, **layout.privileged}:
            raise Caution(str(unknown("observation term in units:", name, layout.observation)))
    return f"{layout.observation_size} observations, finite at the first starts and after a control step"


def _graph(subject: Subject) -> str:
    if subject.fake.faults:
        raise _Faults(subject.fake.faults)
    return "no look at a value, no shape that depends on data, no copy from or to the host"


def _worlds(subject: Subject) -> str:
    masked_reset(subject.env)
    separate_worlds(subject.env)
    return "a reset touches the masked worlds alone; no world depends on another"


def _steps(subject: Subject) -> str:
    speed = play(subject.env, STEPS)
    return f"finite under random actions; {speed:,.0f} control steps/s in {subject.env.num_worlds} worlds on this CPU"


def _onnx(subject: Subject) -> str:
    return f"onnxruntime is within {trace(subject.task, subject.model, subject.layout):.0e} of torch"


def _capacity(subject: Subject) -> str:
    task = subject.task
    peaks = measure_peaks(task, subject.model, subject.layout)
    nconmax, njmax = peaks.settings
    found = f"at most {peaks.contacts} contacts and {peaks.rows} constraint rows in a world"
    advice = f"nconmax, njmax = {nconmax}, {njmax}"
    if task.njmax is not None and task.njmax < peaks.rows:
        raise InputError(f"{defined_at(type(task), '')}: {task.name}: {found}, but njmax is {task.njmax}; set {advice}")
    for own, peak in ((task.nconmax, peaks.contacts), (task.njmax, peaks.rows)):
        if own is not None and own < _ROOM * peak:
            raise Caution(f"{found}, which leaves little room in {task.nconmax}, {task.njmax}; set {advice}")
    if task.nconmax is None or task.njmax is None:
        raise Caution(f"{found}; set {advice}")
    return f"{found}; nconmax, njmax = {task.nconmax}, {task.njmax}"


def _engines(subject: Subject) -> str:
    from envs.warp_simulation import WarpSimulation

    task, steps = subject.task, subject.task.timing.physics_steps
    model, layout, device = subject.model, subject.layout, torch.device("cpu")
    warp = WarpSimulation(model, STATES, layout.fields, steps, device, task.nconmax, task.njmax)
    result = agreement(task, model, layout, warp)
    found = (
        f"one control step from {result.states} states is {result.median:.0e} apart in the median, "
        f"{result.p99:.0e} in the 99th percentile"
    )
    if not result.median <= TOLERANCE:
        raise fault(
            task,
            "model",
            f"{found}; at most {TOLERANCE:.0e} is allowed in the median, or what trains on the GPU is not what plays "
            "in MuJoCo: raise spec.option.iterations and ls_iterations, or shorten timing.physics",
        )
    if not result.p99 <= _CLOSE:
        raise Caution(
            f"{found}; {result.apart:.0%} are more than {TOLERANCE:.0e} apart: contacts at an edge, or a solver that "
            "has not converged (raise spec.option.iterations)"
        )
    return f"{found}; allowed {TOLERANCE:.0e}"


def _cuda(subject: Subject) -> str:
    if not torch.cuda.is_available():
        raise NotRun("there is no CUDA device here")
    with torch.cuda.stream(torch.cuda.Stream()):
        env = VectorEnv(subject.task, WORLDS["cuda"], device="cuda")
        action = torch.zeros(env.num_worlds, env.action_size, device="cuda")
        for _ in range(3):
            env.step(action)  # libraries initialise themselves, the physics records its own graphs
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(env.generator)
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
            env.apply(action)
            env.finish()
        graph.replay()
        speed = play(env, STEPS)
    return f"the environment step is captured; {speed:,.0f} control steps/s in {env.num_worlds} worlds, uncaptured"


CHECKS: dict[str, Callable[[Subject], str]] = {
    "model compiles": _model,
    "methods return what they should": _methods,
    "fit for a CUDA graph": _graph,
    "worlds are apart": _worlds,
    "plays": _steps,
    "leaves for ONNX": _onnx,
    "room for contacts": _capacity,
    "MuJoCo Warp agrees with MuJoCo": _engines,
    "captured on CUDA": _cuda,
}
_FIRST = ("model compiles", "methods return what they should")
_COLOURS = {"ok": "green", "caution": "yellow", "failed": "red", "not run": "dim"}


def main(name: str) -> None:
    """Checks a task, prints what was found, and exits with 2 if anything failed, one line each."""
    console, subject = Console(), Subject(name)
    with console.status("") as status:
        outcomes = check(subject, lambda what: status.update(f"{what} ..."))
    failed = [line for outcome in outcomes if outcome.verdict == "failed" for line in outcome.lines]
    if "layout" in vars(subject):
        console.print(_returned(subject.fake.returned))
    table = Table("check", "", "found", box=None)
    for outcome in outcomes:
        found = "see below" if outcome.verdict == "failed" else outcome.lines[0]
        table.add_row(outcome.check, f"[{_COLOURS[outcome.verdict]}]{outcome.verdict}[/]", found)
    console.print(table)
    for line in failed:
        print(f"error: {line}", file=sys.stderr)
    if failed:
        sys.exit(2)


def _returned(items: tuple[Returned, ...]) -> Table:
    table = Table("method", "returns", "got", "expected", box=None)
    for item in items:
        got = _type(item.shape, item.dtype)
        expected = "" if item.expected_shape is None else _type(item.expected_shape, item.expected_dtype)
        table.add_row(item.method, item.what, got if got == expected else f"[red]{got}[/]", expected)
    return table


def _type(shape: tuple[int, ...], dtype: torch.dtype | None) -> str:
    sizes = ", ".join(map(str, shape[1:]))
    return f"(N, {sizes}) {dtype}".replace("torch.", "") if sizes else f"(N,) {dtype}".replace("torch.", "")
