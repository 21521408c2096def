"""The planar finger and the spinner it flicks of the DM Control suite, with MuJoCo Playground's solver settings."""

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
from tasks.suite import suite_model

SPIN_SPEED = 15.0  # rad/s
SPIN_DAMPING = 0.03  # N m s/rad; the suite's spinner is braked more, to make it stay where it was turned to
HINGE = (0.2, 0.0, 0.4)  # m, the spinner's axis
TIP_RADIUS = 0.13  # m, from the spinner's axis to its tip


class Finger(Task):
    """What all finger tasks share; Playground's definition, with positions fresh after each step.

    Unlike in Playground, the hinge's angle is drawn independently of the joints'. Like there, and unlike in
    dm_control, a start may have the finger in the spinner, which contact then pushes apart.

    | term     | size | unit                                                      |
    |----------|------|-----------------------------------------------------------|
    | joints   | 2    | proximal, distal (rad)                                    |
    | tip      | 2    | spinner's tip from its axis, x and z (m)                  |
    | velocity | 3    | proximal, distal, hinge (rad/s)                           |
    | touch    | 2    | log(1 + force in N) at the fingertip's top and bottom     |
    """

    timing = Timing(control=0.02, physics=0.005)
    nconmax, njmax = 4, 20  # 2 contacts and 9 rows is the most a world was seen to have
    units = {"joints": "rad", "tip": "m", "velocity": "rad/s", "touch": "log(1 + N)"}

    def model(self) -> mujoco.MjSpec:
        """The suite's finger with Playground's integrator, cone and collisions, and a target that can be moved."""
        spec = suite_model("finger", iterations=2, ls_iterations=8)
        spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
        spec.option.cone = mujoco.mjtCone.mjCONE_PYRAMIDAL
        for name in ("proximal_decoration", "spinner_decoration"):
            spec.geom(name).contype = spec.geom(name).conaffinity = 0
        target = spec.site("target")
        target.name = "target of the suite"  # so that the sensor that names it sees the new one
        body = spec.worldbody.add_body(name="target", pos=target.pos, mocap=True)
        body.add_site(name="target", type=target.type, size=target.size, material=target.material)
        spec.delete(target)
        return spec

    def initial_state(self, sim: Fields, random: Draws) -> InitialState:
        """Finger joints anywhere in their ranges, the spinner at any angle, at rest."""
        reach = sim.tensor([*sim.model.jnt_range[:2, 1], math.pi])  # the ranges are symmetric
        return InitialState(reach * (2 * random.uniform(3) - 1), sim.zero_qvel())

    def observe(self, sim: Fields, state: State) -> dict[str, Tensor]:
        """Pose, with the hinge's angle as the tip's direction; velocities; touch."""
        touch = [sim.sensordata[:, sim.sensor(name)] for name in ("touchtop", "touchbottom")]
        return {
            "joints": sim.qpos[:, :2],
            "tip": self.from_axis(sim, "tip"),
            "velocity": sim.qvel,
            "touch": torch.log1p(torch.cat(touch, dim=1)),
        }

    def from_axis(self, sim: Fields, site: str) -> Tensor:
        """How far a site is from the spinner's axis along x and z in m, (N, 2)."""
        return (sim.site_xpos[:, sim.site(site)] - sim.xpos[:, sim.body("spinner")])[:, ::2]


@register("FingerSpin")
class FingerSpin(Finger):
    """Keep the spinner spinning at 15 rad/s or more, its top moving away from the finger."""

    overrides = {"ppo.discount": 0.95}

    def model(self) -> mujoco.MjSpec:
        """A spinner that is braked less."""
        spec = super().model()
        spec.joint("hinge").damping[0] = SPIN_DAMPING
        return spec

    def reward(self, sim: Fields, state: State, action: Tensor) -> Tensor:
        """1 while the hinge turns fast enough in the negative sense, else 0."""
        return (sim.qvel[:, 2] <= -SPIN_SPEED).to(sim.dtype)


class FingerTurn(Finger):
    """What both turning tasks share: a target on the circle that the spinner's tip can reach.

    Unlike in Playground, the target is where it belongs in the first observation too. Its terms follow the finger's:

    | term     | size | unit                                                      |
    |----------|------|-----------------------------------------------------------|
    | target   | 2    | target from the spinner's axis, x and z (m)               |
    | distance | 1    | tip to the target's surface (m), negative inside          |
    """

    target_radius: ClassVar[float]  # m
    units = {**Finger.units, "target": "m", "distance": "m"}

    def model(self) -> mujoco.MjSpec:
        """A target of the task's own size."""
        spec = super().model()
        spec.site("target").size[0] = self.target_radius
        return spec

    def initial_state(self, sim: Fields, random: Draws) -> InitialState:
        """The finger's start, and a target at any angle."""
        start = super().initial_state(sim, random)
        angle = math.pi * (2 * random.uniform() - 1)
        around = torch.stack([angle.sin(), torch.zeros_like(angle), angle.cos()], dim=1)
        start.mocap_pos = (sim.tensor(HINGE) + TIP_RADIUS * around).unsqueeze(1)
        return start

    def observe(self, sim: Fields, state: State) -> dict[str, Tensor]:
        """The finger's terms, and where the target is."""
        target = self.from_axis(sim, "target")
        return {**super().observe(sim, state), "target": target, "distance": self.distance(sim).unsqueeze(1)}

    def distance(self, sim: Fields) -> Tensor:
        """From the tip to the target's surface in m, negative inside, (N,)."""
        apart = self.from_axis(sim, "target") - self.from_axis(sim, "tip")
        return apart.norm(dim=1) - self.target_radius

    def reward(self, sim: Fields, state: State, action: Tensor) -> Tensor:
        """1 while the tip is in the target, else 0."""
        return (self.distance(sim) <= 0).to(sim.dtype)


@register("FingerTurnEasy")
class FingerTurnEasy(FingerTurn):
    """Turn the spinner until its tip is in a large target."""

    target_radius = 0.07


@register("FingerTurnHard")
class FingerTurnHard(FingerTurn):
    """Turn the spinner until its tip is in a small target."""

    target_radius = 0.03
