"""The environment as gymnasium knows environments: a vector of worlds, and the view of a single one.

Every world draws from a generator of its own, seeded as gymnasium seeds them, so that it does not depend on
its neighbours: world i of `GymnasiumVectorEnv` with seed s is `GymnasiumEnv` with seed s + i.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import mujoco
import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from torch import Tensor

from envs.draws import Draws, WorldDraws
from envs.task import Task
from envs.vector_env import VectorEnv
from gorl_robotics.errors import InputError

Info = dict[str, Any]


class _Worlds(VectorEnv):
    """Worlds that know nothing of each other: row i of the supply is world i's next start, drawn when due."""

    def __init__(self, task: Task, num_envs: int, device: torch.device | str, auto_reset: bool) -> None:
        self._auto_reset = auto_reset
        super().__init__(task, num_envs, device=device)
        self.generators = [seeding.np_random()[0] for _ in range(num_envs)]
        self._draws = WorldDraws(self.generators, self.sim.dtype, self.device)

    def begin(self, mask: Tensor) -> None:
        """Begins a new episode, at its first step, in the worlds of `mask` (N,); the others draw nothing."""
        self.starts.fill(self._draws_of(mask), mask)
        step = self.buffers
        self._begin(mask, self.starts.rows(slice(None)), step.observation, step.critic_observation)
        self._randomise()
        self.episode_step.masked_fill_(mask, 0)

    def _begin_next(self, done: Tensor) -> None:
        step = self.buffers
        step.observation.copy_(step.terminal_observation)
        step.critic_observation.copy_(step.terminal_critic_observation)
        if self._auto_reset and bool(done.any()):
            self.begin(done)

    def _draws_of(self, mask: Tensor) -> Draws:
        # While the worlds are built they have no generators of their own yet.
        return self._draws.only(mask) if isinstance(self._draws, WorldDraws) else self._draws

    def _supply_size(self) -> int:
        return self.num_worlds


class GymnasiumVectorEnv(gymnasium.vector.VectorEnv):
    """Worlds of one task as a `gymnasium.vector.VectorEnv`, each reset in the step that ends its episode.

    Equal to a `SyncVectorEnv` of `GymnasiumEnv`s with `AutoresetMode.SAME_STEP`: in the rows of
    `infos["_final_obs"]`, `infos["final_obs"]` holds the last observation of the episode that ended. Episodes
    are truncated at `task.episode_length`.

    Args:
        task: the robot and what it shall do.
        num_envs: number of worlds.
        device: decides the physics engine, see `envs.engine.make_simulation`; arrays are numpy's always.
    """

    def __init__(self, task: Task, num_envs: int, device: torch.device | str = "cpu") -> None:
        self._worlds = _Worlds(task, num_envs, device, auto_reset=True)
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_observation_space, self.single_action_space = _spaces(self._worlds)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Info | None = None
    ) -> tuple[np.ndarray, Info]:
        """Begins new episodes; world i is seeded with `seed + i`, or `seed[i]` of a list, or goes on drawing.

        Args:
            seed: of all worlds, or one for each.
            options: `reset_mask`, (num_envs,) bool, leaves the worlds outside it as they are.

        Raises:
            InputError: a list of seeds does not have one for each world.
        """
        mask = np.asarray((options or {}).get("reset_mask", np.ones(self.num_envs)), dtype=bool)
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed
        if seeds is not None and len(seeds) != self.num_envs:
            raise InputError(f"expected one seed for each of {self.num_envs} worlds, got {len(seeds)}")
        for i, own in enumerate(seeds or ()):
            if mask[i] and own is not None:
                self._worlds.generators[i] = seeding.np_random(own)[0]
        self._worlds.begin(torch.as_tensor(mask, device=self._worlds.device))
        return _array(self._worlds.observation), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Info]:
        """Advances every world by one control step; actions (num_envs, nu) are clipped to [-1, 1].

        Raises:
            InputError: the actions have another shape.
            SimulationError: a contact or constraint buffer overflowed.
        """
        step = self._worlds.step(_actions(actions, self.action_space.shape, self._worlds.device))
        self._worlds.sim.check()
        terminated, truncated = _array(step.terminated), _array(step.truncated)
        infos = _final(terminated | truncated, _array(step.terminal_observation))
        return _array(step.observation), _array(step.reward.double()), terminated, truncated, infos


class GymnasiumEnv(gymnasium.Env):
    """One world of a task as a `gymnasium.Env`.

    Args:
        task: the robot and what it shall do.
        render_mode: `"rgb_array"` makes `render` return pictures; without a display set MUJOCO_GL=egl.
        device: decides the physics engine, see `envs.engine.make_simulation`; arrays are numpy's always.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}

    def __init__(self, task: Task, render_mode: str | None = None, device: torch.device | str = "cpu") -> None:
        if render_mode not in (None, "rgb_array"):
            raise InputError(f"unknown render mode {render_mode!r}; expected 'rgb_array' or None")
        self._worlds = _Worlds(task, 1, device, auto_reset=False)
        self.render_mode = render_mode
        self.metadata = {**type(self).metadata, "render_fps": round(1 / task.timing.control)}
        self.observation_space, self.action_space = _spaces(self._worlds)
        self._renderer: mujoco.Renderer | None = None

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[np.ndarray, Info]:
        """Begins a new episode, with new random numbers if there is a seed."""
        super().reset(seed=seed)
        self._worlds.generators[0] = self.np_random
        self._worlds.begin(torch.ones(1, dtype=torch.bool, device=self._worlds.device))
        return _array(self._worlds.observation[0]), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, Info]:
        """Advances the world by one control step; the action (nu,) is clipped to [-1, 1].

        Raises:
            InputError: the action has another shape.
            SimulationError: a contact or constraint buffer overflowed.
        """
        step = self._worlds.step(_actions(action, self.action_space.shape, self._worlds.device).unsqueeze(0))
        self._worlds.sim.check()
        ended = bool(step.terminated[0]), bool(step.truncated[0])
        return _array(step.observation[0]), float(step.reward[0]), *ended, {}

    def render(self) -> np.ndarray | None:
        """A picture from the model's first camera, (240, 320, 3) uint8; None without a render mode."""
        if self.render_mode is None:
            return None
        model, sim = self._worlds.model, self._worlds.sim
        data = mujoco.MjData(model)
        for name in ("qpos", "qvel", "act", "mocap_pos", "mocap_quat"):
            getattr(data, name)[:] = _array(getattr(sim, name)[0])
        mujoco.mj_forward(model, data)
        if self._renderer is None:
            self._renderer = mujoco.Renderer(model)
        self._renderer.update_scene(data, camera=0 if model.ncam else -1)
        return self._renderer.render()

    def close(self) -> None:
        """Frees the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


def _spaces(worlds: VectorEnv) -> tuple[Box, Box]:
    """Of one world's observations and actions."""
    return (
        Box(-np.inf, np.inf, (worlds.observation_size,), np.float32),
        Box(-1.0, 1.0, (worlds.action_size,), np.float32),
    )


def _final(done: np.ndarray, observation: np.ndarray) -> Info:
    if not done.any():
        return {}
    # SyncVectorEnv makes an array of objects here, which gymnasium's NumpyToTorch cannot convert.
    final = np.where(done[:, None], observation, np.float32(0))
    return {"final_obs": final, "_final_obs": done, "final_info": {}, "_final_info": done.copy()}


def _actions(actions: np.ndarray, shape: tuple[int, ...], device: torch.device) -> Tensor:
    array = np.asarray(actions, dtype=np.float32)
    # Anything else that broadcasts would steer all worlds alike without a word.
    if array.shape != shape:
        raise InputError(f"actions have shape {array.shape}, expected {shape}")
    return torch.tensor(array, device=device)


def _array(tensor: Tensor) -> np.ndarray:
    """A copy: the environment's buffers change with the next step, what gymnasium returns must not."""
    return tensor.cpu().numpy().copy()
