"""The model as MuJoCo Warp takes it: parameters of a world's own, nothing that nobody sees, few kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mujoco
import mujoco_warp as mjw
import numpy as np

from envs.user_code import summary
from gorl_robotics.errors import InputError

_FEW_ITERATIONS = 8
_SMALL_MATRIX = 16
# Constants that follow from other parameters: where those are a world's own, these must be too, or they stay shared.
_DERIVED = (
    "body_subtreemass",
    "body_invweight0",
    "dof_invweight0",
    "actuator_acc0",
    "tendon_length0",
    "tendon_invweight0",
    "eq_data",
    "geom_aabb",
    "geom_rbound",
    "cam_pos0",
    "cam_poscom0",
    "cam_mat0",
)


def put_model(model: mujoco.MjModel, num_worlds: int, randomised: Sequence[str]) -> Any:
    """The model on Warp's current device.

    Args:
        model: the compiled model.
        num_worlds: N.
        randomised: fields of which every world has its own.

    Raises:
        InputError: Warp cannot simulate it.
    """
    own = (*randomised, *_DERIVED) if randomised else ()
    try:
        warp_model = mjw.put_model(model, batch_sizes=dict.fromkeys(own, num_worlds))
    except (NotImplementedError, ValueError) as error:
        raise InputError(f"MuJoCo Warp cannot simulate the model: {summary(error)}") from error
    # A conditional graph asks after each solver iteration whether any world needs another one: dearer than a few
    # iterations are.
    warp_model.opt.graph_conditional = model.opt.iterations > _FEW_ITERATIONS
    warp_model.opt.warn_overflow = 0  # read in check(); printing from kernels floods
    _without_scenery(warp_model, model)
    _with_few_libraries(warp_model, model)
    return warp_model


def sees(model: mujoco.MjModel, sensors: np.ndarray) -> bool:
    """Whether any of these sensors has to do with a camera."""
    return mujoco.mjtObj.mjOBJ_CAMERA in (*model.sensor_objtype[sensors], *model.sensor_reftype[sensors])


def _without_scenery(warp_model: Any, model: mujoco.MjModel) -> None:
    """Lights, and cameras that no sensor reads, stay where they are: each takes a kernel in every physics step."""
    warp_model.nlight = 0
    if not sees(model, np.arange(model.nsensor)):
        warp_model.ncam = 0


def _with_few_libraries(warp_model: Any, model: mujoco.MjModel) -> None:
    """The solver's matrices are factored by as many threads as the inertia matrix.

    Of each size and number of threads Warp links a routine from a library, which takes two seconds, one after the
    other, where it is not in the cache. Small matrices have no use for a second warp.
    """
    if model.nv <= _SMALL_MATRIX:
        warp_model.block_dim.update_gradient_cholesky = warp_model.block_dim.cholesky_factorize_solve
