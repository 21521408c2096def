"""The planar one-legged hopper of the DM Control suite, with MuJoCo Playground's solver settings."""

from __future__ import annotations

import math

import mujoco
import torch
from torch import Tensor

from envs.draws import Draws
from envs.fields import Fields
from envs.task import InitialState, State, Task, Timing
from tasks.registry import register
from tasks.rewards import small_control, tolerance
from tasks.suite import planar_pose, suite_model

STAND_HEIGHT = 0.6  # m, torso above foot
HOP_SPEED = 2.0  # m/s


class Hopper(Task):
    """What both hopper tasks share.

    | term     | size | unit                                                              |
    |----------|------|-------------------------------------------------------------------|
    | position | 6    | root z (m), root pitch, waist, hip, knee, ankle (rad)             |
    | velocity | 7    | root x, z (m/s), root pitch, waist, hip, knee, ankle (rad/s)      |
    | touch    | 2    | log(1 + force in N) at toe and heel                               |
    """

    timing = Timing(control=0.02, physics=0.005)
    nconmax, njmax = 12, 50  # 6 contacts and 25 rows is the most a world was seen to have
    units = {"position": "m, rad", "velocity": "m/s, rad/s", "touch": "log(1 + N)"}

    def model(self) -> mujoco.MjSpec:
        """The suite's hopper; explicit Euler damping off and fewer solver iterations, as in Playground."""
        return suite_model("hopper", iterations=4, ls_iterations=10)

    def initial_state(self, sim: Fields, random: Draws) -> InitialState:
        """Any pitch, joints anywhere in their ranges, torso at 1 m, at rest."""
        return InitialState(planar_pose(sim, random), sim.zero_qvel())

    def observe(self, sim: Fields, state: State) -> dict[str, Tensor]:
        """Everything but the root's x, which the dynamics do not depend on."""
        touch = [sim.sensordata[:, sim.sensor(name)] for name in ("touch_toe", "touch_heel")]
        return {
            "position": sim.qpos[:, 1:],
            "velocity": sim.qvel,
            "touch": torch.log1p(torch.cat(touch, dim=1)),
        }

    def standing(self, sim: Fields) -> Tensor:
        """1 while the torso's centre of mass is 0.6 to 2 m above the foot's, (N,)."""
        height = sim.xipos[:, sim.body("torso"), 2] - sim.xipos[:, sim.body("foot"), 2]
        return tolerance(height, STAND_HEIGHT, 2.0)


@register("HopperStand")
class HopperStand(Hopper):
    """Stand up from any pose and keep standing with little effort."""

    def reward(self, sim: Fields, state: State, action: Tensor) -> Tensor:
        """Up to 1 per step: 0.8 for standing, the rest for small actions."""
        return self.standing(sim) * (4 + small_control(action)) / 5


@register("HopperHop")
class HopperHop(Hopper):
    """Hop forward at 2 m/s or more."""

    def reward(self, sim: Fields, state: State, action: Tensor) -> Tensor:
        """Standing, times forward speed up to 2 m/s."""
        speed = sim.sensordata[:, sim.sensor("torso_subtreelinvel")][:, 0]
        hopping = tolerance(speed, HOP_SPEED, math.inf, margin=HOP_SPEED / 2, shape="linear", value_at_margin=0.5)
        return self.standing(sim) * hopping
