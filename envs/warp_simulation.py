"""Physics on the GPU: MuJoCo Warp, captured as CUDA graphs. The only file that knows of Warp's graphs."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import mujoco
import mujoco_warp as mjw
import numpy as np
import torch
import warp as wp
from torch import Tensor

from envs.simulation import STATE_FIELDS, Simulation
from envs.warp_forward import Forward
from envs.warp_kernels import compile_kernels, small_blocks
from envs.warp_model import put_model, sees
from gorl_robotics.errors import InputError
from gorl_robotics.warp_stream import warp_stream

_CAPACITY = {
    mjw.OverflowType.NEFC: "njmax",
    mjw.OverflowType.BROADPHASE: "nconmax",
    mjw.OverflowType.NARROWPHASE: "nconmax",
    mjw.OverflowType.CCD: "nconmax",
}
_ACCELERATION = mujoco.mjtStage.mjSTAGE_ACC
# Position and velocity sensors that bodies' kinematics alone determine. A model with any other (joint limits, tendons,
# cameras, ...) gets MuJoCo's whole position and velocity stage after each control step instead.
_KINEMATIC_SENSORS = {
    mujoco.mjtSensor.mjSENS_JOINTPOS,
    mujoco.mjtSensor.mjSENS_JOINTVEL,
    mujoco.mjtSensor.mjSENS_GYRO,
    mujoco.mjtSensor.mjSENS_VELOCIMETER,
    mujoco.mjtSensor.mjSENS_FRAMEPOS,
    mujoco.mjtSensor.mjSENS_FRAMEQUAT,
    mujoco.mjtSensor.mjSENS_FRAMEXAXIS,
    mujoco.mjtSensor.mjSENS_FRAMEYAXIS,
    mujoco.mjtSensor.mjSENS_FRAMEZAXIS,
    mujoco.mjtSensor.mjSENS_FRAMELINVEL,
    mujoco.mjtSensor.mjSENS_FRAMEANGVEL,
    mujoco.mjtSensor.mjSENS_SUBTREECOM,
    mujoco.mjtSensor.mjSENS_SUBTREELINVEL,
    mujoco.mjtSensor.mjSENS_SUBTREEANGMOM,
}
_INTEGRATORS = {
    mjw.IntegratorType.EULER: mjw.euler,
    mjw.IntegratorType.RK4: mjw.rungekutta4,
    mjw.IntegratorType.IMPLICIT: mjw.implicit,
    mjw.IntegratorType.IMPLICITFAST: mjw.implicit,
    mjw.IntegratorType.DISCRETE: mjw.discrete,
}


class WarpSimulation(Simulation):
    """N worlds on one CUDA device, or, slowly and for tests, on the CPU. Fields are float32.

    Args:
        model: the compiled model.
        num_worlds: N.
        fields: further fields to bind, see `envs.fields.FIELD_SHAPES`.
        physics_steps: physics steps in a control step.
        device: a torch device.
        nconmax: contacts a world may have on average; the pool is shared by all worlds.
        njmax: constraint rows a world may have.
        randomised: model fields of which every world has its own, see `envs.randomisation.RANDOMISABLE`.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        num_worlds: int,
        fields: Sequence[str],
        physics_steps: int,
        device: torch.device,
        nconmax: int | None = None,
        njmax: int | None = None,
        randomised: Sequence[str] = (),
    ) -> None:
        wp.config.log_level = wp.LOG_WARNING  # or every module that is loaded prints a line
        wp.config.default_grid_stride = False  # each thread does one thing: without a loop a kernel is shorter
        wp.init()
        if device.type == "cuda" and torch.cuda.current_stream(device) == torch.cuda.default_stream(device):
            raise InputError(
                "MuJoCo Warp's graphs cannot be captured in torch's default stream; "
                "work inside `with torch.cuda.stream(torch.cuda.Stream()):`"
            )
        self._stream_device = device
        with self._on_stream():
            self._model = put_model(model, num_worlds, randomised)
            self._data = mjw.make_data(model, nworld=num_worlds, nconmax=nconmax, njmax=njmax)
            names = dict.fromkeys((*STATE_FIELDS, *fields))
            tensors = {name: wp.to_torch(getattr(self._data, name)) for name in names}
            parameters = {name: wp.to_torch(getattr(self._model, name)) for name in randomised}
        super().__init__(model, tensors, num_worlds, physics_steps, parameters)
        self._overflow = wp.to_torch(self._data.overflow)
        self._former = [wp.to_torch(rates) for rates in (self._data.cvel, self._data.cdof_dot)] if model.neq else []
        # A sensor's columns at the acceleration stage: the whole position and velocity stage would zero them.
        self._late = self._late_columns()
        self._whole_refresh = not self._kinematics_suffice()
        with self._on_stream():
            self._accelerate = Forward(model, self._model, self._data)
        self._run_step = _Replay(self._control_step, self)
        self._run_forward = _Replay(lambda: mjw.forward(self._model, self._data), self)
        self._run_derive = _Replay(lambda: mjw.set_const(self._model, self._data), self)
        self._run_physics = _Replay(lambda: mjw.step(self._model, self._data), self)
        with self._on_stream():
            compile_kernels(self._everything)
        self._tensors["qpos"].copy_(self.default_qpos())
        self.forward()

    def step(self) -> None:
        """Advances every world by one control step; see Simulation.step."""
        self._run_step()

    def settle(self, steps: int) -> None:
        """Advances every world by `steps` physics steps with zero control."""
        self._tensors["ctrl"].zero_()
        for _ in range(steps):
            self._run_physics()

    def forward(self) -> None:
        """Computes everything that derives from the present state."""
        self._run_forward()

    def place(
        self, mask: Tensor, qpos: Tensor, qvel: Tensor, mocap_pos: Tensor | None, mocap_quat: Tensor | None
    ) -> None:
        """See Simulation.place."""
        super().place(mask, qpos, qvel, mocap_pos, mocap_quat)
        # Equality constraints read bodies' velocities, and the motion axes' rates, before a step computes them anew:
        # those of the former life, NaN included, would stay. The true ones would take a pass of kinematics.
        for rates in self._former:
            rates.masked_fill_(mask.view(-1, 1, 1), 0.0)

    def faults(self) -> Tensor:
        """How many worlds had more contacts or constraint rows than fit, and in how many each capacity was too small.

        Only the capacity bits count: the solver's iteration bits are set all the time and are no fault.
        """
        full = torch.stack([(self._overflow & int(bit)) != 0 for bit in _CAPACITY])
        self._overflow.zero_()
        return torch.cat([full.any(dim=0).sum().view(1), full.sum(dim=1)])

    def fault(self, faults: Tensor) -> str:
        """Says if contacts or constraint rows did not fit."""
        worlds, *each = faults.tolist()
        if not worlds:
            return ""
        settings = {name for name, count in zip(_CAPACITY.values(), each, strict=True) if count}
        return (
            f"{worlds} of {self.num_worlds} worlds had more contacts or constraints than fit; "
            f"raise the task's {' and '.join(sorted(settings))} "
            f"(now nconmax {self._data.naconmax // self.num_worlds}, njmax {self._data.njmax})"
        )

    def _derive(self, mask: Tensor) -> None:
        self._run_derive()

    def _everything(self) -> None:
        """Launches every kernel that there is, some of them more than once."""
        with self._blocks():
            mjw.forward(self._model, self._data)
            self._control_step()
            if self._parameters:
                mjw.set_const(self._model, self._data)

    def _control_step(self) -> None:
        # Sensors are read after the control step only; in every physics step they would be an eighth of its kernels.
        with self._without_sensors():
            for _ in range(self.physics_steps - 1):
                self._accelerate()
                _INTEGRATORS[self._model.opt.integrator](self._model, self._data)
            self._accelerate()
        self._data.sensordata.zero_()  # touch sensors add up
        mjw.sensor_acc(self._model, self._data)
        self._integrate()
        if self._whole_refresh:
            self._refresh_whole()
        else:
            self._refresh_kinematics()

    def _integrate(self) -> None:
        integrator = self._model.opt.integrator
        if integrator != mjw.IntegratorType.RK4:
            _INTEGRATORS[integrator](self._model, self._data)
            return
        # In C the further stages of Runge-Kutta leave sensors and cfrc_ext as they are; here they would zero them.
        saved = wp.clone(self._data.sensordata)
        with self._without_sensors():
            mjw.rungekutta4(self._model, self._data)
        wp.copy(self._data.sensordata, saved)

    @contextmanager
    def _without_sensors(self) -> Iterator[None]:
        before = self._model.opt.disableflags
        self._model.opt.disableflags = before | mjw.DisableBit.SENSOR
        try:
            yield
        finally:
            self._model.opt.disableflags = before

    def _refresh_kinematics(self) -> None:
        """The part of MuJoCo's position and velocity stage that fields and sensors show: no inertia, no contacts."""
        mjw.kinematics(self._model, self._data)
        mjw.com_pos(self._model, self._data)
        mjw.com_vel(self._model, self._data)
        mjw.sensor_pos(self._model, self._data)
        mjw.sensor_vel(self._model, self._data)

    def _refresh_whole(self) -> None:
        saved = wp.clone(self._data.sensordata)
        mjw.step1(self._model, self._data)
        if self._late is not None:
            arrays = [saved, self._late, self._data.sensordata]
            wp.launch(_copy_columns, dim=(self.num_worlds, self._late.size), inputs=arrays)

    def _kinematics_suffice(self) -> bool:
        model = self.model
        early = np.flatnonzero(model.sensor_needstage != _ACCELERATION)
        kinds = {mujoco.mjtSensor(int(kind)) for kind in model.sensor_type[early]}
        return kinds <= _KINEMATIC_SENSORS and not sees(model, early)

    def _late_columns(self) -> Any:
        model = self.model
        columns: list[int] = []
        for sensor in range(model.nsensor):
            if model.sensor_needstage[sensor] == _ACCELERATION:
                start = int(model.sensor_adr[sensor])
                columns += range(start, start + int(model.sensor_dim[sensor]))
        with self._on_stream():
            return wp.array(columns, dtype=int) if columns else None

    def _blocks(self) -> AbstractContextManager[None]:
        """Kernels are launched, and so compiled, in small blocks; on a CPU there are none."""
        return small_blocks() if self._stream_device.type == "cuda" else nullcontext()

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        """Warp works on torch's current stream, so that the two order themselves."""
        if self._stream_device.type == "cuda":
            with wp.ScopedStream(warp_stream(torch.cuda.current_stream(self._stream_device))):
                yield
        else:
            with wp.ScopedDevice("cpu"):
                yield


class _Replay:
    """A Warp function that runs eagerly once, which loads its kernels, and from then on as a captured graph."""

    def __init__(self, function: Callable[[], object], simulation: WarpSimulation) -> None:
        self._function, self._simulation = function, simulation
        self._graph: Any = None
        self._warm = False

    def __call__(self) -> None:
        with self._simulation._on_stream():
            if not self._warm:
                self._launch()
                self._warm = True
                return
            if self._graph is None:
                self._graph = self._capture()
            wp.capture_launch(self._graph)

    def _launch(self) -> None:
        with self._simulation._blocks():
            self._function()

    def _capture(self) -> Any:
        # An older graph that dies while this one is recorded would be recorded into it.
        gc.collect()
        gc.disable()
        try:
            with wp.ScopedCapture() as capture:
                self._launch()
        finally:
            gc.enable()
        return capture.graph


@wp.kernel
def _copy_columns(  # type: ignore[no-untyped-def]
    source: wp.array2d(dtype=float),  # type: ignore[valid-type]
    columns: wp.array(dtype=int),  # type: ignore[valid-type]
    target: wp.array2d(dtype=float),  # type: ignore[valid-type]
):
    world, i = wp.tid()  # type: ignore[misc]
    target[world, columns[i]] = source[world, columns[i]]  # type: ignore[index]
