"""The environment step on top of batched physics: action, physics, reward, limits, masked reset, observation.

One control step is three functions, each of which writes fixed buffers and can be captured by itself:
`apply(action)`, `physics()`, `finish()`. A world whose episode ends starts the next one in the same step; the
observation it ended with is kept as the terminal observation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import mujoco
import torch
from torch import Tensor

from envs.draws import BatchDraws, Draws
from envs.dry_run import Layout, concatenate, dry_run
from envs.native_simulation import NativeSimulation
from envs.practice import Practice
from envs.randomisation import Noise, Randomisation
from envs.simulation import Simulation, SimulationError
from envs.starts import Start, Starts
from envs.task import Task
from gorl_robotics.errors import InputError

# Starts drawn ahead where they must settle first, which is too dear to do in every rollout.
SETTLED_STARTS = 16384
SETTLED_STARTS_PER_WORLD = 16  # what a few worlds on a CPU need not wait for


@dataclass(frozen=True)
class Step:
    """Fixed buffers that every control step writes anew; W worlds, monitor worlds last."""

    observation: Tensor  # (W, observation_size), of the next episode where one has ended
    critic_observation: Tensor  # (W, critic_observation_size)
    terminal_observation: Tensor  # (W, observation_size), what the step led to, before any reset
    terminal_critic_observation: Tensor
    reward: Tensor  # (W,)
    terminated: Tensor  # (W,) bool: the episode ended for good
    truncated: Tensor  # (W,) bool: the time limit was reached, or the episode was cut short for practice


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


class VectorEnv:
    """Worlds of one task, stepped together.

    Args:
        task: the robot and what it shall do.
        num_envs: worlds that are learnt from.
        device: a torch device; decides the physics engine.
        seed: of every random number drawn here.
        monitors: further worlds, behind the others, that the learner only watches.
        practice: probability per step of cutting short a world that is learnt from and does well; see `Practice`.
        threads: CPU threads for `mujoco.batch`; 0 takes every core.
        noise: whether the policy sees the task's observation noise; an evaluation goes without.
    """

    def __init__(
        self,
        task: Task,
        num_envs: int,
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
        monitors: int = 0,
        practice: float = 0.0,
        threads: int = 0,
        noise: bool = True,
    ) -> None:
        if num_envs < 1:
            raise InputError(f"num_envs must be at least 1, got {num_envs}")
        self.task, self.num_envs, self.num_worlds = task, num_envs, num_envs + monitors
        self.device = torch.device(device)
        self.model = task.compile()
        self.layout: Layout = dry_run(task, self.model)
        fields, own = self.layout.fields, task.randomised
        self.sim = make_simulation(task, self.model, self.num_worlds, fields, self.device, threads, own)
        self.randomisation = Randomisation(task, self.layout.told, self.sim) if own else None
        self._noise = Noise(task, self.layout.observation, self.device) if noise and any(task.noise.values()) else None
        supply = self._supply_size()
        self.starts = Starts(
            task,
            self.layout,
            make_simulation(task, self.model, supply, fields, self.device, threads),
        )
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.practice = Practice(num_envs, practice, self.device)
        self._start_draws: Draws = BatchDraws(supply, self.generator, self.sim.dtype)
        self._draws: Draws = BatchDraws(self.num_worlds, self.generator, self.sim.dtype)
        self._allocate()
        self.draw_starts()
        self.restart()

    @property
    def observation_size(self) -> int:
        """Width of the observation."""
        return self.layout.observation_size

    @property
    def critic_observation_size(self) -> int:
        """Width of what the critic sees."""
        return self.layout.critic_observation_size

    @property
    def action_size(self) -> int:
        """Number of actuators; actions lie in [-1, 1]."""
        return int(self.model.nu)

    @property
    def episode_length(self) -> int:
        """Control steps until truncation."""
        return self.task.episode_length

    @property
    def observation(self) -> Tensor:
        """What the policy acts on next, (W, observation_size)."""
        return self.buffers.observation

    def draw_starts(self) -> None:
        """Draws every start anew, settled where the task asks for it; at the beginning of a stage."""
        self.starts.fill(self._start_draws)
        self._cursor.zero_()

    def refresh_starts(self) -> None:
        """Draws new starts where that is cheap, and parameters of worlds that began an episode; before each rollout."""
        if not self.task.settle_steps:
            self.draw_starts()
        self._randomise()

    def initial_states(self) -> dict[str, Tensor]:
        """The initial states that `restart` begins from, by name, world i's in row i; copies."""
        start = self.starts.rows(torch.arange(self.num_worlds, device=self.device))
        named = {"qpos": start.qpos, "qvel": start.qvel, "observation": start.observation}
        if start.mocap_pos is not None and start.mocap_quat is not None:
            named.update(mocap_pos=start.mocap_pos, mocap_quat=start.mocap_quat)
        return {**named, **{f"state.{name}": value for name, value in start.state.items()}}

    def restart(self, random_phase: bool = True) -> None:
        """Starts every world anew from the first rows of the supply.

        With `random_phase` a world is somewhere in its episode already as far as the time limit goes, so that the
        worlds do not reach it together. Such a first episode counts in no statistics.
        """
        index = torch.arange(self.num_worlds, device=self.device)
        everyone = torch.ones(self.num_worlds, dtype=torch.bool, device=self.device)
        self._begin(everyone, self.starts.rows(index))
        self._randomise()
        self._cursor.fill_(self.num_worlds)
        self.episode_step.zero_()
        if random_phase:
            self.episode_step.copy_(
                torch.randint(
                    0,
                    self.task.episode_length,
                    (self.num_worlds,),
                    generator=self.generator,
                    device=self.device,
                )
            )
        self._whole_episode.copy_(self.episode_step == 0)
        self.episode_return.zero_()
        self.last_return.fill_(float("nan"))

    def apply(self, action: Tensor) -> None:
        """Writes the controls for actions (W, nu) in [-1, 1], which are clipped to it."""
        self._action.copy_(action.clamp(-1.0, 1.0))
        self.sim.ctrl.copy_(self._offset + self._scale * self._action)

    def physics(self) -> None:
        """Advances the simulation by one control step."""
        self.sim.step()

    def finish(self) -> Step:
        """Pays, observes and counts the step, and starts the next episode where one has ended."""
        sim, task, step = self.sim, self.task, self.buffers
        finite = sim.qpos.isfinite().all(dim=1) & sim.qvel.isfinite().all(dim=1)
        self._nonfinite.add_((~finite).sum())
        self.episode_step.add_(1)

        action = self._action.to(sim.dtype)
        step.reward.copy_(task.reward(sim, self.state, action).where(finite, 0.0))
        step.terminated.copy_(task.terminated(sim, self.state) | ~finite)
        over = self.episode_step >= task.episode_length
        step.truncated.copy_(over)
        if self.practice.rate:
            learners = slice(self.num_envs)
            step.truncated[learners].logical_or_(self.practice.cut(step.reward[learners], self.generator))

        state = task.update(sim, self.state, self._draws)
        terms = task.observe(sim, state)
        keep = finite.unsqueeze(1)
        seen = self._seen(concatenate(terms), self._draws)
        step.terminal_observation.copy_(seen.where(keep, step.observation))
        critic = self._with_told(concatenate({**terms, **task.privileged(sim, state)}))
        step.terminal_critic_observation.copy_(critic.where(keep, step.critic_observation))
        step.observation.copy_(step.terminal_observation)
        step.critic_observation.copy_(step.terminal_critic_observation)
        for name, value in self.state.items():
            value.copy_(state[name])

        done = step.terminated | step.truncated
        self._count_return(done, whole=step.terminated | over)
        if self.practice.rate:
            self.practice.begin(done[: self.num_envs])
        self._begin_next(done)
        return step

    def step(self, action: Tensor) -> Step:
        """One control step: `apply`, `physics`, `finish`."""
        self.apply(action)
        self.physics()
        return self.finish()

    def check(self) -> None:
        """Raises SimulationError if a buffer overflowed, or over 1 % of the worlds went non-finite, since the last."""
        try:
            for simulation in (self.sim, self.starts.simulation):
                simulation.check()
        except SimulationError as error:
            raise SimulationError(f"{self.task.name}: {error}") from error
        lost = int(self._nonfinite)
        self._nonfinite.zero_()
        self.total_nonfinite += lost
        if lost > max(1.0, 0.01 * self.num_worlds):
            raise SimulationError(
                f"{self.task.name}: {lost} of {self.num_worlds} worlds became non-finite in one rollout; "
                f"shorten the task's timing.physics (now {self.task.timing.physics} s) or raise its solver iterations"
            )

    def state_dict(self) -> dict[str, Tensor]:
        """Everything a resumed run needs to go on exactly where this one is, random numbers included."""
        saved = {f"own.{name}": value.clone() for name, value in self._own().items()}
        saved.update({f"simulation.{name}": value for name, value in self.sim.state_dict().items()})
        saved.update({f"starts.{name}": value for name, value in self.starts.state_dict().items()})
        saved["generator"] = self.generator.get_state()
        return saved

    def load_state_dict(self, saved: Mapping[str, Tensor]) -> None:
        """Restores what `state_dict` gave for the same task and number of worlds."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): value for name, value in saved.items() if name.startswith(prefix)}

        for name, value in part("own.").items():
            self._own()[name].copy_(value)
        self.sim.load_state_dict(part("simulation."))
        self.starts.load_state_dict(part("starts."))
        self.generator.set_state(saved["generator"].cpu())

    def _allocate(self) -> None:
        worlds, device = self.num_worlds, self.device

        def zeros(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(worlds, *size, dtype=dtype, device=device)

        wide, wider = self.observation_size, self.critic_observation_size
        self.buffers = Step(
            zeros(wide),
            zeros(wider),
            zeros(wide),
            zeros(wider),
            zeros(),
            zeros(dtype=torch.bool),
            zeros(dtype=torch.bool),
        )
        self.state = {name: zeros(*shape, dtype=dtype) for name, (shape, dtype) in self.layout.state.items()}
        self.episode_step = zeros(dtype=torch.int64)
        self.episode_return = zeros()
        self.last_return = zeros()  # of each world's last whole episode; NaN before the first
        self._whole_episode = zeros(dtype=torch.bool)
        self._action = zeros(self.action_size)
        self._cursor = torch.zeros((), dtype=torch.int64, device=device)
        self._nonfinite = torch.zeros((), dtype=torch.int64, device=device)
        self.total_nonfinite = 0
        low, high = action_range(self.model)
        self._offset = self.sim.tensor(((low + high) / 2).numpy())
        self._scale = self.sim.tensor(((high - low) / 2).numpy())

    def _supply_size(self) -> int:
        if not self.task.settle_steps:
            return self.num_worlds
        return max(self.num_worlds, min(SETTLED_STARTS, SETTLED_STARTS_PER_WORLD * self.num_worlds))

    def _begin_next(self, done: Tensor) -> None:
        """Starts the next episode of the worlds in `done` (W,)."""
        self._begin(done, self.starts.rows(self._next_rows(done)))

    def _next_rows(self, done: Tensor) -> Tensor:
        """The supply's rows for the worlds in `done` (W,), each the next unused one; around again if it runs out."""
        order = done.cumsum(0)
        rows = (self._cursor + order - 1).clamp(min=0) % self.starts.size
        self._cursor.add_(order[-1])
        return rows

    def _begin(self, mask: Tensor, start: Start) -> None:
        column = mask.unsqueeze(1)
        self.sim.place(mask, start.qpos, start.qvel, start.mocap_pos, start.mocap_quat)
        for name, value in self.state.items():
            value.copy_(start.state[name].where(mask.view(-1, *(1,) * (value.ndim - 1)), value))
        step = self.buffers
        seen = self._seen(start.observation, self._draws_of(mask))
        step.observation.copy_(seen.where(column, step.observation))
        critic = self._with_told(start.critic_observation)
        step.critic_observation.copy_(critic.where(column, step.critic_observation))
        if self.randomisation is not None:
            self.randomisation.due.logical_or_(mask)

    def _draws_of(self, mask: Tensor) -> Draws:
        """What the worlds in `mask` (W,) draw from; the others' rows may be anything."""
        return self._draws

    def _seen(self, observation: Tensor, random: Draws) -> Tensor:
        """What the policy sees of `observation` (W, observation_size)."""
        return observation if self._noise is None else self._noise(observation, random)

    def _with_told(self, critic: Tensor) -> Tensor:
        return critic if self.randomisation is None else torch.cat([critic, self.randomisation.told], dim=1)

    def _randomise(self) -> None:
        if self.randomisation is not None:
            self.randomisation.apply(self._draws_of(self.randomisation.due))
            told = self.randomisation.told
            self.buffers.critic_observation[:, self.critic_observation_size - told.shape[1] :] = told

    def _count_return(self, done: Tensor, whole: Tensor) -> None:
        self.episode_return.add_(self.buffers.reward)
        self.last_return.copy_(self.episode_return.where(whole & self._whole_episode, self.last_return))
        self.episode_return.masked_fill_(done, 0.0)
        self.episode_step.masked_fill_(done, 0)
        self._whole_episode.logical_or_(done)

    def _own(self) -> dict[str, Tensor]:
        named = {
            "observation": self.buffers.observation,
            "critic_observation": self.buffers.critic_observation,
            "episode_step": self.episode_step,
            "episode_return": self.episode_return,
            "last_return": self.last_return,
            "whole_episode": self._whole_episode,
            "cursor": self._cursor,
            "recent_reward": self.practice.recent,
        }
        named.update({f"state.{name}": value for name, value in self.state.items()})
        if self.randomisation is not None:
            named.update(told=self.randomisation.told, due=self.randomisation.due)
        return named


def action_range(model: mujoco.MjModel) -> tuple[Tensor, Tensor]:
    """Controls at action -1 and +1, each (nu,): the control range, or -1 and 1 where an actuator has none."""
    limited = torch.as_tensor(model.actuator_ctrllimited.astype(bool))
    bounds = torch.as_tensor(model.actuator_ctrlrange)
    return bounds[:, 0].where(limited, -1.0), bounds[:, 1].where(limited, 1.0)
