"""The contract a task fulfils: what a robot observes, what it is paid for and how it starts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import mujoco
import torch
from torch import Tensor

from envs.draws import Draws
from envs.fields import Fields
from envs.user_code import calling, defined_at, fault
from gorl_robotics.errors import InputError

State = dict[str, Tensor]


@dataclass(frozen=True)
class Timing:
    """Durations in seconds: of a control step (one action) and of a physics step."""

    control: float
    physics: float

    @property
    def physics_steps(self) -> int:
        """Physics steps in one control step."""
        return round(self.control / self.physics)


@dataclass
class InitialState:
    """A start for every world: shapes (N, nq), (N, nv), (N, nmocap, 3), (N, nmocap, 4), and the task's own state."""

    qpos: Tensor
    qvel: Tensor
    mocap_pos: Tensor | None = None
    mocap_quat: Tensor | None = None
    state: State = field(default_factory=dict)


@dataclass
class Parameters:
    """Model parameters drawn for every world."""

    fields: dict[str, Tensor]  # each name in `Task.randomised`: (N, *shape of the MjModel field)
    told: dict[str, Tensor] = field(default_factory=dict)  # what the critic is told of them, each (N, size)


class Task(ABC):
    """A robot and what it shall do.

    The methods are functions of batched tensors (N worlds first). They may be captured in a CUDA graph and are
    traced to ONNX: no `.item()`, no data-dependent shapes or branches, masks instead of index lists. What a task
    remembers between steps lives in `state` and changes in `update` alone.
    """

    name: ClassVar[str]
    timing: ClassVar[Timing]
    episode_length: ClassVar[int] = 1000  # control steps until truncation
    settle_steps: ClassVar[int] = 0  # physics steps with zero control before an episode begins
    nconmax: ClassVar[int | None] = None  # contacts a world may have on average (MuJoCo Warp); None: Warp's guess
    njmax: ClassVar[int | None] = None  # constraint rows a world may have (MuJoCo Warp); None: Warp's guess
    noise: ClassVar[dict[str, float]] = {}  # half-width of uniform noise on observation terms, in their units
    randomised: ClassVar[tuple[str, ...]] = ()  # MjModel fields of which every world has its own, see `parameters`
    units: ClassVar[dict[str, str]] = {}  # unit of each observation term, for the export's metadata
    overrides: ClassVar[dict[str, object]] = {}  # training settings that are facts about this task

    @abstractmethod
    def model(self) -> mujoco.MjSpec:
        """The robot: an asset and its edits."""

    @abstractmethod
    def initial_state(self, sim: Fields, random: Draws) -> InitialState:
        """Draws a start for every world; which worlds take theirs is decided elsewhere."""

    @abstractmethod
    def observe(self, sim: Fields, state: State) -> dict[str, Tensor]:
        """Observation terms by name, each (N, size); they are concatenated in this order."""

    @abstractmethod
    def reward(self, sim: Fields, state: State, action: Tensor) -> Tensor:
        """Reward of the control step that has just ended, (N,); `action` (N, nu) is the one that was applied."""

    def terminated(self, sim: Fields, state: State) -> Tensor:
        """True where the episode ends for good, (N,) bool. By default it never does."""
        return torch.zeros(sim.num_worlds, dtype=torch.bool, device=sim.device)

    def update(self, sim: Fields, state: State, random: Draws) -> State:
        """The task's state after this control step. By default unchanged."""
        return state

    def privileged(self, sim: Fields, state: State) -> dict[str, Tensor]:
        """Terms that the critic sees in addition to the observation, each (N, size). By default none."""
        return {}

    def parameters(self, sim: Fields, random: Draws) -> Parameters:
        """Draws the `randomised` model fields for every world, once per episode; see `envs.randomisation`."""
        raise InputError(f"{self.name}: randomised names model fields, but there is no method parameters to draw them")

    def compile(self) -> mujoco.MjModel:
        """Compiles the model at the task's physics step.

        Raises:
            InputError: the model does not compile, has no actuators, or the time steps do not divide.
        """
        control, physics = self._timing()
        if abs(control / physics - self.timing.physics_steps) > 1e-6 or self.timing.physics_steps < 1:
            raise InputError(f"{self.name}: control step {control} s is no multiple of physics step {physics} s")
        with calling(self, "model"):
            spec = self.model()
        if not isinstance(spec, mujoco.MjSpec):
            raise fault(self, "model", f"returned a {type(spec).__name__}, expected a mujoco.MjSpec, see assets.load")
        spec.option.timestep = self.timing.physics
        where = f"{defined_at(type(self), 'model')}: {self.name}"
        try:
            model = spec.compile()
        except ValueError as error:
            raise InputError(f"{where}: the model does not compile: {' '.join(str(error).split())}") from error
        if model.nu == 0:
            raise InputError(f"{where}: the model has no actuators, so there is nothing to control")
        return model

    def _timing(self) -> tuple[float, float]:
        timing = getattr(self, "timing", None)
        if not isinstance(timing, Timing):
            expected = "timing = Timing(control=0.02, physics=0.005), in seconds"
            raise InputError(f"{defined_at(type(self), '')}: {self.name} states no time steps; expected {expected}")
        if not (timing.control > 0 and timing.physics > 0):
            raise InputError(f"{self.name}: {timing}: expected positive durations in seconds")
        return timing.control, timing.physics
