"""The ball on a string below a cup of the DM Control suite, with MuJoCo Playground's solver settings."""

from __future__ import annotations

import mujoco
from torch import Tensor

from envs.draws import Draws
from envs.fields import Fields
from envs.task import InitialState, State, Task, Timing
from tasks.registry import register
from tasks.suite import suite_model

MARGIN = 0.025  # m: half the width of the space in the cup, 0.05, less the ball's radius


@register("BallInCup")
class BallInCup(Task):
    """Throw the ball up and catch it in the cup; both move in the vertical plane.

    Playground's definition, with the positions that the reward compares fresh after each step. Like Playground, and
    unlike dm_control, every episode starts from the same pose.

    | term     | size | unit                                                       |
    |----------|------|------------------------------------------------------------|
    | position | 4    | displacement of cup x, z and ball x, z from rest (m)       |
    | velocity | 4    | cup x, z, ball x, z (m/s)                                  |
    """

    timing = Timing(control=0.02, physics=0.002)
    nconmax, njmax = 6, 24  # 3 contacts and 12 rows is the most a world was seen to have
    units = {"position": "m", "velocity": "m/s"}
    overrides = {"ppo.discount": 0.95}

    def model(self) -> mujoco.MjSpec:
        """The suite's ball in cup; explicit Euler damping off and fewer solver iterations, as in Playground."""
        return suite_model("ball_in_cup", iterations=1, ls_iterations=4)

    def initial_state(self, sim: Fields, random: Draws) -> InitialState:
        """Cup in the middle, ball hanging 0.4 m below it, at rest: the same for every world."""
        return InitialState(sim.default_qpos(), sim.zero_qvel())

    def observe(self, sim: Fields, state: State) -> dict[str, Tensor]:
        """Where cup and ball are and how they move."""
        return {"position": sim.qpos, "velocity": sim.qvel}

    def reward(self, sim: Fields, state: State, action: Tensor) -> Tensor:
        """1 while the whole ball is in the cup, else 0."""
        offset = sim.site_xpos[:, sim.site("target")] - sim.xpos[:, sim.body("ball")]
        inside = offset.abs() < MARGIN
        return (inside[:, 0] & inside[:, 2]).to(sim.dtype)
