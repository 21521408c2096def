"""The planar two-legged runner of the DM Control suite, with MuJoCo Playground's solver settings."""

from __future__ import annotations

import math
import warnings

import mujoco
from torch import Tensor

from envs.draws import Draws
from envs.fields import Fields
from envs.task import InitialState, State, Task, Timing
from tasks.registry import register
from tasks.rewards import tolerance
from tasks.suite import suite_model

RUN_SPEED = 10.0  # m/s

# dm_control's XML still asks for a total mass in a way that MuJoCo says it will drop; nothing a user could change.
warnings.filterwarnings("ignore", message="compiler attribute 'settotalmass' is deprecated")


@register("CheetahRun")
class CheetahRun(Task):
    """Run forward at 10 m/s or more; Playground's definition, with the speed fresh after each step.

    | term     | size | unit                                                                                  |
    |----------|------|---------------------------------------------------------------------------------------|
    | position | 8    | root z (m), root pitch, back thigh, shin, foot, front thigh, shin, foot (rad)         |
    | velocity | 9    | root x, z (m/s), root pitch, back thigh, shin, foot, front thigh, shin, foot (rad/s)  |
    """

    timing = Timing(control=0.01, physics=0.01)
    settle_steps = 200  # the cheetah falls to the ground before the episode begins
    nconmax, njmax = 12, 50  # 6 contacts and 25 rows is the most a world was seen to have
    units = {"position": "m, rad", "velocity": "m/s, rad/s"}

    def model(self) -> mujoco.MjSpec:
        """The suite's cheetah; explicit Euler damping off and fewer solver iterations, as in Playground."""
        return suite_model("cheetah", iterations=4, ls_iterations=8)

    def initial_state(self, sim: Fields, random: Draws) -> InitialState:
        """Level, torso at 0.7 m, joints anywhere in their ranges, at rest; then it settles."""
        ranges = sim.tensor(sim.model.jnt_range[3:])
        qpos = sim.default_qpos()
        qpos[:, :3] = 0.0
        qpos[:, 3:] = ranges[:, 0] + (ranges[:, 1] - ranges[:, 0]) * random.uniform(6)
        return InitialState(qpos, sim.zero_qvel())

    def observe(self, sim: Fields, state: State) -> dict[str, Tensor]:
        """Everything but the root's x, which the dynamics do not depend on."""
        return {"position": sim.qpos[:, 1:], "velocity": sim.qvel}

    def reward(self, sim: Fields, state: State, action: Tensor) -> Tensor:
        """Forward speed of the centre of mass as a fraction of 10 m/s, between 0 and 1."""
        speed = sim.sensordata[:, sim.sensor("torso_subtreelinvel")][:, 0]
        return tolerance(speed, RUN_SPEED, math.inf, margin=RUN_SPEED, shape="linear", value_at_margin=0.0)
