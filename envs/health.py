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
        total_nonfinite: times that a world became non-finite, as far as they have been judged.
        total_lost: these, and times that one moved faster than a physics step can follow; see `envs.runaway`.
    """

    def __init__(self, task: Task, num_worlds: int, simulations: Sequence[Simulation]) -> None:
        self._task, self._num_worlds, self._simulations = task, num_worlds, simulations
        self._times = torch.zeros(2, num_worlds, dtype=torch.int64, device=simulations[0].device)  # of `count`
        self.total_nonfinite = self.total_lost = 0

    def count(self, nonfinite: Tensor, lost: Tensor) -> None:
        """Takes the worlds that have become so, (W,) bool, and all that begin anew; safe to capture in a CUDA graph."""
        self._times[0].add_(nonfinite)
        self._times[1].add_(lost)

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
        parts = faults[3:].chunk(len(self._simulations))
        for simulation, part in zip(self._simulations, parts, strict=True):
            line = simulation.fault(part)
            fault = f"{self._task.name}: {line}" if line else fault
            if int(part[0]) > few:
                raise SimulationError(fault)
        self.total_nonfinite += int(faults[1])
        self.total_lost += int(faults[2])
        if nonfinite > few:
            raise SimulationError(
                f"{self._task.name}: {nonfinite} of {self._num_worlds} worlds became non-finite in one rollout; "
                f"shorten the task's timing.physics (now {self._task.timing.physics} s) or raise its solver iterations"
            )
        return fault
