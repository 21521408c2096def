"""The planar point mass of the DM Control suite (its `easy` task), with MuJoCo Playground's solver settings."""

from __future__ import annotations

import mujoco
from torch import Tensor

from envs.draws import Draws
from envs.fields import Fields
from envs.task import InitialState, State, Task, Timing
from tasks.registry import register
from tasks.rewards import small_control, tolerance
from tasks.suite import suite_model

TARGET_RADIUS = 0.015  # m


@register("PointMass")
class PointMass(Task):
    """Push the mass to the middle of the arena and keep it there with little effort.

    | term     | size | unit       |
    |----------|------|------------|
    | position | 2    | x, y (m)   |
    | velocity | 2    | x, y (m/s) |

    Departs from Playground: derived quantities belong to the new state, where Playground's are one physics step late.
    """

    timing = Timing(control=0.02, physics=0.02)
    nconmax, njmax = 1, 4  # no contacts; two rows in a corner of the arena
    units = {"position": "m", "velocity": "m/s"}

    def model(self) -> mujoco.MjSpec:
        """The suite's point mass; explicit Euler damping off and fewer solver iterations, as in Playground."""
        return suite_model("point_mass", iterations=1, ls_iterations=4)

    def initial_state(self, sim: Fields, random: Draws) -> InitialState:
        """Anywhere in the arena, at rest."""
        ranges = sim.tensor(sim.model.jnt_range)
        return InitialState(ranges[:, 0] + (ranges[:, 1] - ranges[:, 0]) * random.uniform(2), sim.zero_qvel())

    def observe(self, sim: Fields, state: State) -> dict[str, Tensor]:
        """Position and velocity; the target never moves."""
        return {"position": sim.qpos, "velocity": sim.qvel}

    def reward(self, sim: Fields, state: State, action: Tensor) -> Tensor:
        """Nearness to the target, 1 inside it and a tenth 1.5 cm away, times small actions."""
        offset = sim.geom_xpos[:, sim.geom("target")] - sim.geom_xpos[:, sim.geom("pointmass")]
        near = tolerance(offset.norm(dim=1), 0.0, TARGET_RADIUS, margin=TARGET_RADIUS)
        return near * (4 + small_control(action)) / 5
