"""The swimming fish of the DM Control suite, with MuJoCo Playground's changes."""

from __future__ import annotations

import mujoco
import torch
from torch import Tensor

from envs.draws import Draws
from envs.fields import Fields
from envs.task import InitialState, State, Task, Timing
from tasks.registry import register
from tasks.rewards import tolerance
from tasks.suite import suite_model

REACH = 0.045  # m, radii of mouth (0.005) and target (0.04)
JOINT_START = 0.2  # rad
TARGET_LOW, TARGET_HIGH = (-0.4, -0.4, 0.1), (0.4, 0.4, 0.3)  # m


@register("FishSwim")
class FishSwim(Task):
    """Swim to a target and stay upright.

    Playground's definition: the fish starts at z = 0, 0.1 m below dm_control's, and its body has a sphere's mass
    instead of a plate's. Unlike in Playground, positions are fresh after each step, and the target is where it
    belongs in the first observation too.

    | term      | size | unit                                                                             |
    |-----------|------|----------------------------------------------------------------------------------|
    | upright   | 1    | cosine of the torso's tilt                                                       |
    | joints    | 7    | tail 1, tail twist, tail 2, right fin roll, pitch, left fin roll, pitch (rad)    |
    | to_target | 3    | mouth to target in the mouth's frame (m)                                         |
    | velocity  | 13   | torso's in the world (m/s), its turning in its own frame and the joints' (rad/s) |
    """

    timing = Timing(control=0.04, physics=0.002)
    nconmax, njmax = 1, 1  # constraints are off: there is nothing to hold
    units = {"upright": "1", "joints": "rad", "to_target": "m", "velocity": "m/s, rad/s"}

    def model(self) -> mujoco.MjSpec:
        """The suite's fish with a massive sphere in its torso and a target that can be moved, as in Playground."""
        spec = suite_model("fish", iterations=2, ls_iterations=6)
        spec.option.disableflags |= mujoco.mjtDisableBit.mjDSBL_CONTACT
        massive = spec.geom("torso_massive")
        massive.type, massive.size = mujoco.mjtGeom.mjGEOM_SPHERE, (0.03, 0.0, 0.0)
        target = spec.geom("target")
        target.name = "target of the suite"
        body = spec.worldbody.add_body(name="target", pos=target.pos, mocap=True)
        body.add_geom(name="target", type=target.type, size=target.size, material=target.material)
        spec.delete(target)
        return spec

    def initial_state(self, sim: Fields, random: Draws) -> InitialState:
        """At the origin in any orientation, joints within 0.2 rad, at rest; the target anywhere in a flat box."""
        direction = random.normal(4)
        qpos = torch.cat(
            [
                torch.zeros_like(direction[:, :3]),
                direction / direction.norm(dim=1, keepdim=True),
                JOINT_START * (2 * random.uniform(7) - 1),
            ],
            dim=1,
        )
        low, high = sim.tensor(TARGET_LOW), sim.tensor(TARGET_HIGH)
        target = low + (high - low) * random.uniform(3)
        return InitialState(qpos, sim.zero_qvel(), mocap_pos=target.unsqueeze(1))

    def observe(self, sim: Fields, state: State) -> dict[str, Tensor]:
        """Uprightness, joints, where the target is from the mouth's point of view, velocities."""
        frame = sim.geom_xmat[:, sim.geom("mouth")]
        return {
            "upright": self.upright(sim).unsqueeze(1),
            "joints": sim.qpos[:, 7:],
            "to_target": (self.to_target(sim).unsqueeze(1) @ frame).squeeze(1),
            "velocity": sim.qvel,
        }

    def upright(self, sim: Fields) -> Tensor:
        """Cosine of the torso's tilt, (N,)."""
        return sim.xmat[:, sim.body("torso"), 2, 2]

    def to_target(self, sim: Fields) -> Tensor:
        """From mouth to target in the world's frame in m, (N, 3)."""
        return sim.geom_xpos[:, sim.geom("target")] - sim.geom_xpos[:, sim.geom("mouth")]

    def reward(self, sim: Fields, state: State, action: Tensor) -> Tensor:
        """Seven parts for the mouth being at the target, one for being upright."""
        near = tolerance(self.to_target(sim).norm(dim=1), 0.0, REACH, margin=2 * REACH)
        return (7 * near + (self.upright(sim) + 1) / 2) / 8
