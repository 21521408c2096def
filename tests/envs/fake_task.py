"""A slider that chases a wandering target: a task with state, random updates, an end, a critic's own term."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, ClassVar

import mujoco
import torch
from torch import Tensor

from envs.draws import Draws
from envs.fields import Fields
from envs.simulation import STATE_FIELDS
from envs.task import InitialState, State, Task, Timing
from envs.vector_env import Step, VectorEnv

XML = """
<mujoco>
  <option gravity="0 0 0"/>
  <worldbody>
    <body name="slider">
      <joint name="slide" type="slide" axis="1 0 0" damping="0.1"/>
      <geom name="block" size="0.1" mass="1"/>
      <site name="tip" pos="0.1 0 0"/>
    </body>
  </worldbody>
  <actuator><motor name="push" joint="slide" ctrllimited="true" ctrlrange="-2 4"/></actuator>
  <sensor><jointpos name="where" joint="slide"/></sensor>
</mujoco>
"""


class Slider(Task):
    name = "Slider"
    timing = Timing(control=0.02, physics=0.005)
    limit: ClassVar[float] = 1e9  # m from the middle, where the episode ends for good
    lifetime: ClassVar[int] = 10**9  # control steps, likewise

    def model(self) -> mujoco.MjSpec:
        return mujoco.MjSpec.from_string(XML)

    def initial_state(self, sim: Fields, random: Draws) -> InitialState:
        qpos = 0.2 * random.uniform(1) - 0.1
        qvel = 0.1 * random.normal(1)
        return InitialState(qpos, qvel, state={"target": random.normal(1), "age": 0 * qpos[:, 0]})

    def observe(self, sim: Fields, state: State) -> dict[str, Tensor]:
        return {
            "position": sim.sensordata[:, sim.sensor("where")],
            "velocity": sim.qvel,
            "target": state["target"],
        }

    def reward(self, sim: Fields, state: State, action: Tensor) -> Tensor:
        return action[:, 0] - (sim.qpos - state["target"])[:, 0].abs()

    def terminated(self, sim: Fields, state: State) -> Tensor:
        return (sim.qpos[:, 0].abs() > self.limit) | (state["age"] + 1 >= self.lifetime)

    def update(self, sim: Fields, state: State, random: Draws) -> State:
        step = 0.1 * random.normal(1) + 0.01 * random.uniform(1)
        return {"target": state["target"] + step, "age": state["age"] + 1}

    def privileged(self, sim: Fields, state: State) -> dict[str, Tensor]:
        return {"age": state["age"].unsqueeze(1)}


class Falling(Slider):
    """Starts 1 m up at rest and falls while it settles."""

    settle_steps = 30

    def model(self) -> mujoco.MjSpec:
        spec = super().model()
        spec.option.gravity = [-9.81, 0.0, 0.0]
        return spec

    def initial_state(self, sim: Fields, random: Draws) -> InitialState:
        start = super().initial_state(sim, random)
        return InitialState(start.qpos + 1.0, sim.zero_qvel(), state=start.state | {"age": start.qpos[:, 0] + 1.0})


def variant(task: type[Task], **attributes: Any) -> Task:
    """An instance of a subclass with other class attributes, such as a shorter episode."""
    return type(task.__name__, (task,), attributes)()


def same(a: Tensor, b: Tensor) -> bool:
    """Bitwise equality, NaN included."""
    return a.dtype == b.dtype and torch.equal(torch.nan_to_num(a, 1e30), torch.nan_to_num(b, 1e30))


def actions(env: VectorEnv, steps: int, seed: int = 0) -> Tensor:
    """Random actions (steps, W, nu)."""
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(steps, env.num_worlds, env.action_size, generator=generator) - 1


def copy(step: Step) -> dict[str, Tensor]:
    """A step's buffers, which the next step would overwrite."""
    return {field.name: getattr(step, field.name).clone() for field in fields(step)}


def state(env: VectorEnv) -> dict[str, Tensor]:
    """Every world's simulation and task state, copied."""
    saved = {name: getattr(env.sim, name).clone() for name in STATE_FIELDS}
    return {**saved, **{f"state.{name}": value.clone() for name, value in env.state.items()}}
