"""One pass through a task's methods on two worlds: which fields it reads, what shapes it returns, and is that right?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import mujoco
import numpy as np
import torch
from torch import Tensor

from envs.fields import Fields, check_computed, field_shape
from envs.randomisation import check_noise, check_parameters
from envs.task import State, Task
from gorl_robotics.errors import InputError

WORLDS = 2


@dataclass(frozen=True)
class Layout:
    """What a task reads and returns, found by a dry run."""

    fields: tuple[str, ...]  # simulation fields that observe, reward, terminated, update and privileged read
    observation: dict[str, int]  # term name to size, in order
    privileged: dict[str, int]
    state: dict[str, tuple[tuple[int, ...], torch.dtype]]  # per world
    update_draws: tuple[tuple[str, tuple[int, ...]], ...]  # ("uniform" | "normal", size) in the order drawn
    told: dict[str, int]  # what the critic is told of the randomised parameters

    @property
    def observation_size(self) -> int:
        """Width of the concatenated observation."""
        return sum(self.observation.values())

    @property
    def critic_observation_size(self) -> int:
        """Width of what the critic sees: the observation, the privileged terms, what it is told of the parameters."""
        return self.observation_size + sum(self.privileged.values()) + sum(self.told.values())


class RecordingFields(Fields):
    """Fields of one model at its default pose that remember which of them were read."""

    def __init__(self, model: mujoco.MjModel, num_worlds: int = WORLDS) -> None:
        data = mujoco.MjData(model)
        mujoco.mj_forward(model, data)
        super().__init__(model, {"qpos": _row(model, data, "qpos", num_worlds)}, num_worlds)
        self._data = data
        self.read: dict[str, None] = {}

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("_") or name == "read":
            raise AttributeError(name)
        if name not in self._tensors:
            check_computed(self.model, name)
            self._tensors[name] = _row(self.model, self._data, name, self.num_worlds)
        self.read[name] = None
        return self._tensors[name]


class RecordingDraws:
    """Seeded draws that remember kind and size of each."""

    def __init__(self, num_worlds: int = WORLDS) -> None:
        self._generator = torch.Generator().manual_seed(0)
        self._num_worlds = num_worlds
        self.drawn: list[tuple[str, tuple[int, ...]]] = []

    def uniform(self, *size: int) -> Tensor:
        """Uniform numbers in [0, 1), shape (N, *size)."""
        self.drawn.append(("uniform", size))
        return torch.rand(self._num_worlds, *size, generator=self._generator, dtype=torch.float64)

    def normal(self, *size: int) -> Tensor:
        """Standard normal numbers, shape (N, *size)."""
        self.drawn.append(("normal", size))
        return torch.randn(self._num_worlds, *size, generator=self._generator, dtype=torch.float64)


def dry_run(task: Task, model: mujoco.MjModel) -> Layout:
    """Runs every method of `task` once and checks what it returns.

    Raises:
        InputError: a method names something the model lacks, or returns a wrong shape; the line names the method.
    """
    sim, random = RecordingFields(model), RecordingDraws()
    start = task.initial_state(sim, random)
    _shaped(task, "initial_state", "qpos", start.qpos, (model.nq,))
    _shaped(task, "initial_state", "qvel", start.qvel, (model.nv,))
    for name, pose, size in (("mocap_pos", start.mocap_pos, 3), ("mocap_quat", start.mocap_quat, 4)):
        if pose is not None:
            _shaped(task, "initial_state", name, pose, (model.nmocap, size))
    state = start.state
    for name, value in state.items():
        _shaped(task, "initial_state", f"state {name!r}", value, tuple(value.shape[1:]))
    told = check_parameters(task, sim, random)
    sim.read.clear()
    observation = _terms(task, "observe", task.observe(sim, state))
    privileged = _terms(task, "privileged", task.privileged(sim, state))
    action = torch.zeros(WORLDS, model.nu, dtype=torch.float64)
    _shaped(task, "reward", "the reward", task.reward(sim, state, action), ())
    ended = task.terminated(sim, state)
    _shaped(task, "terminated", "the flags", ended, ())
    if ended.dtype != torch.bool:
        raise InputError(f"{task.name}.terminated: expected a bool tensor, got {ended.dtype}")
    random.drawn.clear()
    _same_state(task, state, task.update(sim, dict(state), random))
    if not observation:
        raise InputError(f"{task.name}.observe: returned no terms")
    check_noise(task, observation)
    return Layout(
        fields=tuple(sim.read),
        observation=observation,
        privileged=privileged,
        state={name: (tuple(value.shape[1:]), value.dtype) for name, value in state.items()},
        update_draws=tuple(random.drawn),
        told=told,
    )


def concatenate(terms: Mapping[str, Tensor]) -> Tensor:
    """Joins observation terms into one (N, total) tensor of 32-bit floats."""
    return torch.cat([term.float() for term in terms.values()], dim=1)


def _row(model: mujoco.MjModel, data: mujoco.MjData, name: str, num_worlds: int) -> Tensor:
    shape = field_shape(model, name)
    array = np.asarray(getattr(data, name), dtype=np.float64).reshape(shape)
    return torch.from_numpy(np.repeat(array[None], num_worlds, axis=0))


def _shaped(task: Task, method: str, what: str, value: Tensor, shape: tuple[int, ...]) -> None:
    expected = (WORLDS, *shape)
    if tuple(value.shape) != expected:
        raise InputError(
            f"{task.name}.{method}: {what} has shape {tuple(value.shape)} for {WORLDS} worlds, expected {expected}"
        )


def _terms(task: Task, method: str, terms: dict[str, Tensor]) -> dict[str, int]:
    for name, value in terms.items():
        if value.ndim != 2 or value.shape[0] != WORLDS:
            raise InputError(
                f"{task.name}.{method}: term {name!r} has shape {tuple(value.shape)} for {WORLDS} worlds, "
                f"expected ({WORLDS}, size)"
            )
    return {name: value.shape[1] for name, value in terms.items()}


def _same_state(task: Task, before: State, after: State) -> None:
    if set(before) != set(after):
        raise InputError(f"{task.name}.update: returned state {sorted(after)}, but initial_state gave {sorted(before)}")
    for name, value in before.items():
        _shaped(task, "update", f"state {name!r}", after[name], tuple(value.shape[1:]))
