"""Which motions are faster than a physics step can follow: beyond, it is not the robot that moves so."""

from __future__ import annotations

import math

import mujoco
import torch
from torch import Tensor

_ANGLES = {  # of a joint's degrees of freedom, which are angles
    mujoco.mjtJoint.mjJNT_FREE: (False, False, False, True, True, True),
    mujoco.mjtJoint.mjJNT_BALL: (True, True, True),
    mujoco.mjtJoint.mjJNT_HINGE: (True,),
    mujoco.mjtJoint.mjJNT_SLIDE: (False,),
}


def fastest(model: mujoco.MjModel) -> Tensor:
    """Of each degree of freedom half a turn within a physics step, in rad/s, (nv,); of what is no angle infinity.

    A joint that turns by more could as well turn the other way. Seven times what the humanoid reaches under random
    torques is not as much; a world that gets there has diverged, and stays finite for the rest of its episode.
    """
    angle = [is_angle for kind in model.jnt_type for is_angle in _ANGLES[mujoco.mjtJoint(kind)]]
    half_a_turn = torch.tensor(math.pi / model.opt.timestep, dtype=torch.float64)
    return half_a_turn.where(torch.tensor(angle, dtype=torch.bool), math.inf)
