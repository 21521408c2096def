"""What every registered task promises: its numbers, its starts, its purity; and the helpers tasks share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
import pytest
import torch
from dm_control.utils import rewards as dm_rewards
from scipy import stats  # type: ignore[import-untyped]
from torch import Tensor
from torch.overrides import TorchFunctionMode

import tasks
from envs.draws import BatchDraws
from envs.dry_run import RecordingFields, dry_run
from envs.fields import FIELD_SHAPES, Fields, field_shape
from envs.task import InitialState, State, Task
from envs.vector_env import action_range
from gorl_robotics.errors import InputError
from tasks import __main__ as listing
from tasks.hopper import HopperStand
from tasks.rewards import small_control, tolerance

DRAWS = 20_000


@dataclass(frozen=True)
class Facts:
    """What a task must be; masses and solver settings are those of MuJoCo Playground."""

    observation: dict[str, int]
    actuators: dict[str, float]  # name to gear
    control: float
    physics: float
    iterations: tuple[int, int]  # solver, line search
    mass: float


HOPPER = Facts(
    {"position": 6, "velocity": 7, "touch": 2},
    {"waist": 30, "hip": 40, "knee": 30, "ankle": 10},
    control=0.02,
    physics=0.005,
    iterations=(4, 10),
    mass=12.439,
)
CARTPOLE = Facts(
    {"cart": 1, "pole": 2, "velocity": 2},
    {"slide": 10},
    control=0.01,
    physics=0.01,
    iterations=(1, 4),
    mass=1.1,
)
FACTS = {"HopperStand": HOPPER, "HopperHop": HOPPER, "CartpoleBalance": CARTPOLE, "CartpoleSwingup": CARTPOLE}


@pytest.fixture(params=FACTS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=tasks.names())
def any_task(request: pytest.FixtureRequest) -> Task:
    return tasks.make(request.param)


# --- numbers -----------------------------------------------------------------------------------


def test_observation_terms(name: str) -> None:
    task = tasks.make(name)
    layout = dry_run(task, task.compile())
    assert list(layout.observation.items()) == list(FACTS[name].observation.items())
    assert layout.privileged == {}
    assert list(task.units) == list(layout.observation)


def test_time_steps(name: str) -> None:
    task, facts = tasks.make(name), FACTS[name]
    assert (task.timing.control, task.timing.physics) == (facts.control, facts.physics)
    assert task.timing.physics_steps == round(facts.control / facts.physics)
    assert task.compile().opt.timestep == facts.physics
    assert task.episode_length == 1000
    assert task.settle_steps == 0


def test_actions(name: str) -> None:
    model = tasks.make(name).compile()
    gears = {model.actuator(i).name: model.actuator(i).gear[0] for i in range(model.nu)}
    assert list(gears.items()) == list(FACTS[name].actuators.items())
    low, high = action_range(model)
    assert low.tolist() == [-1.0] * model.nu
    assert high.tolist() == [1.0] * model.nu
    assert model.actuator_ctrllimited.all()


def test_solver_and_mass(name: str) -> None:
    facts, model = FACTS[name], tasks.make(name).compile()
    assert (model.opt.iterations, model.opt.ls_iterations) == facts.iterations
    assert model.opt.integrator == mujoco.mjtIntegrator.mjINT_EULER
    assert model.opt.solver == mujoco.mjtSolver.mjSOL_NEWTON
    assert model.opt.cone == mujoco.mjtCone.mjCONE_PYRAMIDAL
    assert model.opt.disableflags & mujoco.mjtDisableBit.mjDSBL_EULERDAMP
    assert model.opt.enableflags == 0
    assert model.body_mass.sum() == pytest.approx(facts.mass, abs=5e-4)


def test_capacity_of_every_task_is_stated(any_task: Task) -> None:
    assert any_task.nconmax is not None
    assert any_task.njmax is not None


# --- starts ------------------------------------------------------------------------------------


def draw(name: str) -> InitialState:
    task = tasks.make(name)
    model = task.compile()
    random = BatchDraws(DRAWS, torch.Generator().manual_seed(0), torch.float64)
    fields = Fields(model, {"qpos": torch.zeros(DRAWS, model.nq, dtype=torch.float64)}, DRAWS)
    return task.initial_state(fields, random)


def assert_uniform(values: Tensor, low: float, high: float) -> None:
    assert low <= float(values.min())
    assert float(values.max()) <= high
    assert stats.kstest(values.numpy(), stats.uniform(low, high - low).cdf).pvalue > 1e-3


def assert_normal(values: Tensor, mean: float, deviation: float) -> None:
    assert stats.kstest(values.numpy(), stats.norm(mean, deviation).cdf).pvalue > 1e-3


def assert_independent(columns: Tensor) -> None:
    """No correlation between columns, nor between their squares, nor between neighbouring worlds."""
    centred = (columns - columns.mean(dim=0)) / columns.std(dim=0)
    features = torch.cat([centred, centred**2], dim=1)
    off_diagonal = torch.corrcoef(features.T) - torch.eye(features.shape[1])
    assert float(off_diagonal.abs()[: columns.shape[1], : columns.shape[1]].max()) < 5 / math.sqrt(DRAWS)
    squares = off_diagonal[columns.shape[1] :, columns.shape[1] :]
    assert float(squares.abs().max()) < 5 / math.sqrt(DRAWS)
    assert float((centred[1:] * centred[:-1]).mean(dim=0).abs().max()) < 5 / math.sqrt(DRAWS)


@pytest.mark.parametrize("hopper", ["HopperStand", "HopperHop"])
def test_hopper_starts_anywhere_at_rest(hopper: str) -> None:
    start = draw(hopper)
    assert not start.qpos[:, :2].any()
    assert not start.qvel.any()
    degrees = [(-180, 180), (-30, 30), (-170, 10), (5, 150), (-45, 45)]
    for column, (low, high) in zip(start.qpos.T[2:], degrees, strict=True):
        assert_uniform(column, math.radians(low), math.radians(high))
    assert_independent(start.qpos[:, 2:])


def test_cartpole_balance_starts_nearly_upright() -> None:
    start = draw("CartpoleBalance")
    assert_uniform(start.qpos[:, 0], -0.1, 0.1)
    assert_uniform(start.qpos[:, 1], -0.034, 0.034)
    for column in start.qvel.T:
        assert_normal(column, 0.0, 0.01)
    assert_independent(torch.cat([start.qpos, start.qvel], dim=1))


def test_cartpole_swingup_starts_hanging() -> None:
    start = draw("CartpoleSwingup")
    assert_normal(start.qpos[:, 0], 0.0, 0.01)
    assert_normal(start.qpos[:, 1], math.pi, 0.01)
    for column in start.qvel.T:
        assert_normal(column, 0.0, 0.01)
    assert_independent(torch.cat([start.qpos, start.qvel], dim=1))


# Playground starts these from one fixed pose.
FIXED_STARTS = {"BallInCup", "HumanoidStand", "HumanoidWalk", "HumanoidRun"}


def test_two_draws_differ(any_task: Task) -> None:
    model, generator = any_task.compile(), torch.Generator().manual_seed(0)
    random = BatchDraws(4, generator, torch.float64)
    fields = Fields(model, {"qpos": torch.zeros(4, model.nq, dtype=torch.float64)}, 4)
    first, second = any_task.initial_state(fields, random), any_task.initial_state(fields, random)
    fixed = any_task.name in FIXED_STARTS
    assert torch.equal(first.qpos, second.qpos) is fixed
    assert torch.equal(first.qpos[0], first.qpos[1]) is fixed


# --- fit for a CUDA graph and for ONNX ---------------------------------------------------------


class DrawsOfNothing:
    """Draws on a device that has no generator."""

    def __init__(self, num_worlds: int, device: str) -> None:
        self._num_worlds, self._device = num_worlds, device

    def uniform(self, *size: int) -> Tensor:
        return torch.rand(self._num_worlds, *size, device=self._device)

    def normal(self, *size: int) -> Tensor:
        return torch.randn(self._num_worlds, *size, device=self._device)


class NoHostData(TorchFunctionMode):
    """Raises where a tensor is made of host data, which no CUDA graph records; `sim.tensor` keeps its own."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (torch.tensor, torch.as_tensor, torch.asarray):
            raise RuntimeError("a tensor of host data; use sim.tensor")
        return func(*args, **(kwargs or {}))


def run_without_data(task: Task, worlds: int = 5) -> dict[str, Tensor]:
    """Runs every method on tensors that have shapes and no data; returns what comes out.

    Whatever looks at a value (`.item()`, `if tensor:`, a boolean index) or mixes devices raises.
    """
    device, model = "meta", task.compile()
    tensors = {field: torch.empty(worlds, *field_shape(model, field), device=device) for field in FIELD_SHAPES}
    sim, random = Fields(model, tensors, worlds), DrawsOfNothing(worlds, device)

    def run() -> dict[str, Tensor]:
        start = task.initial_state(sim, random)
        action = torch.empty(worlds, model.nu, device=device)
        return {
            "qpos": start.qpos,
            "qvel": start.qvel,
            "reward": task.reward(sim, start.state, action),
            "terminated": task.terminated(sim, start.state),
            **task.update(sim, dict(start.state), random),
            **task.observe(sim, start.state),
            **task.privileged(sim, start.state),
        }

    run()  # makes the constants
    with NoHostData():
        return run()


def test_every_method_runs_without_looking_at_a_value(any_task: Task) -> None:
    for name, value in run_without_data(any_task).items():
        assert value.shape[0] == 5, name
        assert value.device.type == "meta", name
        assert value.dtype == (torch.bool if name == "terminated" else torch.float32), name


class Careless(HopperStand):
    """A task whose reward may not be captured."""

    name = "Careless"

    def __init__(self, fault: str) -> None:
        self._fault = fault

    def reward(self, sim: Fields, state: State, action: Tensor) -> Tensor:
        height = sim.qpos[:, 1]
        match self._fault:
            case "item":
                return height * float(height.max().item())
            case "branch":
                return height if height.sum() > 0 else -height
            case "index":
                return height[height > 0].mean() + height
            case "device":
                return height + torch.ones(len(height))
            case "host data":
                return height + torch.tensor([1.0], device=sim.device)
        return height + sim.tensor([1.0])


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("item", "item"),
        ("branch", "item"),
        ("index", "nonzero"),
        ("device", "device"),
        ("host data", "use sim.tensor"),
    ],
)
def test_that_check_finds(fault: str, told: str) -> None:
    with pytest.raises((RuntimeError, NotImplementedError), match=told):
        run_without_data(Careless(fault))
    assert "reward" in run_without_data(Careless("none"))


def test_methods_do_not_write_to_what_they_read(any_task: Task) -> None:
    sim = RecordingFields(any_task.compile())
    random = BatchDraws(2, torch.Generator().manual_seed(0), torch.float64)
    state = any_task.initial_state(sim, random).state
    any_task.observe(sim, state)
    before = {field: getattr(sim, field).clone() for field in tuple(sim.read)}
    action = torch.full((2, sim.model.nu), 0.5, dtype=torch.float64)
    any_task.initial_state(sim, random)
    any_task.update(sim, dict(state), random)
    any_task.reward(sim, state, action)
    any_task.observe(sim, state)
    for field, value in before.items():
        assert torch.equal(getattr(sim, field), value), field


# --- rewards -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["gaussian", "linear", "quadratic", "long_tail"])
@pytest.mark.parametrize("bounds", [(0.0, 0.0), (-0.5, 1.5), (0.6, math.inf), (-math.inf, 0.3)])
@pytest.mark.parametrize("margin", [0.0, 0.25, 2.0])
def test_tolerance_is_dm_controls(shape: str, bounds: tuple[float, float], margin: float) -> None:
    x = np.linspace(-4, 4, 801)  # hits the bounds and the margins exactly
    for value in (0.0, 0.1, 0.5, 0.9):
        if value == 0.0 and shape in ("gaussian", "long_tail"):
            continue  # never reaches 0
        expected = dm_rewards.tolerance(x, bounds, margin, shape, value)
        actual = tolerance(torch.from_numpy(x), *bounds, margin, shape, value)
        np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=1e-12)


def test_tolerance_keeps_shape_and_dtype() -> None:
    x = torch.rand(3, 2, dtype=torch.float32)
    for margin in (0.0, 1.0):
        assert tolerance(x, 0.2, 0.5, margin).shape == (3, 2)
        assert tolerance(x, 0.2, 0.5, margin).dtype == torch.float32
    assert tolerance(torch.tensor([math.inf, -math.inf]), margin=1.0).tolist() == [0.0, 0.0]


def test_small_control_is_the_mean_over_actuators() -> None:
    action = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, -0.5], [2.0, -1.0]])
    assert small_control(action).tolist() == [1.0, 0.5, 0.75, 0.0]


# --- names -------------------------------------------------------------------------------------


def test_registry_knows_the_tasks_by_name(name: str) -> None:
    assert name in tasks.names()
    assert tasks.names() == sorted(tasks.names())
    assert tasks.make(name).name == name
    assert tasks.make(name) is not tasks.make(name)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("HoperStand", "HopperStand"), ("hopperhop", "HopperHop"), ("CartpoleSwingUp", "CartpoleSwingup")],
)
def test_a_misspelt_task_gets_the_nearest_name(typed: str, meant: str) -> None:
    with pytest.raises(InputError, match=f"unknown task {typed!r}; did you mean {meant!r}") as caught:
        tasks.make(typed)
    assert "\n" not in str(caught.value)


def test_a_name_like_no_other_gets_the_list() -> None:
    with pytest.raises(InputError, match=r"unknown task 'zzz'; known: .*CartpoleBalance.*HopperHop"):
        tasks.make("zzz")


def test_one_name_for_two_tasks_is_refused() -> None:
    class Impostor(Task):
        __module__ = "elsewhere"

    with pytest.raises(InputError, match=r"'HopperHop' is defined twice: in tasks\.hopper and elsewhere"):
        tasks.register("HopperHop")(Impostor)
    assert type(tasks.make("HopperHop")).__module__ == "tasks.hopper"


# --- the command line --------------------------------------------------------------------------


@pytest.mark.parametrize("columns", ["200", "80"])
def test_every_task_is_listed_by_its_whole_name(
    columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    listing.show()
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert set(tasks.names()) <= {words[0] for words in lines if words}
    (hopper,) = (words for words in lines if words and words[0] == "HopperStand")
    assert hopper[-4:] == ["15", "4", "0.02", "0.005"]
