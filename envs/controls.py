"""What actions mean to a model's actuators."""

from __future__ import annotations

import mujoco
import torch
from torch import Tensor


def action_range(model: mujoco.MjModel) -> tuple[Tensor, Tensor]:
    """Controls at action -1 and +1, each (nu,): the control range, or -1 and 1 where an actuator has none."""
    limited = torch.as_tensor(model.actuator_ctrllimited.astype(bool))
    bounds = torch.as_tensor(model.actuator_ctrlrange)
    return bounds[:, 0].where(limited, -1.0), bounds[:, 1].where(limited, 1.0)
