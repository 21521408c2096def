"""Physics on CPU threads: `mujoco.batch`, bit for bit MuJoCo C."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Sequence

import mujoco
import numpy as np
import torch
from mujoco import batch
from torch import Tensor

from envs.fields import field_shape
from envs.simulation import STATE_FIELDS, Simulation


class NativeSimulation(Simulation):
    """N worlds on CPU threads. Fields are float64 views, strided where they are part of a world's state row.

    Args:
        model: the compiled model.
        num_worlds: N.
        fields: further fields to bind, see `envs.fields.FIELD_SHAPES`.
        physics_steps: physics steps in a control step.
        threads: CPU threads; 0 takes every core this process may use.
        randomised: model fields of which every world has its own, see `envs.randomisation.RANDOMISABLE`.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        num_worlds: int,
        fields: Sequence[str],
        physics_steps: int,
        threads: int = 0,
        randomised: Sequence[str] = (),
    ) -> None:
        model = copy.copy(model)  # the caller's stays as it is; MuJoCo Warp refuses the flag set here
        # A world that diverges must stay visible until the environment has counted it and reset it.
        model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET
        threads = min(threads or len(os.sched_getaffinity(0)), num_worlds)
        self._batch = batch.Batch(model, num_worlds, threads)
        names = dict.fromkeys((*STATE_FIELDS, *fields))
        tensors = {name: self._bind(model, name) for name in names}
        parameters = {name: torch.from_numpy(self._batch.expand(name)) for name in randomised}
        super().__init__(model, tensors, num_worlds, physics_steps, parameters)
        self.forward()

    def step(self) -> None:
        """Advances every world by one control step; see Simulation.step."""
        self._batch.step(nstep=self.physics_steps, stage=mujoco.mjtStage.mjSTAGE_VEL)

    def settle(self, steps: int) -> None:
        """Advances every world by `steps` physics steps with zero control."""
        self._tensors["ctrl"].zero_()
        self._batch.step(nstep=steps)

    def forward(self) -> None:
        """Computes everything that derives from the present state."""
        self._batch.forward()

    def reset(
        self,
        mask: Tensor,
        qpos: Tensor,
        qvel: Tensor,
        mocap_pos: Tensor | None = None,
        mocap_quat: Tensor | None = None,
    ) -> None:
        """See Simulation.reset; worlds outside the mask keep all they had, touch of the last step included."""
        self.place(mask, qpos, qvel, mocap_pos, mocap_quat)
        self._batch.forward(mask.numpy())

    def constraint_counts(self) -> tuple[Tensor, Tensor]:
        """Contacts and constraint rows of every world at present, each (N,)."""
        return torch.from_numpy(self._batch.bind("ncon")), torch.from_numpy(self._batch.bind("nefc"))

    def faults(self) -> Tensor:
        """In no world anything: MuJoCo C grows its buffers by itself."""
        return torch.zeros(1, dtype=torch.int64)

    def fault(self, faults: Tensor) -> str:
        """Nothing can overflow."""
        return ""

    def _derive(self, mask: Tensor) -> None:
        self._batch.set_const(mask.numpy())

    def _bind(self, model: mujoco.MjModel, name: str) -> Tensor:
        array: np.ndarray = self._batch.bind(name)
        shape = (model.nv,) if name == "qacc_warmstart" else field_shape(model, name)
        with warnings.catch_warnings():
            # Outputs are read-only arrays, which torch cannot express; tasks only read them.
            warnings.simplefilter("ignore", UserWarning)
            return torch.from_numpy(array).view(len(array), *shape) if array.size else torch.zeros(len(array), *shape)
