"""One pass through a task's methods on two worlds: which fields it reads, what it returns, and is that right?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mujoco
import torch
from torch import Tensor

from envs.randomisation import check_noise, check_parameters
from envs.recording_fields import WORLDS, RecordingDraws, RecordingFields, equal
from envs.task import InitialState, State, Task
from envs.user_code import calling, fault


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


def dry_run(task: Task, model: mujoco.MjModel) -> Layout:
    """Runs every method of `task` in its own first starts and a control step later, and checks what it returns.

    Raises:
        InputError: a method raises, names something the model lacks, writes to what it is given, or returns a wrong
            shape or numbers that are not finite; the line begins with file and line and names the method.
    """
    sim, random = RecordingFields(model), RecordingDraws()
    start = _call(task, "initial_state", sim, random)
    state = _started(task, model, start)
    with calling(task, "parameters"):
        told = check_parameters(task, sim, random)
    stable = sim.place(start, task.settle_steps)
    sim.read.clear()
    observation = _terms(task, "observe", _call(task, "observe", sim, state))
    privileged = _terms(task, "privileged", _call(task, "privileged", sim, state))
    _own_names(task, observation, privileged)
    if not (sim.advance(task.timing.physics_steps) and stable):
        raise fault(
            task,
            "model",
            f"the simulation diverges within a control step of its start; shorten timing.physics (now "
            f"{task.timing.physics} s), or add damping or armature to the joints",
        )
    _check_pay_and_end(task, sim, state)
    random.drawn.clear()
    _same_state(task, state, _call(task, "update", sim, state, random))
    if not observation:
        raise fault(task, "observe", "returned no terms")
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


def _check_pay_and_end(task: Task, sim: RecordingFields, state: State) -> None:
    """Checks `reward` and `terminated` after an action of zeros."""
    action = torch.zeros(WORLDS, sim.model.nu, dtype=torch.float64)
    reward = _call(task, "reward", sim, state, action)
    _shaped(task, "reward", "the reward", reward, ())
    _finite(task, "reward", "the reward", reward)
    ended = _call(task, "terminated", sim, state)
    _shaped(task, "terminated", "the flags", ended, ())
    if ended.dtype != torch.bool:
        raise fault(task, "terminated", f"expected a bool tensor, got {ended.dtype}")


def _call(task: Task, method: str, sim: RecordingFields, *arguments: Any) -> Any:
    """What a method returns, once it is known that it has left alone what it was given."""
    given: dict[str, Tensor] = {}
    for argument in arguments:
        if isinstance(argument, Tensor):
            given["the action"] = argument
        elif isinstance(argument, dict):
            given.update({f"state {name!r}": value for name, value in argument.items()})
    before = {name: value.clone() for name, value in given.items()}
    copies = [dict(value) if isinstance(value, dict) else value for value in arguments]
    with calling(task, method):
        result = getattr(task, method)(sim, *copies)
    written = [f"sim.{name}" for name in sim.changed()]
    written += [name for name, value in given.items() if not equal(value, before[name])]
    if written:
        raise fault(task, method, f"writes to {', '.join(written)} in place; work on a copy, for example .clone()")
    return result


def _started(task: Task, model: mujoco.MjModel, start: Any) -> State:
    """The state of a start that has been checked."""
    method = "initial_state"
    if not isinstance(start, InitialState):
        raise fault(task, method, f"returned {_kind(start)}, expected InitialState(qpos, qvel)")
    poses: list[tuple[str, Any, tuple[int, ...]]] = [
        ("qpos", start.qpos, (model.nq,)),
        ("qvel", start.qvel, (model.nv,)),
    ]
    poses += [
        (name, pose, (model.nmocap, size))
        for name, pose, size in (("mocap_pos", start.mocap_pos, 3), ("mocap_quat", start.mocap_quat, 4))
        if pose is not None
    ]
    for name, pose, shape in poses:
        _shaped(task, method, name, pose, shape)
        _finite(task, method, name, pose)
    for name, value in _named(task, method, start.state).items():
        _shaped(task, method, f"state {name!r}", value, tuple(getattr(value, "shape", ()))[1:])
    return start.state


def _shaped(task: Task, method: str, what: str, value: Any, shape: tuple[int, ...]) -> None:
    expected = (WORLDS, *shape)
    if not isinstance(value, Tensor):
        raise fault(task, method, f"{what} is {_kind(value)}, expected a tensor of shape {expected}")
    if tuple(value.shape) != expected:
        raise fault(task, method, f"{what} has shape {tuple(value.shape)} for {WORLDS} worlds, expected {expected}")


def _finite(task: Task, method: str, what: str, value: Tensor) -> None:
    wrong = (~value.isfinite()).nonzero()
    if len(wrong):
        number = float(value[tuple(wrong[0])])
        raise fault(
            task, method, f"{what} is {number} in world {int(wrong[0, 0])} of the dry run; expected finite numbers"
        )


def _terms(task: Task, method: str, terms: Any) -> dict[str, int]:
    for name, value in _named(task, method, terms).items():
        if not isinstance(value, Tensor):
            raise fault(task, method, f"term {name!r} is {_kind(value)}, expected a tensor of shape ({WORLDS}, size)")
        if value.ndim != 2 or value.shape[0] != WORLDS:
            shape = tuple(value.shape)
            raise fault(task, method, f"term {name!r} has shape {shape} for {WORLDS} worlds, expected ({WORLDS}, size)")
        _finite(task, method, f"term {name!r}", value)
    return {name: value.shape[1] for name, value in terms.items()}


def _own_names(task: Task, observation: Mapping[str, int], privileged: Mapping[str, int]) -> None:
    """Refuses a privileged term that is called as one of the observation is: beside each other one would be lost."""
    for name in privileged.keys() & observation.keys():
        raise fault(
            task,
            "privileged",
            f"term {name!r} has the name of a term of observe; expected another name, "
            "or no such term: the critic sees the observation anyway",
        )


def _named(task: Task, method: str, values: Any) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise fault(task, method, f"returned {_kind(values)}, expected a dict of tensors by name")
    return values


def _same_state(task: Task, before: State, after: Any) -> None:
    _named(task, "update", after)
    if set(before) != set(after):
        raise fault(task, "update", f"returned state {sorted(after)}, but initial_state gave {sorted(before)}")
    for name, value in before.items():
        _shaped(task, "update", f"state {name!r}", after[name], tuple(value.shape[1:]))


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
