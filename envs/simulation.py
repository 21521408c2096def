"""The contract of a batched simulation: N worlds of one model, stepped together, seen through torch views."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import mujoco
import torch
from torch import Tensor

from envs.fields import Fields
from gorl_robotics.errors import InputError

# The state a world starts from. Everything else follows from it at the next physics step.
STATE_FIELDS = ("qpos", "qvel", "act", "ctrl", "mocap_pos", "mocap_quat", "qacc_warmstart")


class SimulationError(InputError):
    """The simulation cannot go on: a buffer overflowed or worlds became non-finite. One line says what to change."""


class Simulation(Fields):
    """N worlds of one model. Fields are views of the engine's own memory: they change with every step.

    Views are float32 on CUDA (MuJoCo Warp) and float64 on the CPU (mujoco.batch). Besides the bound fields, the
    STATE_FIELDS can always be read and written.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        tensors: Mapping[str, Tensor],
        num_worlds: int,
        physics_steps: int,
        parameters: Mapping[str, Tensor],
    ) -> None:
        super().__init__(model, tensors, num_worlds)
        self.physics_steps = physics_steps
        self._parameters = dict(parameters)  # model fields of which every world has its own

    @abstractmethod
    def _derive(self, mask: Tensor) -> None:
        """Computes what MuJoCo derives from model parameters (mj_setConst) in the worlds of `mask` at least."""

    @abstractmethod
    def step(self) -> None:
        """Advances every world by one control step under the present `ctrl`.

        Afterwards positions, velocities and what is derived from them (sensors included) belong to the new state;
        acceleration-stage sensors such as touch belong to the last physics step, as in dm_control.
        """

    @abstractmethod
    def settle(self, steps: int) -> None:
        """Advances every world by `steps` physics steps with zero control."""

    @abstractmethod
    def forward(self) -> None:
        """Computes everything that derives from the present state, without advancing it."""

    def check(self) -> None:
        """Raises SimulationError if a contact or constraint buffer has overflowed since the last; the host waits."""
        fault = self.fault(self.faults())
        if fault:
            raise SimulationError(fault)

    @abstractmethod
    def faults(self) -> Tensor:
        """What has gone wrong since the last call, (n,) int64 on the device: first of all, in how many worlds."""

    @abstractmethod
    def fault(self, faults: Tensor) -> str:
        """One line about what `faults` gave: which buffer had overflowed, and what to do; empty if none had."""

    def place(
        self, mask: Tensor, qpos: Tensor, qvel: Tensor, mocap_pos: Tensor | None, mocap_quat: Tensor | None
    ) -> None:
        """Puts the worlds in `mask` (N,) into a new state; the others are untouched.

        The solver's warm start, activations and controls are cleared with it: a world that had become non-finite is
        as good as new. Derived quantities are stale until the next `step` or `forward`.
        """
        for name, value in (("qpos", qpos), ("qvel", qvel)):
            _write(self._tensors[name], mask, value)
        for name in ("act", "ctrl", "qacc_warmstart"):
            self._tensors[name].masked_fill_(mask.unsqueeze(1), 0.0)
        for name, pose in (("mocap_pos", mocap_pos), ("mocap_quat", mocap_quat)):
            if pose is not None:
                _write(self._tensors[name], mask, pose)

    def reset(
        self,
        mask: Tensor,
        qpos: Tensor,
        qvel: Tensor,
        mocap_pos: Tensor | None = None,
        mocap_quat: Tensor | None = None,
    ) -> None:
        """`place` and `forward`: the masked worlds start anew, and all derived quantities are fresh."""
        self.place(mask, qpos, qvel, mocap_pos, mocap_quat)
        self.forward()

    def set_parameters(self, mask: Tensor, values: Mapping[str, Tensor]) -> None:
        """Gives the worlds in `mask` (N,) their own model parameters, with all constants that follow from them.

        The arrays are written in place. States and derived quantities stay as they are until the next step.

        Args:
            mask: worlds.
            values: by name of a randomised field, (N, *shape of the MjModel field).
        """
        for name, value in values.items():
            _write(self._parameters[name], mask, value)
        self._derive(mask)

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of every world's state, and of the parameters that are its own."""
        parameters = {f"model.{name}": value.clone() for name, value in self._parameters.items()}
        return {**{name: self._tensors[name].clone() for name in STATE_FIELDS}, **parameters}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores a state of the same model and number of worlds."""
        for name in STATE_FIELDS:
            self._tensors[name].copy_(state[name])
        for name, value in self._parameters.items():
            value.copy_(state[f"model.{name}"])
        if self._parameters:
            self._derive(torch.ones(self.num_worlds, dtype=torch.bool, device=self.device))


def _write(target: Tensor, mask: Tensor, value: Tensor) -> None:
    rows = mask.view(-1, *(1,) * (target.ndim - 1))
    torch.where(rows, value.to(target.dtype), target, out=target)
