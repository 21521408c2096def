"""Which engine steps the worlds of a task."""

from __future__ import annotations

import gc

import mujoco
import torch

from envs.native_simulation import NativeSimulation
from envs.simulation import Simulation
from envs.task import Task


def load_engine(device: torch.device) -> None:
    """Imports what makes a device's simulations; it stays, so that no collection, now or later, looks through it."""
    if device.type == "cuda":
        gc.disable()
        from envs import warp_simulation  # noqa: F401 - seconds, which a CPU need not wait for

        gc.freeze()
        gc.enable()


def make_simulation(
    task: Task,
    model: mujoco.MjModel,
    num_worlds: int,
    fields: tuple[str, ...],
    device: torch.device,
    threads: int = 0,
    randomised: tuple[str, ...] = (),
) -> Simulation:
    """The engine for a device: MuJoCo Warp on CUDA, `mujoco.batch` on the CPU."""
    steps = task.timing.physics_steps
    if device.type == "cuda":
        from envs.warp_simulation import WarpSimulation

        return WarpSimulation(model, num_worlds, fields, steps, device, task.nconmax, task.njmax, randomised)
    return NativeSimulation(model, num_worlds, fields, steps, threads, randomised)
