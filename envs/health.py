"""What has gone wrong in a task's worlds: what does not fit is counted on the device and judged once per rollout."""

from __future__ import annotations

from collections.abc import Sequence

import mujoco
import torch
from torch import Tensor

from envs.runaway import fastest
from envs.simulation import Simulation, SimulationError
from envs.task import Task


class Health:
    """Watches the simulations of an environment.

    Args:
        task: whose they are.
        model: the task's.
        num_worlds: of the environment.
        simulations: the environment's own, and any that work for it.

    Attributes:
        total_nonfinite: times that a world became non-finite, as far as they have been judged.
        total_lost: these, and times that one moved faster than a physics step can follow; see `envs.runaway`.
    """

    def __init__(self, task: Task, model: mujoco.MjModel, num_worlds: int, simulations: Sequence[Simulation]) -> None:
        self._task, self._num_worlds, self._simulations = task, num_worlds, simulations
        device = simulations[0].device
        self._fastest = fastest(model).to(device, simulations[0].dtype)
        self._times = torch.zeros(2, num_worlds, dtype=torch.int64, device=device)  # of `look`
        self.total_nonfinite = self.total_lost = 0

    def look(self) -> Tensor:
        """The environment's worlds (W,) bool that must begin anew now; safe to capture in a CUDA graph."""
        sim = self._simulations[0]
        return look(sim.qpos, sim.qvel, self._fastest, self._times)

    def faults(self) -> Tensor:
        """What has gone wrong since the last call, (n,) int64 on the device, to be given to `judge`."""
        worlds = (self._times[:1] > 0).sum(dim=1)  # different ones: one that goes on diverging is still one
        theirs = (simulation.faults() for simulation in self._simulations)
        faults = torch.cat([worlds, self._times.sum(dim=1), *theirs])
        self._times.zero_()
        return faults

    def judge(self, faults: Tensor) -> str:
        """One line about what was wrong and can be lived with, empty if nothing was.

        Contacts that did not fit are left out of a physics step of that world; worlds that became non-finite or ran
        away begin anew. However many ran away is not wrong: a policy that thrashes may do it to a robot.

        Raises:
            SimulationError: it happened in more than one world and in more than 1 % of them.
        """
        few, nonfinite, fault = max(1.0, 0.01 * self._num_worlds), int(faults[0]), ""
        self.total_nonfinite += int(faults[1])
        self.total_lost += int(faults[2])
        parts = faults[3:].chunk(len(self._simulations))
        for simulation, part in zip(self._simulations, parts, strict=True):
            line = simulation.fault(part)
            fault = f"{self._task.name}: {line}" if line else fault
            if int(part[0]) > few:
                raise SimulationError(fault)
        if nonfinite > few:
            raise SimulationError(
                f"{self._task.name}: {nonfinite} of {self._num_worlds} worlds became non-finite in one rollout; "
                f"shorten the task's timing.physics (now {self._task.timing.physics} s) or raise its solver iterations"
            )
        return fault


def look(qpos: Tensor, qvel: Tensor, fastest: Tensor, times: Tensor) -> Tensor:
    """The worlds (W,) bool that are no longer finite, or that run away.

    Args:
        qpos: (W, nq).
        qvel: (W, nv).
        fastest: what counts as running away, (nv,); see `envs.runaway`.
        times: counts how often each was not finite, and how often it was either, (2, W) int64, in place.
    """
    if qpos.is_cuda:
        from envs.health_kernel import look as by_kernel

        return by_kernel(qpos, qvel, fastest, times)
    total = torch.cat([qpos, qvel], dim=1).sum(dim=1)
    nonfinite = total - total != 0  # NaN where one is not finite
    lost = nonfinite | (qvel.abs() > fastest).any(dim=1)
    times[0].add_(nonfinite)
    times[1].add_(lost)
    return lost


def look_once(num_worlds: int, nq: int, nv: int, device: torch.device) -> None:
    """Looks at worlds that nobody else has: all that it takes is compiled then."""
    qpos, qvel = (torch.zeros(num_worlds, size, device=device) for size in (nq, nv))
    look(qpos, qvel, qvel[0], torch.zeros(2, num_worlds, dtype=torch.int64, device=device))
