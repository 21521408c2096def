"""The two-link arm of the DM Control suite that is driven at its elbow, with MuJoCo Playground's solver settings."""

from __future__ import annotations

import math

import mujoco
import torch
from torch import Tensor

from envs.draws import Draws
from envs.fields import Fields
from envs.task import InitialState, State, Task, Timing
from tasks.registry import register
from tasks.rewards import tolerance
from tasks.suite import suite_model

TARGET_RADIUS = 0.2  # m, of the sphere 4 m up, where the tip is when both arms point straight up


class Acrobot(Task):
    """What both acrobot tasks share; Playground's definition, with the arms' directions fresh after each step.

    | term     | size | unit                                                                      |
    |----------|------|---------------------------------------------------------------------------|
    | sine     | 2    | sine of upper and lower arm's angle to the vertical                       |
    | cosine   | 2    | cosine of the same; 1 is up                                               |
    | velocity | 2    | shoulder, elbow (rad/s)                                                   |
    """

    timing = Timing(control=0.01, physics=0.01)
    nconmax, njmax = 1, 1  # constraints are off: there is nothing to hold
    units = {"sine": "1", "cosine": "1", "velocity": "rad/s"}

    def model(self) -> mujoco.MjSpec:
        """The suite's acrobot with Euler integration instead of RK4, as in Playground."""
        spec = suite_model("acrobot", iterations=2, ls_iterations=4)
        spec.option.integrator = mujoco.mjtIntegrator.mjINT_EULER
        return spec

    def initial_state(self, sim: Fields, random: Draws) -> InitialState:
        """Both joints at any angle, at rest."""
        return InitialState(math.pi * (2 * random.uniform(2) - 1), sim.zero_qvel())

    def observe(self, sim: Fields, state: State) -> dict[str, Tensor]:
        """Direction of both arms in the world, joint velocities."""
        upper, lower = (sim.xmat[:, sim.body(name)] for name in ("upper_arm", "lower_arm"))
        return {
            "sine": torch.stack([upper[:, 0, 2], lower[:, 0, 2]], dim=1),
            "cosine": torch.stack([upper[:, 2, 2], lower[:, 2, 2]], dim=1),
            "velocity": sim.qvel,
        }

    def distance(self, sim: Fields) -> Tensor:
        """From the tip to the target's centre in m, (N,)."""
        return (sim.site_xpos[:, sim.site("target")] - sim.site_xpos[:, sim.site("tip")]).norm(dim=1)


@register("AcrobotSwingup")
class AcrobotSwingup(Acrobot):
    """Swing both arms up and balance the tip in the target."""

    def reward(self, sim: Fields, state: State, action: Tensor) -> Tensor:
        """1 in the target, 0.1 when 1 m away from it."""
        return tolerance(self.distance(sim), 0.0, TARGET_RADIUS, margin=1.0)


@register("AcrobotSwingupSparse")
class AcrobotSwingupSparse(Acrobot):
    """The same, paid for only in the target."""

    def reward(self, sim: Fields, state: State, action: Tensor) -> Tensor:
        """1 in the target, else 0."""
        return tolerance(self.distance(sim), 0.0, TARGET_RADIUS)
