"""Worlds and random numbers for a dry run, which remember what a task's methods read and draw."""

from __future__ import annotations

from collections.abc import Sequence

import mujoco
import numpy as np
import torch
from torch import Tensor

from envs.fields import Fields, check_computed, field_shape
from envs.task import InitialState

WORLDS = 2
_DIVERGED = (
    mujoco.mjtWarning.mjWARN_BADQPOS,
    mujoco.mjtWarning.mjWARN_BADQVEL,
    mujoco.mjtWarning.mjWARN_BADQACC,
)


class RecordingFields(Fields):
    """Fields of one model, at its default pose at first, that remember which of them were read."""

    def __init__(self, model: mujoco.MjModel, num_worlds: int = WORLDS) -> None:
        data = [mujoco.MjData(model) for _ in range(num_worlds)]
        for world in data:
            mujoco.mj_forward(model, world)
        super().__init__(model, {"qpos": _rows(model, data, "qpos")}, num_worlds)
        self._data = data
        self.read: dict[str, None] = {}

    def place(self, start: InitialState, settle_steps: int) -> bool:
        """Puts every world at its start, settled; whether that ends well, see `advance`."""
        poses = {"qpos": start.qpos, "qvel": start.qvel, "mocap_pos": start.mocap_pos, "mocap_quat": start.mocap_quat}
        for i, world in enumerate(self._data):
            for name, values in poses.items():
                if values is not None:
                    getattr(world, name)[:] = values[i].detach().numpy()
        return self.advance(settle_steps)

    def advance(self, physics_steps: int) -> bool:
        """Steps every world with zero control and derives its quantities anew; False if one diverged and was reset."""
        for world in self._data:
            mujoco.mj_step(self.model, world, physics_steps)
            mujoco.mj_forward(self.model, world)
        self._tensors.clear()
        return not any(world.warning[kind].number for world in self._data for kind in _DIVERGED)

    def changed(self) -> list[str]:
        """Fields that have been written to since the last step."""
        same = {name: _rows(self.model, self._data, name) for name in self._tensors}
        return [name for name, value in self._tensors.items() if not equal(value, same[name])]

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("_") or name == "read":
            raise AttributeError(name)
        if name not in self._tensors:
            check_computed(self.model, name)
            self._tensors[name] = _rows(self.model, self._data, name)
        self.read[name] = None
        return self._tensors[name]


class RecordingDraws:
    """Seeded draws that remember kind and size of each."""

    def __init__(self, num_worlds: int = WORLDS) -> None:
        self._generator = torch.Generator().manual_seed(0)
        self._num_worlds = num_worlds
        self.drawn: list[tuple[str, tuple[int, ...]]] = []

    def uniform(self, *size: int) -> Tensor:
        """Uniform numbers in [0, 1), shape (N, *size)."""
        self.drawn.append(("uniform", size))
        return torch.rand(self._num_worlds, *size, generator=self._generator, dtype=torch.float64)

    def normal(self, *size: int) -> Tensor:
        """Standard normal numbers, shape (N, *size)."""
        self.drawn.append(("normal", size))
        return torch.randn(self._num_worlds, *size, generator=self._generator, dtype=torch.float64)


def equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape are the same, NaN being equal to NaN."""
    return torch.equal(one.nan_to_num(), other.nan_to_num()) if one.is_floating_point() else torch.equal(one, other)


def _rows(model: mujoco.MjModel, data: Sequence[mujoco.MjData], name: str) -> Tensor:
    shape = field_shape(model, name)
    rows = [np.asarray(getattr(world, name), dtype=np.float64).reshape(shape) for world in data]
    return torch.from_numpy(np.stack(rows))
