"""The cart-pole of the DM Control suite, with MuJoCo Playground's integrator and solver settings."""

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


class Cartpole(Task):
    """What the cart-pole tasks share.

    | term     | size | unit                                            |
    |----------|------|-------------------------------------------------|
    | cart     | 1    | position on the rail (m)                        |
    | pole     | 2    | cosine and sine of the pole's angle; 1, 0 is up |
    | velocity | 2    | cart (m/s), pole (rad/s)                        |
    """

    timing = Timing(control=0.01, physics=0.01)
    nconmax, njmax = 1, 4
    units = {"cart": "m", "pole": "1", "velocity": "m/s, rad/s"}

    def model(self) -> mujoco.MjSpec:
        """The suite's cart-pole with Euler integration instead of RK4, as in Playground."""
        spec = suite_model("cartpole", iterations=1, ls_iterations=4)
        spec.option.integrator = mujoco.mjtIntegrator.mjINT_EULER
        return spec

    def observe(self, sim: Fields, state: State) -> dict[str, Tensor]:
        """Cart position, pole direction, both velocities."""
        pole = sim.xmat[:, sim.body("pole_1")]
        return {
            "cart": sim.qpos[:, :1],
            "pole": torch.stack([pole[:, 2, 2], pole[:, 0, 2]], dim=1),
            "velocity": sim.qvel,
        }

    def reward(self, sim: Fields, state: State, action: Tensor) -> Tensor:
        """Upright, centred, calm and with little force: a product of four terms in [0, 1]."""
        upright = (sim.xmat[:, sim.body("pole_1"), 2, 2] + 1) / 2
        centred = (1 + tolerance(sim.qpos[:, 0], margin=2.0)) / 2
        gentle = (4 + tolerance(action[:, 0], margin=1.0, shape="quadratic", value_at_margin=0.0)) / 5
        calm = (1 + tolerance(sim.qvel[:, 1], margin=5.0)) / 2
        return upright * centred * gentle * calm

    def balanced(self, sim: Fields) -> Tensor:
        """What the sparse tasks pay: 1 with the cart within 25 cm of the middle and the pole within 5.7° of up, else 0.

        The cosine has no upper bound here (1 in dm_control and Playground), which rounding may carry a hair above 1.
        """
        return tolerance(sim.qpos[:, 0], -0.25, 0.25) * tolerance(
            sim.xmat[:, sim.body("pole_1"), 2, 2], 0.995, math.inf
        )


@register("CartpoleBalance")
class CartpoleBalance(Cartpole):
    """Keep the pole up and the cart in the middle, starting near there."""

    def initial_state(self, sim: Fields, random: Draws) -> InitialState:
        """Cart within 0.1 m, pole within 0.034 rad of upright, nearly at rest."""
        reach = sim.tensor([0.1, 0.034])
        return InitialState(reach * (2 * random.uniform(2) - 1), 0.01 * random.normal(2))


@register("CartpoleSwingup")
class CartpoleSwingup(Cartpole):
    """Swing the hanging pole up and keep it there."""

    def initial_state(self, sim: Fields, random: Draws) -> InitialState:
        """Cart near the middle, pole hanging down, nearly at rest."""
        qpos = 0.01 * random.normal(2) + sim.tensor([0.0, math.pi])
        return InitialState(qpos, 0.01 * random.normal(2))


@register("CartpoleBalanceSparse")
class CartpoleBalanceSparse(CartpoleBalance):
    """Keep the pole up and the cart in the middle; paid all or nothing."""

    def reward(self, sim: Fields, state: State, action: Tensor) -> Tensor:
        """1 while balanced, else 0."""
        return self.balanced(sim)


@register("CartpoleSwingupSparse")
class CartpoleSwingupSparse(CartpoleSwingup):
    """Swing the hanging pole up and keep it there; paid all or nothing."""

    def reward(self, sim: Fields, state: State, action: Tensor) -> Tensor:
        """1 while balanced, else 0."""
        return self.balanced(sim)
