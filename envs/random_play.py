"""Worlds of a task in plain MuJoCo that begin at its own starts and act at random: what checks measure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import mujoco
import torch
from torch import Tensor

from envs.controls import action_range
from envs.draws import BatchDraws
from envs.dry_run import Layout
from envs.native_simulation import NativeSimulation
from envs.simulation import Simulation
from envs.task import Task
from envs.user_code import calling
from gorl_robotics.errors import InputError

# So many control steps every second world holds its action: jitter around zero would hardly move a heavy robot.
HELD_STEPS = 25


class RandomPlay:
    """N worlds at the task's starts, settled, in a native simulation.

    Args:
        task: draws the starts.
        model: the task's compiled model.
        layout: of the task.
        num_worlds: N.
        seed: of starts and actions.
    """

    def __init__(self, task: Task, model: mujoco.MjModel, layout: Layout, num_worlds: int, seed: int = 0) -> None:
        self.task = task
        self.sim = NativeSimulation(model, num_worlds, layout.fields, task.timing.physics_steps)
        self._random = BatchDraws(num_worlds, torch.Generator().manual_seed(seed), self.sim.dtype)
        with calling(task, "initial_state"):
            start = task.initial_state(self.sim, self._random)
        everyone = torch.ones(num_worlds, dtype=torch.bool)
        self.sim.reset(everyone, start.qpos, start.qvel, start.mocap_pos, start.mocap_quat)
        if task.settle_steps:
            self.sim.settle(task.settle_steps)
            self.sim.forward()
        low, high = action_range(model)
        self._offset, self._scale = (low + high) / 2, (high - low) / 2
        self._holds = (torch.arange(num_worlds) % 2 == 1).unsqueeze(1)

    def controls(self, steps: int) -> Iterator[int]:
        """Writes random controls for one control step after another; whoever iterates steps the simulation."""
        action = torch.zeros_like(self.sim.ctrl)
        for step in range(steps):
            fresh = 2 * self._random.uniform(action.shape[1]) - 1
            action = action.where(self._holds & torch.tensor(step % HELD_STEPS != 0), fresh)
            self.sim.ctrl.copy_(self._offset + self._scale * action)
            yield step

    def finite(self) -> Tensor:
        """Which worlds are, (N,) bool."""
        return self.sim.qpos.isfinite().all(dim=1) & self.sim.qvel.isfinite().all(dim=1)


@dataclass(frozen=True)
class Peaks:
    """The most contacts and constraint rows that any world had at a time."""

    contacts: int
    rows: int

    @property
    def settings(self) -> tuple[int, int]:
        """`nconmax` and `njmax` with room for twice as much: a trained policy meets other poses than a random one."""
        return max(1, 2 * self.contacts), max(1, 2 * self.rows)


def measure_peaks(task: Task, model: mujoco.MjModel, layout: Layout, num_worlds: int = 16, steps: int = 1000) -> Peaks:
    """Counts contacts and constraint rows after every physics step of `steps` control steps.

    Raises:
        InputError: worlds became non-finite.
    """
    play = RandomPlay(task, model, layout, num_worlds)
    play.sim.physics_steps = 1
    contacts, rows = play.sim.constraint_counts()
    most = [int(contacts.max()), int(rows.max())]
    for _ in play.controls(min(steps, task.episode_length)):
        for _ in range(task.timing.physics_steps):
            play.sim.step()
            most = [max(most[0], int(contacts.max())), max(most[1], int(rows.max()))]
    if lost := int((~play.finite()).sum()):
        raise InputError(
            f"{task.name}: {lost} of {num_worlds} worlds became non-finite under random actions; "
            f"shorten timing.physics (now {task.timing.physics} s) or add damping or armature to the joints"
        )
    return Peaks(*most)


@dataclass(frozen=True)
class Agreement:
    """How far one control step leads apart in the two engines, relative to how far the numbers of a kind spread."""

    median: float
    p99: float
    apart: float  # share of the states above TOLERANCE
    states: int


# The two engines differ by single precision. On 2,000 states each of the suite's robots one step came out at most 3e-4
# apart in its 99th percentile, and 1e-2 or more wherever the engines saw different contacts.
TOLERANCE = 1e-3
SPACING = 1  # control steps between the states that are compared


def agreement(task: Task, model: mujoco.MjModel, layout: Layout, other: Simulation) -> Agreement:
    """One control step from reachable states in plain MuJoCo and in `other`, under the same random controls.

    World i's state is the one that random actions lead to in SPACING · i control steps from its start. A difference is
    divided by the root mean square of that number over all states, but at least by 1e-2 (rad, m, rad/s or m/s).
    """
    worlds = other.num_worlds
    play = RandomPlay(task, model, layout, worlds)
    states = play.sim.state_dict()
    for step in play.controls(SPACING * worlds):
        if step % SPACING == 0:
            row = step // SPACING
            for name, value in play.sim.state_dict().items():
                states[name][row] = value[row]
        play.sim.step()
    after = []
    for sim in (play.sim, other):
        sim.load_state_dict(states)
        sim.forward()  # velocities that equality constraints use are those of the step before
        sim.load_state_dict(states)
        sim.step()
        after.append(torch.cat([sim.qpos, sim.qvel], dim=1).double())
    other.check()
    scale = after[0].square().mean(dim=0).sqrt().clamp(min=1e-2)
    apart = ((after[1] - after[0]).abs() / scale).amax(dim=1).nan_to_num(nan=float("inf"))
    median, p99 = apart.quantile(torch.tensor([0.5, 0.99], dtype=apart.dtype)).tolist()
    return Agreement(median, p99, float((apart > TOLERANCE).double().mean()), worlds)
