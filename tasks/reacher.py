"""The planar two-link reacher of the DM Control suite, with MuJoCo Playground's solver settings."""

from __future__ import annotations

import math
from typing import ClassVar

import mujoco
import torch
from torch import Tensor

from envs.draws import Draws
from envs.fields import Fields
from envs.task import InitialState, State, Task, Timing
from tasks.registry import register
from tasks.rewards import tolerance
from tasks.suite import suite_model

FINGER_RADIUS = 0.01  # m
TARGET_PLANE = 0.01  # m, height in which finger and target lie


class Reacher(Task):
    """What both reacher tasks share.

    | term      | size | unit                                                    |
    |-----------|------|---------------------------------------------------------|
    | position  | 2    | shoulder, wrist (rad)                                   |
    | to_target | 2    | from finger to target along the world's x and y (m)     |
    | velocity  | 2    | shoulder, wrist (rad/s)                                 |

    Departs from Playground: the wrist keeps within its ±160° (Playground gives MuJoCo Warp no room for that
    constraint); the first observation shows the episode's own target; derived quantities belong to the new state,
    where Playground's are one physics step late.
    """

    timing = Timing(control=0.02, physics=0.005)
    nconmax, njmax = 1, 2  # no contacts, and one row while the wrist is at its limit
    units = {"position": "rad", "to_target": "m", "velocity": "rad/s"}
    target_radius: ClassVar[float]  # m

    def model(self) -> mujoco.MjSpec:
        """The suite's reacher with the target on a mocap body and without the geom `root`, as in Playground."""
        spec = suite_model("reacher", iterations=1, ls_iterations=6)
        spec.delete(spec.geom("root"))
        spec.delete(spec.geom("target"))
        spec.worldbody.add_body(name="target", mocap=True, pos=[0, 0, TARGET_PLANE]).add_geom(
            name="target",
            type=mujoco.mjtGeom.mjGEOM_SPHERE,
            size=[self.target_radius, 0, 0],
            material="target",
            density=1000 * (0.05 / self.target_radius) ** 3,  # weighs what one of 5 cm does, as in Playground
        )
        return spec

    def initial_state(self, sim: Fields, random: Draws) -> InitialState:
        """Any shoulder angle, wrist within its range, target 5 to 20 cm from the base in any direction, at rest."""
        low, high = sim.tensor([-math.pi, sim.model.jnt_range[1, 0]]), sim.tensor([math.pi, sim.model.jnt_range[1, 1]])
        qpos = low + (high - low) * random.uniform(2)
        radius, angle = 0.05 + 0.15 * random.uniform(), 2 * math.pi * random.uniform()
        height = torch.full_like(radius, TARGET_PLANE)
        target = torch.stack([radius * angle.sin(), radius * angle.cos(), height], dim=1)
        return InitialState(qpos, sim.zero_qvel(), mocap_pos=target.unsqueeze(1))

    def observe(self, sim: Fields, state: State) -> dict[str, Tensor]:
        """Joint angles, where the target is from the finger, joint velocities."""
        return {"position": sim.qpos, "to_target": self.to_target(sim), "velocity": sim.qvel}

    def to_target(self, sim: Fields) -> Tensor:
        """From finger to target in the plane, in m, (N, 2)."""
        return (sim.geom_xpos[:, sim.geom("target")] - sim.geom_xpos[:, sim.geom("finger")])[:, :2]

    def reward(self, sim: Fields, state: State, action: Tensor) -> Tensor:
        """1 while finger and target touch, else 0."""
        return tolerance(self.to_target(sim).norm(dim=1), 0.0, self.target_radius + FINGER_RADIUS)


@register("ReacherEasy")
class ReacherEasy(Reacher):
    """Touch a target of 5 cm radius."""

    target_radius = 0.05


@register("ReacherHard")
class ReacherHard(Reacher):
    """Touch a target of 1.5 cm radius."""

    target_radius = 0.015
