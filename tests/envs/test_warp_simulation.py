"""MuJoCo Warp against MuJoCo C, on the CPU; the tests marked gpu repeat the contract on a CUDA device.

Compiling the kernels takes half a minute, once per kernel cache; test_warp_against_c.py compiles those of every robot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import mujoco
import numpy as np
import pytest
import torch
from torch import Tensor

from envs import vector_env
from envs.draws import BatchDraws
from envs.fields import Fields
from envs.native_simulation import NativeSimulation
from envs.simulation import STATE_FIELDS, Simulation, SimulationError
from envs.task import Task
from envs.vector_env import VectorEnv
from envs.warp_simulation import WarpSimulation
from tasks import make

S = TypeVar("S", bound=Simulation)
CPU = torch.device("cpu")
FIELDS = ("xpos", "xmat", "xipos", "geom_xpos", "site_xpos", "subtree_com", "sensordata")
# How far a control step of both engines from the same state may differ: m, rad, their rates, N (touch).
TOLERANCES = dict.fromkeys(FIELDS[:-1], 5e-6) | {"qpos": 2e-6, "qvel": 2e-4, "speed": 1e-5, "touch": 2e-2}
HELD = [None, mujoco.mjtEq.mjEQ_CONNECT, mujoco.mjtEq.mjEQ_WELD]
DEVICES = [pytest.param("cpu"), pytest.param("cuda", marks=pytest.mark.gpu)]


# --- helpers --------------------------------------------------------------------------------------


def warp(
    worlds: int,
    *,
    task: str = "HopperHop",
    model: mujoco.MjModel | None = None,
    steps: int = 4,
    fields: Sequence[str] = FIELDS,
    device: torch.device | str = CPU,
    nconmax: int | None = None,
    njmax: int | None = None,
) -> WarpSimulation:
    """A Warp simulation with the capacities that the task states."""
    this = make(task)
    return WarpSimulation(
        this.compile() if model is None else model,
        worlds,
        fields,
        steps,
        torch.device(device),
        this.nconmax if nconmax is None else nconmax,
        this.njmax if njmax is None else njmax,
    )


def native(worlds: int, model: mujoco.MjModel | None = None) -> Simulation:
    model = make("HopperHop").compile() if model is None else model
    return NativeSimulation(model, worlds, FIELDS, 4, threads=2)


def starts(sim: Simulation, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random poses of the hopper, moving randomly: float32 numbers, the same on every device."""
    draws = BatchDraws(sim.num_worlds, torch.Generator().manual_seed(seed), torch.float32)
    fields = Fields(sim.model, {"qpos": torch.zeros(sim.num_worlds, sim.model.nq)}, sim.num_worlds)
    qpos = make("HopperHop").initial_state(fields, draws).qpos
    return qpos.to(sim.device), (0.5 * draws.normal(sim.model.nv)).to(sim.device)


def actions(sim: Simulation, seed: int, steps: int) -> Tensor:
    """(steps, N, nu) in [-1, 1]."""
    random = torch.Generator().manual_seed(seed)
    return (2 * torch.rand(steps, sim.num_worlds, sim.model.nu, generator=random) - 1).to(sim.device)


def everyone(sim: Simulation) -> Tensor:
    return torch.ones(sim.num_worlds, dtype=torch.bool, device=sim.device)


def run(sim: Simulation, controls: Tensor) -> Tensor:
    """Steps through `controls` (T, N, nu); the trajectory (T, N, nq + nv)."""
    states = []
    for control in controls:
        sim.ctrl.copy_(control)
        sim.step()
        states.append(torch.cat([sim.qpos, sim.qvel], dim=1).clone())
    return torch.stack(states)


def assert_close(actual: Tensor, expected: Tensor, absolute: float, relative: float = 0.0) -> None:
    torch.testing.assert_close(actual.double().cpu(), expected.double().cpu(), atol=absolute, rtol=relative)


# --- one physics step -----------------------------------------------------------------------------


def states_in_contact(model: mujoco.MjModel, count: int) -> dict[str, np.ndarray]:
    """States in contact met by random actions from random starts; float32 numbers, for both engines."""
    random, data = np.random.default_rng(0), mujoco.MjData(model)
    names = ("qpos", "qvel", "ctrl", "qacc_warmstart")
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    low, high = model.jnt_range[3:].T
    while len(found["qpos"]) < count:
        mujoco.mj_resetData(model, data)
        data.qpos[2], data.qpos[3:] = random.uniform(-np.pi, np.pi), random.uniform(low, high)
        for step in range(400):
            if step % 4 == 0:
                data.ctrl[:] = random.uniform(-1, 1, model.nu)
            mujoco.mj_step(model, data)
            if step >= 100 and step % 10 == 0 and data.ncon > 0:
                for name in names:
                    found[name].append(getattr(data, name).astype(np.float32))
    return {name: np.array(values[:count]) for name, values in found.items()}


def step_by_c(model: mujoco.MjModel, states: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Velocities after one physics step, and how many constraint rows it had."""
    data, qvel, rows = mujoco.MjData(model), [], []
    for world in range(len(states["qpos"])):
        mujoco.mj_resetData(model, data)
        for name, values in states.items():
            getattr(data, name)[:] = values[world]
        mujoco.mj_step(model, data)
        qvel.append(data.qvel.copy())
        rows.append(data.nefc)
    return np.array(qvel), np.array(rows)


def step_by_warp(model: mujoco.MjModel, states: dict[str, np.ndarray], task: str) -> tuple[np.ndarray, np.ndarray]:
    sim = warp(len(states["qpos"]), task=task, model=model, steps=1)
    state = sim.state_dict()
    state.update({name: torch.from_numpy(values) for name, values in states.items()})
    sim.load_state_dict(state)
    sim.step()
    sim.check()
    return sim.qvel.numpy(), sim._data.nefc.numpy()


def one_step_errors(model: mujoco.MjModel, states: dict[str, np.ndarray], task: str) -> tuple[np.ndarray, np.ndarray]:
    """Each state's largest error in the next velocities, and whether both engines had as many rows."""
    (qvel, rows), (their_qvel, their_rows) = step_by_warp(model, states, task), step_by_c(model, states)
    errors, same = np.abs(qvel - their_qvel).max(axis=1), rows == their_rows
    print(  # the figures, for `pytest -s`
        f"{task} {model.opt.iterations}/{model.opt.ls_iterations}: p99 {np.percentile(errors, 99):.1e}, "
        f"{np.mean(errors > 1e-3):.2%} above 1e-3, max {errors.max():.1e}; where rows are the same "
        f"{errors[same].max():.1e}, they are not in {np.sum(~same)} states"
    )
    return errors, same


def assert_agrees_unconverged(errors: np.ndarray) -> None:
    # Few iterations leave the solver unconverged, so that a rare state magnifies float32's rounding.
    assert np.percentile(errors, 99) <= 2e-5
    assert np.mean(errors > 1e-3) <= 0.005


@pytest.fixture(scope="module")
def contact_states() -> dict[str, np.ndarray]:
    return states_in_contact(make("HopperStand").compile(), 1000)


def test_hopper_step_in_contact_agrees_with_c(contact_states: dict[str, np.ndarray]) -> None:
    errors, _ = one_step_errors(make("HopperStand").compile(), contact_states, "HopperStand")
    assert_agrees_unconverged(errors)


def test_hopper_step_agrees_with_c_where_the_solver_converges(contact_states: dict[str, np.ndarray]) -> None:
    model = make("HopperStand").compile()
    model.opt.iterations, model.opt.ls_iterations = 100, 50
    errors, same = one_step_errors(model, contact_states, "HopperStand")
    # Capsules that are parallel to 2e-5 rad (torso and thigh in one of these states) touch in two points for
    # C and in one for Warp: a knife's edge of the geometry, no matter of dynamics. It must stay that rare.
    assert np.mean(~same) <= 0.002
    assert errors[same].max() <= 1e-4


def test_cartpole_step_agrees_with_c() -> None:
    random, model = np.random.default_rng(0), make("CartpoleSwingup").compile()
    states = {
        "qpos": random.uniform([-2, -4], [2, 4], (1000, 2)).astype(np.float32),  # beyond the rail's ends too
        "qvel": random.normal(size=(1000, 2)).astype(np.float32) * 3,
        "ctrl": random.uniform(-1, 1, (1000, 1)).astype(np.float32),
    }
    assert (np.abs(states["qpos"][:, 0]) > 1.8).sum() > 50
    assert_agrees_unconverged(one_step_errors(model, states, "CartpoleSwingup")[0])
    model.opt.iterations, model.opt.ls_iterations = 100, 50
    assert one_step_errors(model, states, "CartpoleSwingup")[0].max() <= 1e-4


# --- the contract ---------------------------------------------------------------------------------


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The CPU, or CUDA within a side stream: torch's default stream cannot be captured."""
    if request.param == "cpu":
        yield CPU
        return
    with torch.cuda.stream(torch.cuda.Stream()):
        yield torch.device(request.param)


def placed(sim: S) -> S:
    """The simulation with every world at its random start."""
    sim.reset(everyone(sim), *starts(sim))
    return sim


def shown(sim: Simulation) -> dict[str, Tensor]:
    """What a control step leaves, as copies, with the sensors apart."""
    views = {name: getattr(sim, name) for name in ("qpos", "qvel", *FIELDS[:-1])}
    views["speed"] = sim.sensordata[:, sim.sensor("torso_subtreelinvel")]
    views["touch"] = sim.sensordata[:, [sim.sensor(name).start for name in ("touch_toe", "touch_heel")]]
    return {name: view.detach().double().cpu().clone() for name, view in views.items()}


def assert_same_control_steps(ours: Simulation, theirs: Simulation, controls: Tensor) -> None:
    """Steps both from the same states and compares all fields, in 99 % of the cases: the rest is as above."""
    errors: dict[str, list[Tensor]] = {name: [] for name in TOLERANCES}
    touching, told_apart = [], []
    for control in controls:
        theirs.load_state_dict(ours.state_dict())  # each time anew, so that rounding does not build up
        for sim in (ours, theirs):
            sim.ctrl.copy_(control)
            sim.step()
        left, expected = shown(ours), shown(theirs)
        for name, values in errors.items():
            values.append(world_error(left[name], expected[name]))
        theirs.forward()  # now touch is that of the new state, which a control step must not show
        touching.append((expected["touch"] > 1).any(dim=1))
        told_apart.append(world_error(shown(theirs)["touch"], expected["touch"]) > 1)
    for name, values in errors.items():
        error = torch.cat(values)
        assert error.isfinite().all(), name
        assert float(error.quantile(0.99)) <= TOLERANCES[name], name
    assert torch.cat(touching).double().mean() > 0.15
    assert torch.cat(told_apart).double().mean() > 0.1


def world_error(actual: Tensor, expected: Tensor) -> Tensor:
    """(N,), each world's largest."""
    return (actual.double().cpu() - expected.double().cpu()).abs().flatten(1).amax(dim=1)


def test_control_step_leaves_what_mujoco_c_leaves(device: torch.device) -> None:
    ours = placed(warp(64, device=device))
    assert_same_control_steps(ours, native(64), actions(ours, seed=1, steps=60))
    ours.check()


def test_settling_is_that_many_physics_steps_without_control(device: torch.device) -> None:
    ours, theirs = placed(warp(16, device=device)), placed(native(16))
    for sim in (ours, theirs):
        sim.ctrl.fill_(1.0)
        sim.settle(10)
        sim.forward()
        assert not sim.ctrl.any()
    assert float(world_error(ours.qvel, theirs.qvel).median()) <= 1e-4
    assert float(world_error(ours.xipos, theirs.xipos).median()) <= 5e-6
    other = placed(warp(16, device=device))
    other.settle(9)
    other.forward()
    assert float(world_error(ours.xipos, other.xipos).min()) > 1e-4


def same(actual: Tensor, expected: Tensor) -> bool:
    """Bitwise on the CPU. On a GPU sums have no fixed order: about, in the median world (worlds first)."""
    if actual.device.type == "cpu":
        return torch.equal(actual, expected)
    error = world_error(actual, expected) / (1 + expected.double().cpu().abs().flatten(1).amax(dim=1))
    return float(error.median()) < 1e-3


def test_masked_reset_is_a_fresh_world_and_leaves_the_others_alone(device: torch.device) -> None:
    reset, untouched, fresh = (placed(warp(8, device=device)) for _ in range(3))
    mask = torch.tensor([1, 0, 0, 1, 0, 1, 0, 0], device=device).bool()
    before = actions(reset, seed=1, steps=10)
    after = actions(reset, seed=2, steps=25 if device.type == "cpu" else 5)  # 100 physics steps
    run(reset, before)
    run(untouched, before)
    state, (qpos, qvel) = reset.state_dict(), starts(reset, seed=5)
    reset.reset(mask, qpos, qvel)
    fresh.reset(everyone(fresh), qpos, qvel)
    assert torch.equal(reset.qpos[mask], qpos[mask])
    assert torch.equal(reset.qvel[mask], qvel[mask])
    for field in FIELDS:
        assert same(getattr(reset, field)[mask], getattr(fresh, field)[mask]), field
    for name, value in reset.state_dict().items():
        assert torch.equal(value[~mask], state[name][~mask]), name
    ours, others, new = (run(sim, after).transpose(0, 1) for sim in (reset, untouched, fresh))
    assert same(ours[mask], new[mask])
    assert same(ours[~mask], others[~mask])
    assert not same(ours[mask], others[mask])


def held_hopper(kind: mujoco.mjtEq) -> mujoco.MjModel:
    """The foot is softly held at the torso: constraints that read velocities, in a robot whose kernels there are."""
    spec = make("HopperHop").model()
    between = {"objtype": mujoco.mjtObj.mjOBJ_BODY, "name1": "foot", "name2": "torso"}
    spec.add_equality(type=kind, solref=[0.5, 1.0], **between)
    return spec.compile()


@pytest.mark.parametrize("kind", HELD)
def test_placed_worlds_are_fresh_worlds_without_a_forward_pass(kind: mujoco.mjtEq | None) -> None:
    model = None if kind is None else held_hopper(kind)
    used, fresh = (warp(4, model=model, njmax=60) for _ in range(2))
    controls = actions(fresh, seed=1, steps=10)
    run(used, controls)
    qpos, qvel = starts(fresh, seed=3)
    for sim in (used, fresh):
        sim.place(everyone(sim), qpos, qvel, None, None)
    assert not used.qacc_warmstart.any()
    assert not used.ctrl.any()
    assert torch.equal(run(used, controls), run(fresh, controls))
    used.check()


@pytest.mark.parametrize("kind", HELD)
@pytest.mark.parametrize("field", ["qpos", "qvel", "qacc_warmstart"])
def test_placing_cures_a_world_that_is_not_finite(field: str, kind: mujoco.mjtEq | None) -> None:
    model = None if kind is None else held_hopper(kind)
    ill, well = (placed(warp(4, model=model, njmax=60)) for _ in range(2))
    controls = actions(well, seed=1, steps=5)
    getattr(ill, field)[2] = float("nan")
    lost, reference = run(ill, controls), run(well, controls)
    others = torch.tensor([0, 1, 3])
    assert torch.equal(lost[:, others], reference[:, others])
    if field != "qacc_warmstart":
        assert lost[-1, 2].isnan().any()
    mask = torch.arange(4) == 2
    qpos, qvel = starts(well, seed=3)
    for sim in (ill, well):
        sim.place(mask, qpos, qvel, None, None)
    cured = run(ill, controls)
    assert cured.isfinite().all()
    assert torch.equal(cured, run(well, controls))


def test_state_dict_continues_the_same_trajectory() -> None:
    sim, other = placed(warp(4)), warp(4)
    run(sim, actions(sim, seed=1, steps=10))
    saved, controls = sim.state_dict(), actions(sim, seed=2, steps=10)
    expected = run(sim, controls)
    assert set(saved) == set(STATE_FIELDS)
    for again in (sim, other):
        again.load_state_dict(saved)
        assert torch.equal(run(again, controls), expected)


# --- capacity -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nconmax", "njmax", "named", "other"), [(1, 50, "nconmax", "njmax"), (12, 4, "njmax", "nconmax")]
)
def test_check_names_the_capacity_that_is_too_small(nconmax: int, njmax: int, named: str, other: str) -> None:
    sim = placed(warp(32, nconmax=nconmax, njmax=njmax))
    run(sim, actions(sim, seed=1, steps=40))
    with pytest.raises(SimulationError, match=rf"raise the task's {named} \(now nconmax {nconmax}, njmax {njmax}\)"):
        sim.check()
    sim.check()  # it tells of what has happened since the last check


def test_check_accepts_the_tasks_own_capacity() -> None:
    sim = placed(warp(64))
    run(sim, actions(sim, seed=1, steps=300))
    assert sim._overflow.any()  # the solver's iteration bits, which are no fault
    sim.check()


# --- the whole refresh ----------------------------------------------------------------------------


def test_whole_refresh_leaves_the_same_fields_as_the_light_one() -> None:
    light, whole = placed(warp(32)), placed(warp(32))
    assert not light._whole_refresh
    whole._whole_refresh = True
    touch = light.sensor("touch_toe").start
    for control in actions(light, seed=1, steps=40):
        for sim in (light, whole):
            sim.ctrl.copy_(control)
            sim.step()
        for field in ("qpos", "qvel", *FIELDS):
            assert torch.equal(getattr(light, field), getattr(whole, field)), field
    assert (light.sensordata[:, touch:] > 0).any(dim=1).float().mean() > 0.2


def hopper_with_limit_sensors() -> mujoco.MjModel:
    spec = make("HopperHop").model()
    for sensor in (mujoco.mjtSensor.mjSENS_JOINTLIMITPOS, mujoco.mjtSensor.mjSENS_JOINTLIMITVEL):
        spec.add_sensor(name=sensor.name, type=sensor, objtype=mujoco.mjtObj.mjOBJ_JOINT, objname="knee")
    return spec.compile()


def test_a_model_with_joint_limit_sensors_is_refreshed_whole() -> None:
    ours = placed(warp(64, model=hopper_with_limit_sensors()))
    theirs = native(64, hopper_with_limit_sensors())
    assert ours._whole_refresh
    assert_same_control_steps(ours, theirs, actions(ours, seed=1, steps=30))
    qpos, qvel = starts(ours)
    qpos[:, ours.joint_qpos("knee")] = ours.model.joint("knee").range[0] - 0.05  # beyond the limit
    for sim in (ours, theirs):
        sim.reset(everyone(sim), qpos, qvel)
        sim.step()
    limits = slice(ours.sensor("mjSENS_JOINTLIMITPOS").start, None)
    assert (theirs.sensordata[:, limits] != 0).all(dim=1).double().mean() > 0.5
    assert float(world_error(ours.sensordata[:, limits], theirs.sensordata[:, limits]).quantile(0.9)) <= 1e-4


def test_a_camera_moves_for_the_sensor_that_reads_it() -> None:
    model = mujoco.MjModel.from_xml_string("""<mujoco>
      <worldbody>
        <light name="light" mode="targetbody" target="arm" pos="0 0 3"/>
        <body name="arm" pos="0 0 1">
          <joint name="hinge" type="hinge" axis="0 1 0"/>
          <geom type="capsule" size=".05" fromto="0 0 0 .5 0 0"/>
          <camera name="eye" pos=".4 -1 0" xyaxes="1 0 0 0 0 1"/>
        </body>
      </worldbody>
      <sensor><framepos objtype="camera" objname="eye"/></sensor>
    </mujoco>""")
    data, sim = mujoco.MjData(model), warp(2, model=model, steps=40, fields=["sensordata"])
    sim.step()
    mujoco.mj_step(model, data, 40)
    mujoco.mj_forward(model, data)
    assert data.sensordata[2] < 0.97  # it fell with the arm, from a height of 1
    np.testing.assert_allclose(sim.sensordata.numpy(), np.tile(data.sensordata, (2, 1)), atol=1e-5)


# --- the environment ------------------------------------------------------------------------------


class ShortHopper(type(make("HopperStand"))):  # type: ignore[misc]
    """Episodes end so soon that a few steps see resets."""

    name = "ShortHopper"
    episode_length = 6


def warp_on_cpu(
    task: Task,
    model: mujoco.MjModel,
    num_worlds: int,
    fields: Sequence[str],
    device: torch.device,
    threads: int = 0,
    randomised: tuple[str, ...] = (),
) -> Simulation:
    return WarpSimulation(model, num_worlds, fields, task.timing.physics_steps, device, task.nconmax, task.njmax)


def test_environment_on_warp_is_that_on_mujoco_c(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = VectorEnv(ShortHopper(), 16, threads=2)
    monkeypatch.setattr(vector_env, "make_simulation", warp_on_cpu)
    ours = VectorEnv(ShortHopper(), 16)
    assert isinstance(ours.sim, WarpSimulation)
    theirs.load_state_dict(ours.state_dict())
    ended = 0
    for action in actions(ours.sim, seed=1, steps=20):
        step, reference = ours.step(action), theirs.step(action)
        for name in ("observation", "terminal_observation", "reward", "terminated", "truncated"):
            value, expected = getattr(step, name), getattr(reference, name)
            error = world_error(value.unsqueeze(1), expected.unsqueeze(1))
            assert float(error.quantile(0.9)) <= 1e-3, name
        assert torch.equal(step.truncated, reference.truncated)
        ended += int(step.truncated.sum())
    ours.check()
    assert ended >= 3 * 16
