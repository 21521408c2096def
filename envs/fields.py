"""What a task may look at: named tensors of N worlds, and names of the model resolved to indices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mujoco
import numpy as np
import torch
from torch import Tensor

from gorl_robotics.errors import InputError, unknown

# MuJoCo fields with one row per world that both engines offer, and the shape behind the world axis as attribute
# names of MjModel. Rotation matrices are 3x3, as in MuJoCo Warp.
FIELD_SHAPES: dict[str, tuple[str | int, ...]] = {
    "qpos": ("nq",),
    "qvel": ("nv",),
    "act": ("na",),
    "ctrl": ("nu",),
    "qacc": ("nv",),
    "mocap_pos": ("nmocap", 3),
    "mocap_quat": ("nmocap", 4),
    "xpos": ("nbody", 3),
    "xquat": ("nbody", 4),
    "xmat": ("nbody", 3, 3),
    "xipos": ("nbody", 3),
    "ximat": ("nbody", 3, 3),
    "geom_xpos": ("ngeom", 3),
    "geom_xmat": ("ngeom", 3, 3),
    "site_xpos": ("nsite", 3),
    "site_xmat": ("nsite", 3, 3),
    "subtree_com": ("nbody", 3),
    "cvel": ("nbody", 6),
    "cfrc_ext": ("nbody", 6),
    "sensordata": ("nsensordata",),
    "actuator_force": ("nu",),
    "qfrc_actuator": ("nv",),
}


# MuJoCo computes contact forces on bodies (cfrc_ext) only where a sensor of one of these kinds needs them.
_FORCE_SENSORS = (
    mujoco.mjtSensor.mjSENS_ACCELEROMETER,
    mujoco.mjtSensor.mjSENS_FORCE,
    mujoco.mjtSensor.mjSENS_TORQUE,
    mujoco.mjtSensor.mjSENS_FRAMELINACC,
    mujoco.mjtSensor.mjSENS_FRAMEANGACC,
)


def field_shape(model: mujoco.MjModel, name: str) -> tuple[int, ...]:
    """The shape of one world's `name`; raises InputError with the nearest field if there is no such field."""
    if name not in FIELD_SHAPES:
        raise unknown("simulation field", name, FIELD_SHAPES)
    return tuple(int(getattr(model, n)) if isinstance(n, str) else n for n in FIELD_SHAPES[name])


def check_computed(model: mujoco.MjModel, name: str) -> None:
    """Raises InputError if `name` is a field that MuJoCo leaves at zero for this model."""
    if name == "cfrc_ext" and not np.isin(model.sensor_type, _FORCE_SENSORS).any():
        raise InputError("field 'cfrc_ext' is computed for a sensor only: add an accelerometer to the model")


class Fields:
    """N worlds of one model seen through named tensors, `fields.qpos` of shape (N, nq) and so on.

    Args:
        model: the compiled model; names are looked up in it.
        tensors: field name to tensor, the world axis first.
        num_worlds: N.
    """

    def __init__(self, model: mujoco.MjModel, tensors: Mapping[str, Tensor], num_worlds: int) -> None:
        self.model = model
        self.num_worlds = num_worlds
        self._tensors = dict(tensors)
        first = next(iter(self._tensors.values()))
        self.device, self.dtype = first.device, first.dtype
        self._constants: dict[object, Tensor] = {}

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("_"):
            raise AttributeError(name)
        tensor = self._tensors.get(name)
        if tensor is None:
            field_shape(self.model, name)
            raise InputError(f"field {name!r} was not bound: the task did not read it in its dry run")
        return tensor

    def body(self, name: str) -> int:
        """Index of a body on the body axis of `xpos`, `xmat`, `xipos`, `subtree_com`."""
        return self._index(mujoco.mjtObj.mjOBJ_BODY, "body", name)

    def geom(self, name: str) -> int:
        """Index of a geom on the geom axis of `geom_xpos`, `geom_xmat`."""
        return self._index(mujoco.mjtObj.mjOBJ_GEOM, "geom", name)

    def site(self, name: str) -> int:
        """Index of a site on the site axis of `site_xpos`, `site_xmat`."""
        return self._index(mujoco.mjtObj.mjOBJ_SITE, "site", name)

    def joint(self, name: str) -> int:
        """Index of a joint in the model's joint arrays; see `joint_qpos`, `joint_qvel` for its state."""
        return self._index(mujoco.mjtObj.mjOBJ_JOINT, "joint", name)

    def joint_qpos(self, name: str) -> slice:
        """Columns of `qpos` that belong to a joint: 7 of a free joint, 4 of a ball, 1 of a slide or hinge."""
        joint = self.joint(name)
        start = int(self.model.jnt_qposadr[joint])
        return slice(start, start + (7, 4, 1, 1)[self.model.jnt_type[joint]])

    def joint_qvel(self, name: str) -> slice:
        """Columns of `qvel` that belong to a joint: 6 of a free joint, 3 of a ball, 1 of a slide or hinge."""
        joint = self.joint(name)
        start = int(self.model.jnt_dofadr[joint])
        return slice(start, start + (6, 3, 1, 1)[self.model.jnt_type[joint]])

    def sensor(self, name: str) -> slice:
        """Columns of `sensordata` that belong to a sensor."""
        sensor = self._index(mujoco.mjtObj.mjOBJ_SENSOR, "sensor", name)
        start = int(self.model.sensor_adr[sensor])
        return slice(start, start + int(self.model.sensor_dim[sensor]))

    def tensor(self, values: Sequence[float] | np.ndarray | float) -> Tensor:
        """A constant on the worlds' device, made once: a captured CUDA graph must not copy from the host."""
        array = np.array(values, dtype=np.float64)  # a copy, which nobody else changes
        key = (array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = torch.as_tensor(array, dtype=self.dtype, device=self.device)
        return self._constants[key]

    def default_qpos(self) -> Tensor:
        """The model's default configuration for every world, shape (N, nq), free to be written to."""
        return self.tensor(self.model.qpos0).repeat(self.num_worlds, 1)

    def zero_qvel(self) -> Tensor:
        """Zero velocities, shape (N, nv), free to be written to."""
        return torch.zeros(self.num_worlds, self.model.nv, dtype=self.dtype, device=self.device)

    def _index(self, kind: mujoco.mjtObj, word: str, name: str) -> int:
        index = mujoco.mj_name2id(self.model, kind, name)
        if index < 0:
            count = int(getattr(self.model, f"n{word}" if word != "joint" else "njnt"))
            raise unknown(word, name, filter(None, (mujoco.mj_id2name(self.model, kind, i) for i in range(count))))
        return index
