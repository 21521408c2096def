"""The environment step on top of batched physics: action, physics, reward, limits, masked reset, observation.

One control step is three functions, each of which writes fixed buffers and can be captured by itself:
`apply(action)`, `physics()`, `finish()`. A world whose episode ends starts the next one in the same step; the
observation it ended with is kept as the terminal observation.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from envs.aside import Aside
from envs.controls import action_range
from envs.draws import BatchDraws, Draws
from envs.dry_run import Layout, concatenate, dry_run
from envs.endings import Endings
from envs.engine import make_simulation
from envs.health import Health
from envs.randomisation import Noise, Randomisation
from envs.simulation import SimulationError
from envs.starts import Start, Starts
from envs.step import Step
from envs.task import State, Task
from gorl_robotics.errors import InputError

# Starts drawn ahead where they must settle first, which is too dear to do in every rollout.
SETTLED_STARTS = 16384
SETTLED_STARTS_PER_WORLD = 16  # what a few worlds on a CPU need not wait for


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
        self._starts = Starts(
            task, self.layout, make_simulation(task, self.model, supply, fields, self.device, threads)
        )
        self._aside = Aside(self.device)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.endings = Endings(num_envs, self.num_worlds, task.episode_length, practice, self.device)
        self._start_draws: Draws = BatchDraws(supply, self.generator, self.sim.dtype)
        self._draws: Draws = BatchDraws(self.num_worlds, self.generator, self.sim.dtype)
        self._allocate()
        self.draw_starts()
        self.restart()

    @property
    def starts(self) -> Starts:
        """The supply of initial states; what is launched from now on waits for their draw."""
        self._aside.join()
        return self._starts

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
    def episode_step(self) -> Tensor:
        """Control steps since each world's episode began, (W,)."""
        return self.endings.episodes.step

    @property
    def last_return(self) -> Tensor:
        """Of each world's last whole episode, (W,); NaN before the first."""
        return self.endings.episodes.last_return

    @property
    def observation(self) -> Tensor:
        """What the policy acts on next, (W, observation_size)."""
        return self.buffers.observation

    def draw_starts(self) -> None:
        """Draws every start anew, settled where the task asks for it; at construction and before each evaluation.

        Before each rollout too, by `refresh_starts`, unless they must settle: those that training uses are drawn once.
        """
        self.starts.fill(self._start_draws)
        self._cursor.zero_()

    def refresh_starts(self) -> None:
        """Draws new starts where that is cheap, and parameters of worlds that began an episode; before each rollout.

        On a GPU starts are drawn beside the first control step: no world takes one before that has ended.
        """
        if not self.task.settle_steps:
            with self._aside.beside():
                self.draw_starts()
        self._randomise()

    def initial_states(self) -> dict[str, Tensor]:
        """The initial states that `restart` begins from, by name, world i's in row i; copies."""
        return self.starts.rows(torch.arange(self.num_worlds, device=self.device)).named()

    def restart(self, random_phase: bool = True) -> None:
        """Starts every world anew from the first rows of the supply.

        With `random_phase` a world is somewhere in its episode already as far as the time limit goes, so that the
        worlds do not reach it together. Such a first episode counts in no statistics.
        """
        index = torch.arange(self.num_worlds, device=self.device)
        everyone = torch.ones(self.num_worlds, dtype=torch.bool, device=self.device)
        self._begin(everyone, self.starts.rows(index), self.buffers.observation, self.buffers.critic_observation)
        self._randomise()
        self._cursor.fill_(self.num_worlds)
        self.endings.episodes.restart(self.generator if random_phase else None)

    def apply(self, action: Tensor) -> None:
        """Writes the controls for actions (W, nu) in [-1, 1], which are clipped to it."""
        torch.clamp(action.to(self._action.dtype), -1.0, 1.0, out=self._action)
        torch.addcmul(self._offset, self._scale, self._action.to(self.sim.dtype), out=self.sim.ctrl)

    def physics(self) -> None:
        """Advances the simulation by one control step."""
        self.sim.step()
        self._aside.join()  # here, since `finish`, which takes starts, may be a captured graph

    def finish(self) -> Step:
        """Pays, observes and counts the step, and starts the next episode where one has ended."""
        sim, task, step = self.sim, self.task, self.buffers
        lost = self.health.look()
        reward = task.reward(sim, self.state, self._action.to(sim.dtype))
        done = self.endings.close(step, reward, task.terminated(sim, self.state), lost, self.generator)

        state = task.update(sim, dict(self.state), self._draws)  # which it may write into
        terms = task.observe(sim, state)
        column = lost.unsqueeze(1)
        observation, privileged = concatenate(terms), task.privileged(sim, state)
        seen = self._seen(observation, self._draws)
        torch.where(column, step.observation, seen, out=step.terminal_observation)
        if not self._critic_sees_the_same:
            critic = self._with_told(
                torch.cat([observation, concatenate(privileged)], dim=1) if privileged else observation
            )
            torch.where(column, step.critic_observation, critic, out=step.terminal_critic_observation)
        self._remember(state)
        self._begin_next(done)
        return step

    def step(self, action: Tensor) -> Step:
        """One control step: `apply`, `physics`, `finish`."""
        self.apply(action)
        self.physics()
        return self.finish()

    def check(self) -> None:
        """Raises SimulationError if any buffer overflowed, or too many worlds went non-finite, since the last."""
        fault = self.judge(self.faults())
        if fault:
            raise SimulationError(fault)

    def faults(self) -> Tensor:
        """What has gone wrong since the last call, (n,) int64 on the device; see `Health`."""
        return self.health.faults()

    def judge(self, faults: Tensor) -> str:
        """One line about what was wrong and can be lived with; raises SimulationError if it was more; see `Health`."""
        return self.health.judge(faults)

    def account(self) -> str:
        """What has gone wrong since the last, in one line, empty if nothing has; raises nothing. The host waits."""
        before, fault = self.lost, ""
        try:
            fault = self.judge(self.faults())
        except SimulationError as error:
            fault = str(error)
        times = f"physics diverged, times: {self.lost - before}" if self.lost > before else ""
        return "; ".join(line for line in (times, fault) if line)

    @property
    def lost(self) -> int:
        """Times that a world's physics diverged and it had to begin anew, as far as `judge` has been told."""
        return self.health.total_lost

    def state_dict(self) -> dict[str, Tensor]:
        """Everything a resumed run needs to go on exactly where this one is, random numbers included."""
        saved = {f"own.{name}": value.clone() for name, value in self._own().items()}
        saved.update({f"simulation.{name}": value for name, value in self.sim.state_dict().items()})
        saved.update({f"starts.{name}": value for name, value in self.starts.state_dict().items()})
        saved["generator"] = self.generator.get_state()
        saved["lost"] = torch.tensor([self.health.total_nonfinite, self.health.total_lost])
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
        if "lost" in saved:  # formerly a resumed run counted from 0 again
            self.health.total_nonfinite, self.health.total_lost = saved["lost"].tolist()

    def _allocate(self) -> None:
        worlds, device = self.num_worlds, self.device
        self._critic_sees_the_same = not self.layout.privileged and self.randomisation is None and self._noise is None
        self.buffers = Step.empty(
            worlds, self.observation_size, self.critic_observation_size, device, self._critic_sees_the_same
        )
        self.state = {
            name: torch.zeros(worlds, *shape, dtype=dtype, device=device)
            for name, (shape, dtype) in self.layout.state.items()
        }
        self._action = torch.zeros(worlds, self.action_size, device=device)
        self._cursor = torch.zeros((), dtype=torch.int64, device=device)
        self.health = Health(self.task, self.model, worlds, (self.sim, self.starts.simulation))
        low, high = action_range(self.model)
        self._offset = self.sim.tensor(((low + high) / 2).numpy())
        self._scale = self.sim.tensor(((high - low) / 2).numpy())

    def _supply_size(self) -> int:
        if not self.task.settle_steps:
            return self.num_worlds
        return max(self.num_worlds, min(SETTLED_STARTS, SETTLED_STARTS_PER_WORLD * self.num_worlds))

    def _remember(self, state: State) -> None:
        """Writes what `Task.update` gave, all of it read before: an entry may be (a view of) another's old value."""
        own = {value.untyped_storage().data_ptr() for value in self.state.values()}
        pairs = [(value, state[name]) for name, value in self.state.items() if state[name] is not value]
        read = [new.clone() if new.untyped_storage().data_ptr() in own else new for _, new in pairs]
        for (value, _), new in zip(pairs, read, strict=True):
            value.copy_(new)

    def _begin_next(self, done: Tensor) -> None:
        """Starts the next episode of the worlds in `done` (W,); the others go on from what their step led to."""
        step, rows = self.buffers, self._next_rows(done)
        self._begin(done, self.starts.rows(rows), step.terminal_observation, step.terminal_critic_observation)

    def _next_rows(self, done: Tensor) -> Tensor | slice:
        """The supply's rows for the worlds in `done` (W,), each the next unused one; around again if it runs out.

        Where the supply is drawn anew before each rollout, and so has a row for each world, world i takes row i.
        """
        if not self.task.settle_steps:
            return slice(None)
        order = done.cumsum(0)
        rows = (self._cursor + order - 1) % self.starts.size  # those of other worlds are not used
        self._cursor.add_(order[-1])
        return rows

    def _begin(self, mask: Tensor, start: Start, observation: Tensor, critic_observation: Tensor) -> None:
        """Begins an episode in the worlds of `mask` (W,) from the rows of `start`.

        Args:
            mask: worlds.
            start: a row for every world.
            observation: what the others see, (W, observation_size).
            critic_observation: what their critic sees.
        """
        column = mask.unsqueeze(1)
        self.sim.place(mask, start.qpos, start.qvel, start.mocap_pos, start.mocap_quat)
        for name, value in self.state.items():
            torch.where(mask.view(-1, *(1,) * (value.ndim - 1)), start.state[name], value, out=value)
        step = self.buffers
        seen = self._seen(start.observation, self._draws_of(mask))
        torch.where(column, seen, observation, out=step.observation)
        if not self._critic_sees_the_same:
            critic = self._with_told(start.critic_observation)
            torch.where(column, critic, critic_observation, out=step.critic_observation)
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

    def _own(self) -> dict[str, Tensor]:
        named = {
            "observation": self.buffers.observation,
            "critic_observation": self.buffers.critic_observation,
            **self.endings.episodes.named(),
            "cursor": self._cursor,
            "recent_reward": self.endings.practice.recent,
        }
        named.update({f"state.{name}": value for name, value in self.state.items()})
        if self.randomisation is not None:
            named.update(told=self.randomisation.told, due=self.randomisation.due)
        return named
