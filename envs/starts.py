"""A supply of initial states, drawn ahead of the rollout so that a reset inside it is a masked copy.

Each start is computed once in a simulation of its own: placed, settled where the task asks for it, and observed. A
world that begins a new episode copies its state and takes the first observation from here, so no world pays for
another's reset: the physics need no second forward pass in every control step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from envs.draws import Draws
from envs.dry_run import Layout, concatenate
from envs.simulation import Simulation
from envs.task import State, Task


@dataclass
class Start:
    """Rows of a supply, one for each of N worlds."""

    qpos: Tensor
    qvel: Tensor
    mocap_pos: Tensor | None
    mocap_quat: Tensor | None
    state: State
    observation: Tensor
    critic_observation: Tensor  # without what a world's own parameters tell

    def named(self) -> dict[str, Tensor]:
        """Poses, state and observation by name, as an export keeps them; the tensors themselves."""
        named = {"qpos": self.qpos, "qvel": self.qvel, "observation": self.observation}
        if self.mocap_pos is not None and self.mocap_quat is not None:
            named.update(mocap_pos=self.mocap_pos, mocap_quat=self.mocap_quat)
        return {**named, **{f"state.{name}": value for name, value in self.state.items()}}


class Starts:
    """`size` initial states of a task with their first observations.

    Args:
        task: draws the states.
        layout: of the task.
        simulation: of `size` worlds, used for nothing else.
    """

    def __init__(self, task: Task, layout: Layout, simulation: Simulation) -> None:
        self.size = simulation.num_worlds
        self._task, self._layout, self.simulation = task, layout, simulation
        device = simulation.device
        self._state = {
            name: torch.zeros(self.size, *shape, dtype=dtype, device=device)
            for name, (shape, dtype) in layout.state.items()
        }
        self._observation = torch.zeros(self.size, layout.observation_size, device=device)
        self._critic = self._observation
        if layout.privileged:
            wider = layout.observation_size + sum(layout.privileged.values())
            self._critic = torch.zeros(self.size, wider, device=device)
        self._everyone = torch.ones(self.size, dtype=torch.bool, device=device)

    def fill(self, random: Draws, mask: Tensor | None = None) -> None:
        """Draws the starts in `mask` (size,) anew; by default all of them."""
        mask = self._everyone if mask is None else mask
        task, sim = self._task, self.simulation
        start = task.initial_state(sim, random)
        sim.reset(mask, start.qpos, start.qvel, start.mocap_pos, start.mocap_quat)
        if task.settle_steps:
            sim.settle(task.settle_steps)
            sim.forward()
        for name, target in self._state.items():
            keep = mask.view(-1, *(1,) * (target.ndim - 1))
            target.copy_(start.state[name].to(target.dtype).where(keep, target))
        observation = task.observe(sim, self._state)
        self._observation.copy_(concatenate(observation))
        if self._layout.privileged:
            self._critic.copy_(concatenate({**observation, **task.privileged(sim, self._state)}))

    def rows(self, index: Tensor | slice) -> Start:
        """The starts at `index`: (N,) as new tensors, a slice as views of what the next `fill` changes."""
        sim, mocap = self.simulation, self.simulation.model.nmocap > 0
        observation = self._observation[index]
        return Start(
            qpos=sim.qpos[index],
            qvel=sim.qvel[index],
            mocap_pos=sim.mocap_pos[index] if mocap else None,
            mocap_quat=sim.mocap_quat[index] if mocap else None,
            state={name: value[index] for name, value in self._state.items()},
            observation=observation,
            critic_observation=self._critic[index] if self._layout.privileged else observation,
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Everything a resumed run needs to hand out the same starts."""
        own = {"observation": self._observation, "critic_observation": self._critic}
        own.update({f"state.{name}": value for name, value in self._state.items()})
        own.update({f"simulation.{name}": value for name, value in self.simulation.state_dict().items()})
        return {name: value.clone() for name, value in own.items()}

    def load_state_dict(self, saved: Mapping[str, Tensor]) -> None:
        """Restores what `state_dict` gave."""
        self._observation.copy_(saved["observation"])
        self._critic.copy_(saved["critic_observation"])
        for name, value in self._state.items():
            value.copy_(saved[f"state.{name}"])
        prefix = "simulation."
        self.simulation.load_state_dict(
            {name.removeprefix(prefix): value for name, value in saved.items() if name.startswith(prefix)}
        )
