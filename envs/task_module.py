"""A task's methods as one function of named tensors, so that they can leave for ONNX and be scored anywhere."""

from __future__ import annotations

from collections.abc import Iterator

import mujoco
import torch
from torch import Tensor, nn

from envs.controls import action_range
from envs.draws import BatchDraws
from envs.dry_run import Layout, concatenate
from envs.fields import Fields
from envs.native_simulation import NativeSimulation
from envs.task import Task

# Control steps from the start states to the example states, long enough for something to have moved.
_EXAMPLE_STEPS = 5


class TaskModule(nn.Module):
    """What `VectorEnv.finish` computes of one control step, for N worlds.

    Inputs, in the order of `input_names`: the simulation fields after the physics ("qpos", "xmat", ..., shapes as in
    `envs.fields.field_shape` behind the world axis), the task's state before the step ("state.target"), the applied
    action in [-1, 1], and the random numbers of `update` in the order drawn ("random.0"). Numbers are float32; a
    state of integers or flags keeps its type.

    Outputs, in the order of `output_names`: "observation" of the state after `update`, "initial_observation" of the
    state given (for the first observation of an episode, where nothing is updated), "reward" and "terminated" of the
    state given, and the state after `update` ("next_state.target").

    Args:
        task: its methods are called in every forward pass.
        model: the task's compiled model.
        layout: of the task.
    """

    def __init__(self, task: Task, model: mujoco.MjModel, layout: Layout) -> None:
        super().__init__()
        self._task, self._model, self._layout = task, model, layout
        self._random_names = tuple(f"random.{i}" for i in range(len(layout.update_draws)))
        states = tuple(f"state.{name}" for name in layout.state)
        self.input_names = (*layout.fields, *states, "action", *self._random_names)
        outputs = ("observation", "initial_observation", "reward", "terminated")
        self.output_names = (*outputs, *(f"next_{name}" for name in states))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """One control step; inputs and outputs as the names say."""
        task, named = self._task, dict(zip(self.input_names, inputs, strict=True))
        action = named["action"]
        # Made anew each time: constants that it keeps must not survive a trace.
        sim = Fields(self._model, {name: named[name] for name in self._layout.fields}, action.shape[0])
        state = {name: named[f"state.{name}"] for name in self._layout.state}
        random = _Given(iter([named[name] for name in self._random_names]))

        reward = task.reward(sim, state, action).float()
        terminated = task.terminated(sim, state)
        updated = task.update(sim, dict(state), random)
        after = {name: updated[name].to(value.dtype) for name, value in state.items()}
        observation = concatenate(task.observe(sim, after))
        initial = concatenate(task.observe(sim, state))
        return observation, initial, reward, terminated, *after.values()

    def examples(self, worlds: int = 16, seed: int = 0) -> dict[str, Tensor]:
        """Inputs as they occur: the task's own starts, a few control steps of random actions later."""
        task, layout, model = self._task, self._layout, self._model
        sim = NativeSimulation(model, worlds, layout.fields, task.timing.physics_steps, threads=1)
        random = BatchDraws(worlds, torch.Generator().manual_seed(seed), sim.dtype)
        start = task.initial_state(sim, random)
        everyone = torch.ones(worlds, dtype=torch.bool)
        sim.reset(everyone, start.qpos, start.qvel, start.mocap_pos, start.mocap_quat)
        low, high = action_range(model)
        for _ in range(_EXAMPLE_STEPS):
            action = 2 * random.uniform(model.nu) - 1
            sim.ctrl.copy_((low + high) / 2 + (high - low) / 2 * action)
            sim.step()
        values = {name: getattr(sim, name) for name in layout.fields}
        values.update({f"state.{name}": value for name, value in start.state.items()})
        values["action"] = action
        for name, (kind, size) in zip(self._random_names, layout.update_draws, strict=True):
            values[name] = getattr(random, kind)(*size)
        return {name: _portable(values[name]) for name in self.input_names}


class _Given:
    """Draws that have been made elsewhere, handed out in their order."""

    def __init__(self, tensors: Iterator[Tensor]) -> None:
        self._tensors = tensors

    def uniform(self, *size: int) -> Tensor:
        """The next tensor, which the layout says is uniform and of this size."""
        return next(self._tensors)

    def normal(self, *size: int) -> Tensor:
        """The next tensor, which the layout says is normal and of this size."""
        return next(self._tensors)


def _portable(value: Tensor) -> Tensor:
    return value.float().contiguous().clone() if value.is_floating_point() else value.clone()
