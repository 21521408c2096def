"""MuJoCo's forward dynamics on the GPU with what does not depend on each other side by side.

A few thousand worlds do not fill a GPU: a physics step takes as long as its longest chain of kernels. `mjw.forward`
makes one chain of all of them. Here collisions, the inertia matrix, velocities' forces and actuators are branches of
their own, which are joined where the accelerations, and then the constraints, need them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mujoco
import mujoco_warp as mjw
import warp as wp

_BRANCHES = ("contacts", "inertia", "actuators")


class Forward:
    """The work of `mjw.forward`, sensors left out, in its own order as far as anything depends on it.

    Args:
        model: the compiled model.
        warp_model: Warp's.
        data: its state.
    """

    def __init__(self, model: mujoco.MjModel, warp_model: Any, data: Any) -> None:
        self._model, self._data = warp_model, data
        self._apart = _comes_apart(model, warp_model)
        # Tendons' velocities, and drag, which needs bodies' velocities, stay where `mjw.fwd_velocity` has them.
        self._actuators_apart = not model.ntendon and not warp_model.has_fluid
        device = data.qpos.device
        self._streams = {}
        if device.is_cuda:
            priority = device.stream.priority  # the graph's kernels keep it
            self._streams = {name: wp.Stream(device, priority) for name in _BRANCHES}

    def __call__(self) -> None:
        """Computes accelerations and all that they derive from."""
        model, data = self._model, self._data
        if not self._apart:
            mjw.forward(model, data)
            return
        mjw.kinematics(model, data)
        with self._branch("contacts"):
            mjw.collision(model, data)
        mjw.com_pos(model, data)
        mjw.camlight(model, data)
        mjw.tendon(model, data)
        with self._branch("inertia"):
            mjw.crb(model, data)
        with self._branch("contacts"):
            mjw.make_constraint(model, data)
        self._velocities()
        self._join("inertia")
        mjw.fwd_acceleration(model, data, factorize=True)
        self._join("contacts")
        mjw.solve(model, data)
        if model.opt.run_rne_postconstraint:
            mjw.rne_postconstraint(model, data)

    def _velocities(self) -> None:
        """Passive forces, those of velocities and of actuators."""
        model, data = self._model, self._data
        if not self._actuators_apart:
            mjw.transmission(model, data)
            mjw.fwd_velocity(model, data)
            mjw.fwd_actuation(model, data)
            return
        with self._branch("actuators"):
            mjw.transmission(model, data)
            moment = [data.moment_rownnz, data.moment_rowadr, data.moment_colind, data.actuator_moment]
            velocity = data.actuator_velocity
            wp.launch(_actuator_velocity, dim=velocity.shape, inputs=[data.qvel, *moment], outputs=[velocity])
            mjw.passive(model, data)
            mjw.fwd_actuation(model, data)
        mjw.com_vel(model, data)
        mjw.rne(model, data)
        self._join("actuators")

    @contextmanager
    def _branch(self, name: str) -> Iterator[None]:
        """Work that begins when what was launched before it, here and in that branch, is done."""
        if name not in self._streams:
            yield
            return
        with wp.ScopedStream(self._streams[name], sync_enter=True):
            yield

    def _join(self, name: str) -> None:
        """What is launched from here on waits for the branch."""
        if name in self._streams:
            stream = self._streams[name]
            stream.device.stream.wait_stream(stream)


def _comes_apart(model: mujoco.MjModel, warp_model: Any) -> bool:
    """Whether nothing in the model makes one branch read what another writes.

    Equality constraints read velocities, adhesion and bodies as transmissions read contacts, soft bodies read most of
    everything; tendons' armature belongs to inertia; callbacks may read all.
    """
    callbacks = vars(warp_model.callback).values()
    return not (
        model.neq
        or model.nflex
        or model.tendon_armature.any()
        or mujoco.mjtTrn.mjTRN_BODY in model.actuator_trntype
        or warp_model.flg_adhesion
        or warp_model.opt.integrator == mjw.IntegratorType.DISCRETE
        or warp_model.opt.enableflags
        or any(callbacks)
    )


@wp.kernel
def _actuator_velocity(  # type: ignore[no-untyped-def]
    qvel: wp.array2d(dtype=float),  # type: ignore[valid-type]
    row_size: wp.array2d(dtype=int),  # type: ignore[valid-type]
    row_start: wp.array2d(dtype=int),  # type: ignore[valid-type]
    column: wp.array2d(dtype=int),  # type: ignore[valid-type]
    moment: wp.array2d(dtype=float),  # type: ignore[valid-type]
    velocity: wp.array2d(dtype=float),  # type: ignore[valid-type]
):
    world, actuator = wp.tid()  # type: ignore[misc]
    start = row_start[world, actuator]  # type: ignore[index]
    total = float(0.0)  # noqa: UP018, Warp takes a bare literal for a constant
    for i in range(row_size[world, actuator]):  # type: ignore[index]
        total += moment[world, start + i] * qvel[world, column[world, start + i]]  # type: ignore[index]
    velocity[world, actuator] = total  # type: ignore[index]
