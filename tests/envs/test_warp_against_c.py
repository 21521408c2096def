"""One control step of MuJoCo Warp against MuJoCo C for every robot, and randomised worlds against models of their own.

Warp compiles kernels for each robot, once per kernel cache: a minute or two in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache

import mujoco
import mujoco_warp as mjw
import numpy as np
import pytest
import torch
from torch import Tensor

from envs.draws import BatchDraws
from envs.native_simulation import NativeSimulation
from envs.randomisation import RANDOMISABLE
from envs.simulation import Simulation
from envs.task import Task
from envs.vector_env import action_range
from envs.warp_forward import Forward
from envs.warp_simulation import WarpSimulation
from tasks import make

WORLDS, LATEST = 200, 60  # states, and the last control step at which one is taken
ROBOTS = (
    "AcrobotSwingup",
    "Ant",
    "AntVelocity",
    "BallInCup",
    "CartpoleBalance",
    "CheetahRun",
    "FingerSpin",
    "FishSwim",
    "HopperHop",
    "HumanoidStand",
    "PendulumSwingup",
    "PointMass",
    "ReacherEasy",
    "SwimmerSwimmer6",
    "WalkerWalk",
)
# Warp lays the pyramid of a capsule that leans by more than 60 degrees from the floor along another tangent than C
# does. The legs of these robots lean in three dimensions; with elliptic cones the engines agree.
PYRAMIDS = ("Ant", "HumanoidStand")
LOOP = """
<mujoco>
  <option timestep="0.002"/>
  <worldbody>
    <body pos="0 0 1">
      <joint name="j" type="hinge" axis="0 1 0"/>
      <geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.02"/>
      <site name="a" pos="0.3 0 0"/>
    </body>
    <body pos="0.6 0 1">
      <joint type="hinge" axis="0 1 0" damping="0.1"/>
      <geom type="capsule" fromto="0 0 0 -0.25 0 0" size="0.02"/>
      <site name="b" pos="-0.3 0 0"/>
    </body>
  </worldbody>
  <actuator><motor joint="j"/></actuator>
</mujoco>"""
SPEED = 4e-4  # m/s or rad/s; what the 99th percentile of worlds may differ by after a control step
PLACE = 1e-5  # m, rad, or an entry of a rotation matrix


def native(task: Task, model: mujoco.MjModel, worlds: int, fields: Sequence[str]) -> NativeSimulation:
    return NativeSimulation(model, worlds, fields, task.timing.physics_steps, 2, task.randomised)


def warp(task: Task, model: mujoco.MjModel, worlds: int, fields: Sequence[str], device: str = "cpu") -> WarpSimulation:
    steps, capacity = task.timing.physics_steps, (task.nconmax, task.njmax)
    return WarpSimulation(model, worlds, fields, steps, torch.device(device), *capacity, task.randomised)


@cache
def reachable(name: str) -> dict[str, Tensor]:
    """States that random actions reach from the task's own starts, world i's at step i modulo LATEST; and a control."""
    task = make(name)
    sim = native(task, task.compile(), WORLDS, ())
    random = BatchDraws(WORLDS, torch.Generator().manual_seed(0), sim.dtype)
    start = task.initial_state(sim, random)
    sim.reset(torch.ones(WORLDS, dtype=torch.bool), start.qpos, start.qvel, start.mocap_pos, start.mocap_quat)
    if task.settle_steps:
        sim.settle(task.settle_steps)
    low, high = action_range(sim.model)
    taken, kept = torch.arange(WORLDS) % LATEST, sim.state_dict()
    for step in range(LATEST):
        for name, value in sim.state_dict().items():
            kept[name][taken == step] = value[taken == step]
        sim.ctrl.copy_(low + (high - low) * random.uniform(sim.model.nu))
        sim.step()
    kept["ctrl"] = low + (high - low) * random.uniform(sim.model.nu)
    return {name: value.float() for name, value in kept.items()}  # the same numbers for both engines


def converging(task: Task) -> mujoco.MjModel:
    """The robot with as many solver iterations as it takes: cut short, both engines err, and not alike."""
    model = task.compile()
    model.opt.iterations, model.opt.ls_iterations = 100, 50
    if task.name in PYRAMIDS:
        model.opt.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    return model


def error(ours: Simulation, theirs: Simulation, field: str) -> Tensor:
    """(N,), each world's largest."""
    return (getattr(ours, field).double() - getattr(theirs, field).double()).abs().flatten(1).amax(dim=1)


def after_a_step(*sims: Simulation, state: dict[str, Tensor]) -> None:
    for sim in sims:
        sim.load_state_dict({**sim.state_dict(), **state})
        sim.step()
        sim.check()


@pytest.mark.parametrize("name", ROBOTS)
def test_control_step_agrees_with_c(name: str) -> None:
    task, state = make(name), reachable(name)
    fields = ("xpos", "xmat", "xipos", "geom_xpos", "sensordata", "cfrc_ext")
    ours, theirs = (build(task, converging(task), WORLDS, fields) for build in (warp, native))
    after_a_step(ours, theirs, state=state)
    assert (theirs.qpos - state["qpos"]).abs().amax(dim=1).median() > 1e-4  # something moves
    errors = {field: error(ours, theirs, field) for field in ("qpos", "qvel", *fields[:-2])}
    print(name, {field: f"p99 {value.quantile(0.99):.1e} max {value.max():.1e}" for field, value in errors.items()})
    for field, value in errors.items():
        limit = SPEED if field == "qvel" else PLACE
        assert value.quantile(0.99) <= limit, field
        # Parallel capsules touch in two points or in one, a pose that grazes in none: at most once.
        assert (value > 5 * limit).sum() <= 1, field
    # Forces and accelerations may be large numbers.
    for field in ("sensordata", "cfrc_ext"):
        value, expected = getattr(ours, field).double(), getattr(theirs, field)
        wrong = (value - expected).abs() / (1 + expected.abs()) > 2e-3
        print(f"{field}: {wrong.double().mean():.2%} above 2e-3, magnitude {expected.abs().mean():.1e}")
        assert wrong.sum() <= 0.01 * wrong.numel(), field


@pytest.mark.parametrize("name", ROBOTS)
def test_control_step_with_the_tasks_own_solver_is_nearly_that_of_c(name: str) -> None:
    task, state = make(name), reachable(name)
    ours, theirs = warp(task, task.compile(), WORLDS, ()), native(task, task.compile(), WORLDS, ())
    after_a_step(ours, theirs, state=state)
    speed = error(ours, theirs, "qvel")
    print(name, f"{(speed > 1e-3).double().mean():.1%} above 1e-3, max {speed.max():.1e}")
    assert speed.median() <= 1e-4
    assert (speed > 1e-3).double().mean() <= 0.4  # the ant, for its pyramids


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("name", ["Ant", "BallInCup", "FingerSpin", "FishSwim", "HopperHop", "HumanoidStand"])
def test_branches_compute_what_one_chain_does(name: str, device: str) -> None:
    task, state = make(name), reachable(name)
    with torch.cuda.stream(torch.cuda.Stream()) if device == "cuda" else nullcontext():
        sim = warp(task, task.compile(), WORLDS, (), device)
        sim.load_state_dict({**sim.state_dict(), **{key: value.to(device) for key, value in state.items()}})
        branches = Forward(sim.model, sim._model, sim._data)
        assert branches._apart
        assert bool(branches._streams) == (device == "cuda")
        found = []
        for forward in (branches, lambda: mjw.forward(sim._model, sim._data)):
            with sim._on_stream():  # numbers are set and read there, too: no other stream waits for this one
                for kept in ("qacc", "qfrc_bias", "qfrc_passive", "qfrc_actuator", "actuator_velocity", "M", "cvel"):
                    getattr(sim._data, kept).fill_(float("nan"))
                forward()
                found.append({kept: getattr(sim._data, kept).numpy() for kept in ("qacc", "qfrc_smooth", "cvel", "M")})
    for kept, expected in found[1].items():
        # Contacts are found in another order each time on a GPU, and what they add up to differs in the last digits.
        tolerance = 0.0 if device == "cpu" else 2e-3 * np.abs(expected).max()
        np.testing.assert_allclose(found[0][kept], expected, rtol=0, atol=tolerance, err_msg=kept)


def test_a_model_whose_parts_need_each_other_stays_one_chain() -> None:
    spec = mujoco.MjSpec.from_string(LOOP)
    for name in ("apart", "closed"):
        model = spec.compile()
        sim = WarpSimulation(model, 2, (), 1, torch.device("cpu"))
        assert sim._accelerate._apart == (name == "apart")
        data = mujoco.MjData(model)
        data.qpos[:] = sim.qpos[0]
        sim.ctrl.fill_(1.0)
        data.ctrl[:] = 1.0
        for _ in range(5):
            sim.step()
            mujoco.mj_step(model, data)
        np.testing.assert_allclose(sim.qpos[1], data.qpos, atol=1e-5, err_msg=name)
        spec.add_equality(type=mujoco.mjtEq.mjEQ_CONNECT, objtype=mujoco.mjtObj.mjOBJ_SITE, name1="a", name2="b")


# --- randomised worlds ------------------------------------------------------------------------------

DERIVED = ("body_subtreemass", "body_invweight0", "dof_invweight0", "actuator_acc0")


def randomised(build: type[Simulation]) -> tuple[Task, Simulation, dict[str, Tensor], Tensor]:
    """AntVelocity with parameters drawn for all worlds but the third, and what was drawn."""
    task = make("AntVelocity")
    sim = (warp if build is WarpSimulation else native)(task, task.compile(), 6, ("xpos", "sensordata"))
    drawn = task.parameters(sim, BatchDraws(6, torch.Generator().manual_seed(0), sim.dtype)).fields
    mask = torch.arange(6) != 2
    for _ in range(3):  # eagerly, captured, replayed
        sim.set_parameters(mask, drawn)
    return task, sim, drawn, mask


def late_states(task: Task) -> dict[str, Tensor]:
    """Six states in which the ant touches the floor."""
    states = {name: value for name, value in reachable(task.name).items() if not name.startswith("model.")}
    low = states["qpos"][:, 2].argsort()[:6]
    return {name: value[low] for name, value in states.items()}


def own_model(task: Task, values: dict[str, Tensor], world: int, drawn: bool) -> mujoco.MjModel:
    """A model of its own for one world, its constants by mj_setConst."""
    model = task.compile()
    for name, value in values.items() if drawn else ():
        getattr(model, name)[:] = value[world].numpy()
    mujoco.mj_setConst(model, mujoco.MjData(model))
    return model


def constants(sim: Simulation, name: str) -> np.ndarray:
    """A derived constant of every world."""
    if isinstance(sim, WarpSimulation):
        return np.array(getattr(sim._model, name).numpy())
    return np.stack([getattr(sim._batch.get_model(i), name) for i in range(sim.num_worlds)])  # type: ignore[attr-defined]


@pytest.mark.parametrize("build", [NativeSimulation, WarpSimulation])
def test_a_randomised_world_is_a_model_of_its_own(build: type[Simulation]) -> None:
    task, sim, drawn, mask = randomised(build)
    models = [own_model(task, drawn, i, bool(mask[i])) for i in range(6)]
    for name in (*DERIVED, *task.randomised):
        expected = np.stack([getattr(model, name) for model in models])
        np.testing.assert_allclose(constants(sim, name), expected, rtol=2e-6, atol=1e-7, err_msg=name)
        if name != "dof_invweight0" or build is NativeSimulation:
            assert not np.array_equal(expected[0], expected[1]), name
    nominal = task.compile()
    assert models[2].body_mass.tolist() == nominal.body_mass.tolist()

    state = late_states(task)
    others = native(task, nominal, 6, ())
    after_a_step(sim, others, state=state)
    for world, model in enumerate(models):
        data = mujoco.MjData(model)
        for name, value in state.items():
            getattr(data, name)[:] = value[world].numpy()
        mujoco.mj_step(model, data, task.timing.physics_steps)
        assert np.abs(sim.qvel[world].numpy() - data.qvel).max() <= SPEED
        assert data.ncon > 0
        changed = (others.qvel[world] - torch.from_numpy(data.qvel)).abs().max()
        assert (changed > 10 * SPEED) == bool(mask[world])


@pytest.mark.parametrize("build", [NativeSimulation, WarpSimulation])
def test_new_parameters_leave_states_and_the_other_worlds_alone(build: type[Simulation]) -> None:
    (task, sim, drawn, _), (_, twin, _, _) = randomised(build), randomised(build)
    after_a_step(sim, twin, state=late_states(task))
    addresses = {name: value.data_ptr() for name, value in sim._parameters.items()}
    before, derived = sim.state_dict(), sim.xpos.clone()
    mask = torch.arange(6) == 4
    sim.set_parameters(mask, {name: 1.5 * value for name, value in drawn.items()})
    assert {name: value.data_ptr() for name, value in sim._parameters.items()} == addresses
    for name, value in sim.state_dict().items():
        rows = slice(None) if not name.startswith("model.") else ~mask
        assert torch.equal(value[rows], before[name][rows]), name
    assert torch.equal(sim.xpos, derived)
    for both in (sim, twin):
        for _ in range(5):
            both.step()
    assert torch.equal(sim.qvel[~mask], twin.qvel[~mask])
    assert not torch.equal(sim.qvel[mask], twin.qvel[mask])


@pytest.mark.parametrize("build", [NativeSimulation, WarpSimulation])
def test_a_restored_simulation_has_the_parameters_it_had(build: type[Simulation]) -> None:
    _, sim, _, _ = randomised(build)
    saved = sim.state_dict()
    sim.step()
    task = make("AntVelocity")
    other = (warp if build is WarpSimulation else native)(task, task.compile(), 6, ("xpos",))
    other.load_state_dict(saved)
    other.step()
    assert torch.equal(other.qvel, sim.qvel)
    for name in DERIVED:
        np.testing.assert_array_equal(constants(other, name), constants(sim, name))


@pytest.mark.parametrize("build", [NativeSimulation, WarpSimulation])
def test_every_randomisable_field_is_one_of_both_engines(build: type[Simulation]) -> None:
    task = make("AntVelocity")
    task.randomised = RANDOMISABLE  # type: ignore[misc]
    model = task.compile()
    sim = (warp if build is WarpSimulation else native)(task, model, 3, ())
    for name in RANDOMISABLE:
        value = sim._parameters[name]
        assert value.shape == (3, *getattr(model, name).shape), name
        np.testing.assert_allclose(value[2].numpy(), getattr(model, name), rtol=1e-6, atol=1e-7)
