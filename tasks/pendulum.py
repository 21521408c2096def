"""The pendulum of the DM Control suite, with MuJoCo Playground's time step and solver settings."""

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

COSINE_BOUND = math.cos(math.radians(8))


@register("PendulumSwingup")
class PendulumSwingup(Task):
    """Swing the pendulum up, with a motor too weak to lift it, and hold it there.

    | term        | size | unit                                            |
    |-------------|------|-------------------------------------------------|
    | orientation | 2    | sine and cosine of the angle; 0, 1 is up        |
    | velocity    | 1    | rad/s                                           |

    Departs from Playground: derived quantities belong to the new state, where Playground's are one physics step late;
    the reward has no upper bound on the cosine, which rounding may carry a hair above 1.
    """

    timing = Timing(control=0.02, physics=0.01)
    nconmax, njmax = 1, 1  # neither contacts nor limits; buffers of size 0 are not worth a special case
    units = {"orientation": "1", "velocity": "rad/s"}

    def model(self) -> mujoco.MjSpec:
        """The suite's pendulum; energy not computed, Euler damping off, fewer iterations, as in Playground."""
        return suite_model("pendulum", iterations=4, ls_iterations=8)

    def initial_state(self, sim: Fields, random: Draws) -> InitialState:
        """Anywhere between up and down on one side, as in Playground (dm_control: on both), at rest."""
        return InitialState(math.pi * random.uniform(1), sim.zero_qvel())

    def observe(self, sim: Fields, state: State) -> dict[str, Tensor]:
        """The pole's direction and its velocity."""
        pole = sim.xmat[:, sim.body("pole")]
        return {"orientation": torch.stack([pole[:, 0, 2], pole[:, 2, 2]], dim=1), "velocity": sim.qvel}

    def reward(self, sim: Fields, state: State, action: Tensor) -> Tensor:
        """1 within 8° of upright, else 0."""
        return tolerance(sim.xmat[:, sim.body("pole"), 2, 2], COSINE_BOUND, math.inf)
