"""The humanoid of the DM Control suite, with MuJoCo Playground's solver settings."""

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
from tasks.suite import suite_model

HEAD_HEIGHT = 1.4  # m
WALK_SPEED = 1.0  # m/s
RUN_SPEED = 10.0  # m/s
EXTREMITIES = ("left_hand", "left_foot", "right_hand", "right_foot")


class Humanoid(Task):
    """What the three humanoid tasks share.

    | term           | size | unit                                                                           |
    |----------------|------|--------------------------------------------------------------------------------|
    | joint_angles   | 21   | abdomen z, y, x; right, left hip x, z, y, knee, ankle y, x; right, left        |
    |                |      | shoulder 1, 2, elbow (rad)                                                     |
    | head_height    | 1    | m                                                                              |
    | extremities    | 12   | left hand, left foot, right hand, right foot, as the torso sees them (m)       |
    | torso_vertical | 3    | the world's up axis as the torso sees it                                       |
    | com_velocity   | 3    | of the centre of mass, in the world (m/s)                                      |
    | velocity       | 27   | root, linear in the world (m/s), angular in the torso (rad/s); joints (rad/s)  |

    As in Playground every episode starts from the same pose. Departs from it: derived quantities belong to the new
    state, where Playground's are one physics step late.
    """

    timing = Timing(control=0.025, physics=0.005)
    # Random torques make up to 15 contacts and 48 rows, tumbling 110; thrashing policies had over 128 in 1 % of worlds.
    nconmax, njmax = 28, 256
    units = {
        "joint_angles": "rad",
        "head_height": "m",
        "extremities": "m",
        "torso_vertical": "1",
        "com_velocity": "m/s",
        "velocity": "m/s, rad/s",
    }

    def model(self) -> mujoco.MjSpec:
        """The suite's humanoid without touch sensors; Euler damping off and fewer iterations, as in Playground."""
        spec = suite_model("humanoid", iterations=4, ls_iterations=8)
        for sensor in list(spec.sensors):
            if sensor.type == mujoco.mjtSensor.mjSENS_TOUCH:
                spec.delete(sensor)
        return spec

    def initial_state(self, sim: Fields, random: Draws) -> InitialState:
        """Always the model's own pose: upright, at rest, the torso at 1.5 m and so the feet 0.2 m above the floor."""
        return InitialState(sim.default_qpos(), sim.zero_qvel())

    def observe(self, sim: Fields, state: State) -> dict[str, Tensor]:
        """The body as the torso sees it, and all velocities; not where it is nor where it faces."""
        torso = sim.body("torso")
        frame = sim.xmat[:, torso]
        ends = torch.stack([sim.xpos[:, sim.body(name)] for name in EXTREMITIES], dim=1)
        offset = ends - sim.xpos[:, torso].unsqueeze(1)
        # Products and a sum instead of a matrix product, which a GPU may be set to round to TF32.
        local = (offset.unsqueeze(3) * frame.unsqueeze(1)).sum(dim=2)
        return {
            "joint_angles": sim.qpos[:, 7:],
            "head_height": sim.xpos[:, sim.body("head"), 2].unsqueeze(1),
            "extremities": local.flatten(1),
            "torso_vertical": frame[:, 2],
            "com_velocity": self.com_velocity(sim),
            "velocity": sim.qvel,
        }

    def com_velocity(self, sim: Fields) -> Tensor:
        """Velocity of the whole body's centre of mass in m/s, (N, 3)."""
        return sim.sensordata[:, sim.sensor("torso_subtreelinvel")]

    def standing(self, sim: Fields, action: Tensor) -> Tensor:
        """Head at 1.4 m or above, times uprightness of the torso, times small actions, in [0, 1], (N,)."""
        tall = tolerance(sim.xpos[:, sim.body("head"), 2], HEAD_HEIGHT, math.inf, margin=HEAD_HEIGHT / 4)
        vertical = sim.xmat[:, sim.body("torso"), 2, 2]
        upright = tolerance(vertical, 0.9, math.inf, margin=1.9, shape="linear", value_at_margin=0.0)
        return tall * upright * (4 + small_control(action)) / 5

    def moving(self, sim: Fields, speed: float) -> Tensor:
        """One sixth, and five sixths of the horizontal speed in any direction up to `speed`, (N,)."""
        across = self.com_velocity(sim)[:, :2].norm(dim=1)
        share = tolerance(across, speed, math.inf, margin=speed, shape="linear", value_at_margin=0.0)
        return (5 * share + 1) / 6


@register("HumanoidStand")
class HumanoidStand(Humanoid):
    """Stand still with little effort."""

    def reward(self, sim: Fields, state: State, action: Tensor) -> Tensor:
        """Standing, times not moving: 1 at rest, a tenth at 2 m/s, averaged over x and y."""
        return self.standing(sim, action) * tolerance(self.com_velocity(sim)[:, :2], margin=2.0).mean(dim=1)


@register("HumanoidWalk")
class HumanoidWalk(Humanoid):
    """Walk at 1 m/s or more, in any direction."""

    def reward(self, sim: Fields, state: State, action: Tensor) -> Tensor:
        """Standing, times moving."""
        return self.standing(sim, action) * self.moving(sim, WALK_SPEED)


@register("HumanoidRun")
class HumanoidRun(Humanoid):
    """Run at 10 m/s or more, in any direction."""

    def reward(self, sim: Fields, state: State, action: Tensor) -> Tensor:
        """Standing, times moving."""
        return self.standing(sim, action) * self.moving(sim, RUN_SPEED)
