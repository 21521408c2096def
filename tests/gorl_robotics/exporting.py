"""Exports for tests: any task with random weights, and a small task that uses everything an export can carry."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import ClassVar

import mujoco
import torch
from torch import Tensor

from envs.deployment import describe, model_files
from envs.draws import Draws
from envs.fields import Fields
from envs.task import InitialState, State, Task, Timing
from envs.task_module import TaskModule
from envs.vector_env import VectorEnv
from gorl_robotics.export import Graph, export
from gorl_robotics.methods.gorl import GorlPolicy

# pytest would format thousands of the exporter's trace records.
logging.getLogger("torch.__trace").propagate = False

XML = """
<mujoco>
  <worldbody>
    <light pos="0 0 3"/>
    <body name="goal" mocap="true"><geom size="0.05" contype="0" conaffinity="0"/></body>
    <body name="arm">
      <joint name="shoulder" axis="0 1 0" damping="0.3" limited="true" range="-90 90"/>
      <geom name="rod" type="capsule" fromto="0 0 0 0.4 0 0" size="0.03"/>
      <site name="hand" pos="0.4 0 0"/>
    </body>
  </worldbody>
  <actuator><position name="servo" joint="shoulder" kp="3" ctrllimited="true" ctrlrange="-0.5 1.3"/></actuator>
</mujoco>
"""


class Chaser(Task):
    """Follows a goal that wanders; every world has its own lifetime, and no camera looks."""

    name = "Chaser"
    timing = Timing(control=0.02, physics=0.005)
    episode_length: ClassVar[int] = 120
    units = {"joint": "rad, rad/s"}

    def model(self) -> mujoco.MjSpec:
        return mujoco.MjSpec.from_string(XML)

    def initial_state(self, sim: Fields, random: Draws) -> InitialState:
        goal = random.uniform(1, 3)
        upright = sim.tensor([1.0, 0.0, 0.0, 0.0]).repeat(sim.num_worlds, 1, 1)
        state = {
            "wander": random.normal(2),
            "left": (80 + 60 * random.uniform()).long(),
            "odd": torch.zeros(sim.num_worlds, dtype=torch.bool),
        }
        return InitialState(random.uniform(1) - 0.5, random.normal(1), goal, upright.clone(), state)

    def observe(self, sim: Fields, state: State) -> dict[str, Tensor]:
        hand = sim.site_xpos[:, sim.site("hand")]
        return {
            "joint": torch.cat([sim.qpos, sim.qvel], dim=1),
            "distance": sim.mocap_pos[:, 0] - hand,
            "wander": state["wander"] * torch.where(state["odd"], 1.0, -1.0).unsqueeze(1),
        }

    def reward(self, sim: Fields, state: State, action: Tensor) -> Tensor:
        return state["wander"][:, 0] - (sim.xmat[:, sim.body("arm"), 0, 0] - 1) ** 2

    def terminated(self, sim: Fields, state: State) -> Tensor:
        return state["left"] <= 1

    def update(self, sim: Fields, state: State, random: Draws) -> State:
        jump = random.uniform() < 0.1
        step = torch.where(jump.unsqueeze(1), random.normal(2), 0.0)
        return {"wander": 0.9 * state["wander"] + step, "left": state["left"] - 1, "odd": ~state["odd"]}

    def privileged(self, sim: Fields, state: State) -> dict[str, Tensor]:
        return {"torque": sim.qfrc_actuator}


def random_policy(env: VectorEnv, *, generative: bool = True, noise: float = 0.1) -> GorlPolicy:
    """A policy whose every weight was moved, with statistics of a few random steps of `env`."""
    torch.manual_seed(0)
    policy = GorlPolicy(env.observation_size, env.action_size, [32, 32], [32], 2)
    policy.latent.restart()
    policy.generative = generative
    for weight in policy.parameters():
        weight.data.add_(noise * torch.randn_like(weight))
    seen = []
    for _ in range(8):
        action = 2 * torch.rand(env.num_worlds, env.action_size) - 1
        seen.append(env.step(action).terminal_observation.clone())
    policy.normaliser.update(torch.cat(seen))
    policy.decoder.normaliser.update(torch.cat(seen))
    env.draw_starts()
    env.restart(random_phase=False)
    return policy


def export_to(folder: Path, env: VectorEnv, policy: GorlPolicy, **starts: Tensor) -> None:
    """Exports `policy`; the starts are those from which `env` has just begun, with further columns."""
    task = env.task
    module = TaskModule(task, env.model, env.layout)
    export(
        folder,
        policy,
        Graph(module, module.examples(), module.output_names),
        description=describe(task, env.model, env.layout),
        model_files=model_files(task),
        starts={**env.initial_states(), **starts},
        observations=env.observation,
        provenance={
            "seed": 7,
            "commit": "abc",
            "total_steps": 10**12,
            "returns": {"mean": 1 / 3, "p10": float("nan")},
        },
    )
