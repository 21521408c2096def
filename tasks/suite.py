"""What robots of the DM Control suite share: the changes that MuJoCo Playground makes to each, and a random pose."""

from __future__ import annotations

import math

import mujoco
from torch import Tensor

from assets import load
from envs.draws import Draws
from envs.fields import Fields


def suite_model(name: str, iterations: int, ls_iterations: int) -> mujoco.MjSpec:
    """The suite's model with Playground's options: implicit Euler damping off, no energies, fewer solver iterations.

    Args:
        name: of the XML file in dm_control's suite.
        iterations: most iterations of the constraint solver.
        ls_iterations: most line search iterations in each of them.
    """
    spec = load(f"suite:{name}")
    spec.option.disableflags |= mujoco.mjtDisableBit.mjDSBL_EULERDAMP
    spec.option.enableflags &= ~int(mujoco.mjtEnableBit.mjENBL_ENERGY)
    spec.option.iterations, spec.option.ls_iterations = iterations, ls_iterations
    return spec


def planar_pose(sim: Fields, random: Draws) -> Tensor:
    """Configurations (N, nq) of a planar robot: root in place, any pitch, every joint anywhere in its range."""
    ranges = sim.tensor(sim.model.jnt_range[3:])
    qpos = sim.default_qpos()
    qpos[:, :2] = 0.0
    qpos[:, 2] = math.pi * (2 * random.uniform() - 1)
    qpos[:, 3:] = ranges[:, 0] + (ranges[:, 1] - ranges[:, 0]) * random.uniform(len(sim.model.jnt_range) - 3)
    return qpos
