"""Writes a first task for a robot: `python -m tasks new my_robot --model robot.xml`."""

from __future__ import annotations

import json
import keyword
import os
import sys
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

from assets import load
from envs.dry_run import dry_run
from envs.random_play import measure_peaks
from envs.task import Task
from gorl_robotics.errors import InputError
from tasks.robot import Robot, Term

CONTROL_STEP = 0.02  # s, as near to it as whole physics steps come

_TEMPLATE = '''\
"""{title}"""

from __future__ import annotations

import math
{path_import}
import mujoco
{torch_import}from torch import Tensor

from assets import load
from envs.draws import Draws
from envs.fields import Fields
from envs.task import InitialState, State, Task, Timing
from tasks.rewards import small_control, tolerance

# What the model offers, by the names that sim.body, sim.joint_qpos, sim.joint_qvel and sim.sensor know:
{parts}


class {kind}(Task):
    """Keep {body} as high as it starts, with little effort. Write here what the robot must do.

{table}
    """

    timing = Timing(control={control!r}, physics={physics!r})  # s; one action lasts a control step
    episode_length = 1000  # control steps
{capacity}    units = {{
{units}
    }}

    def model(self) -> mujoco.MjSpec:
        """The robot. Edit the spec here: options, friction, gains, a target that can be moved."""
        return load({asset})

    def initial_state(self, sim: Fields, random: Draws) -> InitialState:
        """{start_word}, at rest{noise_word}."""
        qpos = {start}
{noise}        return InitialState(qpos, sim.zero_qvel())

    def observe(self, sim: Fields, state: State) -> dict[str, Tensor]:
        """What the policy sees, each term (N, size); a robot must be able to measure it."""
        return {{
{terms}
        }}

    def reward(self, sim: Fields, state: State, action: Tensor) -> Tensor:
        """Up to 1 per control step: 0.8 for the height, the rest for small actions."""
        height = {height}  # m
        return tolerance(height, {lower!r}, math.inf, margin={margin!r}) * (4 + small_control(action)) / 5

    # Further methods, if the task needs them (envs/task.py says what each returns):
    #   terminated(sim, state) ends an episode for good, for example `return {height} < {fallen!r}`
    #   update(sim, state, random) changes what initial_state(..., state={{...}}) began to remember
    #   privileged(sim, state) shows terms to the critic alone
'''


@dataclass(frozen=True)
class Asset:
    """A model: what `assets.load` knows it by now, and how a task file names it, wherever that is run from."""

    name: str
    expression: str


def main(name: str, model: str) -> None:
    """Writes NAME.py into the current folder and says what to run next.

    Raises:
        InputError: the name is no Python name, the file exists, or the model cannot be used.
    """
    stem = name.removesuffix(".py")
    if not stem.isidentifier() or keyword.iskeyword(stem):
        raise InputError(f"{name!r} cannot be a Python file's name; expected letters, digits and _ such as my_robot")
    path = Path.cwd() / f"{stem}.py"
    if path.exists():
        raise InputError(f"{path.name} exists already; nothing was written")
    if _is_module(stem):
        raise InputError(f"{path.name} would hide the Python module {stem!r}; choose another name, such as my_{stem}")
    kind = "".join(word[:1].upper() + word[1:] for word in stem.split("_"))
    asset = _asset(model)
    robot = _robot(asset)
    text, size, note = _measured(path, kind, asset, robot)
    with path.open("x") as file:
        file.write(text)
    print(f"wrote {path.name}: {size} observations, {len(robot.actuators)} actions{note}")
    print(f"next: python -m tasks check {path.name}:{kind}\nthen: python train.py task={path.name}:{kind}")


def source(kind: str, asset: Asset, robot: Robot, capacity: tuple[int, int] | None) -> str:
    """The text of a task file for `robot`."""
    physics = float(robot.model.opt.timestep)
    steps = max(1, round(CONTROL_STEP / physics))
    reach, terms = max(abs(robot.height), 0.1), robot.terms()
    noise = [f"        qpos[:, {columns}] += 0.02 * random.normal({size})\n" for columns, size in robot.movable()]
    start_word, start = robot.start
    return _TEMPLATE.format(
        title=f"A task for {asset.name.removeprefix('file:')}, begun by `python -m tasks new`.",
        path_import="from pathlib import Path\n" if "Path(" in asset.expression else "",
        torch_import="import torch\n" if any("torch." in term.expression for term in terms) else "",
        parts="\n".join(robot.parts()),
        kind=kind,
        body=robot.body,
        table=_table(terms),
        control=float(f"{steps * physics:.12g}"),
        physics=physics,
        capacity="    nconmax, njmax = {}, {}  # twice what random actions needed\n".format(*capacity)
        if capacity
        else "",
        units="\n".join(f'        "{term.name}": "{term.unit}",' for term in terms),
        asset=asset.expression,
        start_word=start_word,
        start=start,
        noise_word=", joints a little off" if noise else "",
        noise="".join(noise),
        terms="\n".join(_term(term) for term in terms),
        height=f"sim.xipos[:, {robot.body_expression}, 2]",
        lower=round(robot.height - 0.1 * reach, 3),
        margin=round(reach / 2, 3),
        fallen=round(robot.height - reach / 2, 3),
    )


def _measured(path: Path, kind: str, asset: Asset, robot: Robot) -> tuple[str, int, str]:
    """The file's text with the capacities that a first trial of it measured, its observations, and a note on it."""
    text = source(kind, asset, robot, None)
    task = _draft(path, kind, text)
    model = task.compile()
    layout = dry_run(task, model)
    try:
        text = source(kind, asset, robot, measure_peaks(task, model, layout).settings)
    except InputError as error:  # the robot falls apart under random actions: for its owner to mend in the file
        return text, layout.observation_size, f"; but {error}"
    return text, layout.observation_size, ""


def _draft(path: Path, kind: str, text: str) -> Task:
    """The task that a text defines which is not a file yet."""
    namespace: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    exec(compile(text, str(path), "exec"), namespace)
    task: type[Task] = namespace[kind]
    task.name = kind
    return task()


def _is_module(name: str) -> bool:
    """Whether Python, an installed package or this project has a module of that name."""
    here = Path(__file__).resolve().parents[1]
    own = (here / name / "__init__.py").exists() or (here / f"{name}.py").exists()
    return own or name in sys.stdlib_module_names or name in packages_distributions()


def _asset(model: str) -> Asset:
    file = Path(model.removeprefix("file:")).expanduser()
    if ":" in model and not model.startswith("file:") and not file.is_file():
        return Asset(model, f'"{model}"')
    relative = os.path.relpath(file.resolve(), Path.cwd())
    return Asset(f"file:{relative}", f'"file:" + str(Path(__file__).parent / {json.dumps(relative)})')


def _robot(asset: Asset) -> Robot:
    spec = load(asset.name)
    try:
        model = spec.compile()
    except ValueError as error:
        raise InputError(f"{asset.name}: the model does not compile: {' '.join(str(error).split())}") from error
    if model.nu == 0:
        raise InputError(f"{asset.name}: the model has no actuators, so there is nothing to control; add some to it")
    return Robot(model)


def _table(terms: list[Term]) -> str:
    rows = [("term", "size", "unit"), *((term.name, str(term.size), term.unit) for term in terms)]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(f"    {line}" for line in lines)


def _term(term: Term) -> str:
    comment = f"  # {term.comment}" if term.comment else ""
    line = f'            "{term.name}": {term.expression},{comment}'
    if len(line) <= 120 or len(term.pieces) == 1:
        return line
    pieces = "".join(f"                    {piece},\n" for piece in term.pieces)
    start = f'            "{term.name}": torch.cat(\n                [\n{pieces}                ],'
    return f"{start}\n                dim=1,\n            ),{comment}"
