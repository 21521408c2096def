"""What has gone wrong in a task's worlds: what does not fit is counted on the device and judged once per rollout."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from envs.simulation import Simulation, SimulationError
from envs.task import Task


class Health:
    """Watches the simulations of an environment.

    Args:
        task: whose they are.
        num_worlds: of the environment.
        simulations: the environment's own, and any that work for it.

    Attributes:
        total_nonfinite: worlds that became non-finite, as far as they have been judged.
    """

    def __init__(self, task: Task, num_worlds: int, simulations: Sequence[Simulation]) -> None:
        self._task, self._num_worlds, self._simulations = task, num_worlds, simulations
        self._nonfinite = torch.zeros(num_worlds, dtype=torch.int64, device=simulations[0].device)  # times, of a world
        self.total_nonfinite = 0

    def count(self, lost: Tensor) -> None:
        """Takes the worlds (W,) bool that have become non-finite; safe to capture in a CUDA graph."""
        self._nonfinite.add_(lost)

    def faults(self) -> Tensor:
        """What has gone wrong since the last call, (n,) int64 on the device, to be given to `judge`."""
        faults = torch.cat([self._nonfinite.sum().view(1), *(simulation.faults() for simulation in self._simulations)])
        self._nonfinite.zero_()
        return faults

    def judge(self, faults: Tensor) -> str:
        """One line about what was wrong and can be lived with, empty if nothing was.

        Contacts that did not fit are left out of a physics step of that world; worlds that became non-finite begin
        anew.

        Raises:
            SimulationError: it happened in more than one world and in more than 1 % of them.
        """
        few, lost, fault = max(1.0, 0.01 * self._num_worlds), int(faults[0]), ""
        parts = faults[1:].chunk(len(self._simulations))
        for simulation, part in zip(self._simulations, parts, strict=True):
            line = simulation.fault(part)
            fault = f"{self._task.name}: {line}" if line else fault
            if int(part[0]) > few:
                raise SimulationError(fault)
        self.total_nonfinite += lost
        if lost > few:
            raise SimulationError(
                f"{self._task.name}: {lost} of {self._num_worlds} worlds became non-finite in one rollout; "
                f"shorten the task's timing.physics (now {self._task.timing.physics} s) or raise its solver iterations"
            )
        return fault
