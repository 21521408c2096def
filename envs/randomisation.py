"""What differs between worlds by chance besides their starts: model parameters, and noise on what the policy sees."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from envs.draws import Draws
from envs.fields import Fields
from envs.simulation import Simulation
from envs.task import Task
from gorl_robotics.errors import InputError, unknown

# MjModel fields that both engines can keep per world, and whose derived constants both of them recompute.
RANDOMISABLE = (
    "body_mass",
    "body_inertia",
    "body_ipos",
    "body_iquat",
    "body_pos",
    "body_quat",
    "jnt_pos",
    "jnt_axis",
    "jnt_stiffness",
    "jnt_range",
    "jnt_margin",
    "jnt_solref",
    "jnt_solimp",
    "dof_damping",
    "dof_armature",
    "dof_frictionloss",
    "geom_friction",
    "geom_pos",
    "geom_quat",
    "geom_size",
    "geom_margin",
    "geom_solref",
    "geom_solimp",
    "site_pos",
    "site_quat",
    "actuator_gainprm",
    "actuator_biasprm",
    "actuator_gear",
    "actuator_forcerange",
)


def check_parameters(task: Task, sim: Fields, random: Draws) -> dict[str, int]:
    """Draws parameters once and compares them with what the task declares; sizes of what the critic is told.

    Raises:
        InputError: a name or a shape is wrong; one line.
    """
    for name in task.randomised:
        if name not in RANDOMISABLE:
            raise unknown(f"model field in {task.name}.randomised", name, RANDOMISABLE)
    if not task.randomised:
        return {}
    drawn = task.parameters(sim, random)
    if set(drawn.fields) != set(task.randomised):
        raise InputError(
            f"{task.name}.parameters: returned {sorted(drawn.fields)}, but randomised names {sorted(task.randomised)}"
        )
    for name, value in drawn.fields.items():
        expected = (sim.num_worlds, *getattr(sim.model, name).shape)
        if tuple(value.shape) != expected:
            raise _misshapen(task, f"field {name!r}", value, str(expected))
    for name, value in drawn.told.items():
        if value.ndim != 2 or len(value) != sim.num_worlds:
            raise _misshapen(task, f"told {name!r}", value, f"({sim.num_worlds}, size)")
    return {name: value.shape[1] for name, value in drawn.told.items()}


def check_noise(task: Task, observation: Mapping[str, int]) -> None:
    """Raises InputError if `Task.noise` names no observation term, or is not a finite number of 0 or more."""
    for name, half_width in task.noise.items():
        if name not in observation:
            raise unknown(f"observation term in {task.name}.noise", name, observation)
        if not (np.isfinite(half_width) and half_width >= 0):
            raise InputError(f"{task.name}.noise: term {name!r} has half-width {half_width}, expected 0 or more")


class Noise:
    """Uniform noise on the observation: each number of a term within its half-width, anew in every step.

    Args:
        task: declares the half-widths.
        observation: term name to size, in order.
        device: of the observations.
    """

    def __init__(self, task: Task, observation: Mapping[str, int], device: torch.device) -> None:
        widths = [np.full(size, task.noise.get(name, 0.0)) for name, size in observation.items()]
        self._half_width = torch.as_tensor(np.concatenate(widths), dtype=torch.float32, device=device)

    def __call__(self, observation: Tensor, random: Draws) -> Tensor:
        """A noisy copy of `observation` (N, size)."""
        return observation + self._half_width * (2 * random.uniform(len(self._half_width)) - 1).float()


class Randomisation:
    """Model parameters of their own for every world, drawn for each episode and written between rollouts.

    Nothing is written while a rollout runs: its CUDA graphs hold the arrays, and the constants that follow from them
    are dear to compute. A world that begins an episode within a rollout keeps the former parameters until its end.

    Args:
        task: draws the parameters.
        told: sizes of what the critic is told of them, by name.
        sim: the worlds.
    """

    def __init__(self, task: Task, told: Mapping[str, int], sim: Simulation) -> None:
        self._task, self._sim = task, sim
        self.told = torch.zeros(sim.num_worlds, sum(told.values()), device=sim.device)  # of what is in force
        self.due = torch.ones(sim.num_worlds, dtype=torch.bool, device=sim.device)  # has begun an episode since

    def apply(self, random: Draws) -> None:
        """Draws and writes the parameters of the worlds that are due."""
        if self.due.device.type == "cpu" and not self.due.any():
            return  # not worth a synchronisation on a GPU, where most rollouts end an episode somewhere
        drawn = self._task.parameters(self._sim, random)
        self._sim.set_parameters(self.due, drawn.fields)
        if drawn.told:
            told = torch.cat([value.float() for value in drawn.told.values()], dim=1)
            self.told.copy_(told.where(self.due.unsqueeze(1), self.told))
        self.due.zero_()


def _misshapen(task: Task, what: str, value: Tensor, expected: str) -> InputError:
    return InputError(f"{task.name}.parameters: {what} has shape {tuple(value.shape)}, expected {expected}")
