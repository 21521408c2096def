"""The planar two-legged walker of the DM Control suite, with MuJoCo Playground's solver settings."""

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
from tasks.suite import planar_pose, suite_model

STAND_HEIGHT = 1.2  # m, torso above the floor
WALK_SPEED = 1.0  # m/s
RUN_SPEED = 8.0  # m/s


class Walker(Task):
    """What the three walker tasks share.

    | term          | size | unit                                                                         |
    |---------------|------|------------------------------------------------------------------------------|
    | orientations  | 14   | cosine and sine of the pitch of torso and right, left thigh, leg, foot       |
    | torso_upright | 1    | cosine of the torso's tilt: 1 upright, -1 upside down                        |
    | velocity      | 9    | root z, x (m/s), root pitch, right, left hip, knee, ankle (rad/s)            |

    Departs from Playground: what it calls `height` is named for what it holds, `torso_upright` (dm_control has the
    torso's height there); derived quantities belong to the new state, where Playground's are one physics step late.
    """

    timing = Timing(control=0.025, physics=0.0025)
    nconmax, njmax = 16, 72  # 8 contacts and 36 rows is the most a world was seen to have
    units = {"orientations": "1", "torso_upright": "1", "velocity": "m/s, rad/s"}

    def model(self) -> mujoco.MjSpec:
        """The suite's walker; explicit Euler damping off and fewer solver iterations, as in Playground."""
        return suite_model("walker", iterations=2, ls_iterations=5)

    def initial_state(self, sim: Fields, random: Draws) -> InitialState:
        """Any pitch, joints anywhere in their ranges, torso at 1.3 m (so limbs may start in the floor), at rest."""
        return InitialState(planar_pose(sim, random), sim.zero_qvel())

    def observe(self, sim: Fields, state: State) -> dict[str, Tensor]:
        """How every body is pitched, and all velocities; not where the walker is, its height included."""
        bodies = sim.xmat[:, 1:]
        return {
            "orientations": torch.stack([bodies[:, :, 0, 0], bodies[:, :, 0, 2]], dim=2).flatten(1),
            "torso_upright": sim.xmat[:, sim.body("torso"), 2, 2].unsqueeze(1),
            "velocity": sim.qvel,
        }

    def standing(self, sim: Fields) -> Tensor:
        """Three parts height, up to 1.2 m, and one part uprightness of the torso, in [0, 1], (N,)."""
        torso = sim.body("torso")
        tall = tolerance(sim.xpos[:, torso, 2], STAND_HEIGHT, math.inf, margin=STAND_HEIGHT / 2)
        upright = (1 + sim.xmat[:, torso, 2, 2]) / 2
        return (3 * tall + upright) / 4

    def moving(self, sim: Fields, speed: float) -> Tensor:
        """Forward speed of the centre of mass as a share of `speed`, cut off at 0 and 1, (N,)."""
        forward = sim.sensordata[:, sim.sensor("torso_subtreelinvel")][:, 0]
        return tolerance(forward, speed, math.inf, margin=speed / 2, shape="linear", value_at_margin=0.5)


@register("WalkerStand")
class WalkerStand(Walker):
    """Stand up from any pose and stay upright."""

    def reward(self, sim: Fields, state: State, action: Tensor) -> Tensor:
        """Standing alone."""
        return self.standing(sim)


@register("WalkerWalk")
class WalkerWalk(Walker):
    """Stand up and walk forward at 1 m/s or more."""

    def reward(self, sim: Fields, state: State, action: Tensor) -> Tensor:
        """Standing, times one sixth and five sixths of the speed up to 1 m/s."""
        return self.standing(sim) * (5 * self.moving(sim, WALK_SPEED) + 1) / 6


@register("WalkerRun")
class WalkerRun(Walker):
    """Stand up and run forward at 8 m/s or more."""

    def reward(self, sim: Fields, state: State, action: Tensor) -> Tensor:
        """Standing, times one sixth and five sixths of the speed up to 8 m/s."""
        return self.standing(sim) * (5 * self.moving(sim, RUN_SPEED) + 1) / 6
