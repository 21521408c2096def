"""Walker, humanoid, reacher, pendulum, point mass, swimmer and the sparse cart-poles: their numbers and dm_control's.

The rewards and observation terms of these tasks are formulas that Playground shares with dm_control, so dm_control's
own functions judge them. Where ours follow Playground instead of dm_control, and how that is bridged here:

- Options: each `Robot` lists every one that differs. dm_control's Physics gets our options.
- Walker: the 15th observation is the torso's uprightness where dm_control has its height.
- Humanoid: no touch sensors; every episode starts from the model's own pose (dm_control: random, free of contact).
- Reacher, swimmer: the target is a mocap body; dm_control moves the target geom in the model. Reacher has no geom
  `root`; its target weighs what one of 5 cm radius does in both tasks. No geom of the swimmer can collide.
- Pendulum: the direction is (sine, cosine), in dm_control (cosine, sine); it starts on one side only.
- Pendulum, sparse cart-poles: the cosine's upper bound 1 is infinite with us, the same but for rounding.
- Reward: dm_control reads the control, ours the action: the same number, the control range being [-1, 1].
- Start: a fresh world of ours has no warm start, so dm_control's gets none either.
"""

from __future__ import annotations

import math
from typing import Any

import mujoco
import numpy as np
import pytest
import torch
from dm_control.suite import base, reacher
from scipy import stats  # type: ignore[import-untyped]
from suite_second import GEARS, PI, STATES, TARGETS, TASKS, TOLERANCE, Robot
from test_suite_against_dm_control import flat, options
from test_suite_against_dm_control import random_actions as some_actions
from test_tasks import assert_independent, assert_normal, assert_uniform, draw

from envs.dry_run import concatenate, dry_run
from envs.native_simulation import NativeSimulation
from envs.vector_env import VectorEnv
from tasks import make


@pytest.fixture(params=TASKS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# --- numbers -----------------------------------------------------------------------------------


def test_dimensions_and_times(name: str) -> None:
    task, (robot, _) = make(name), TASKS[name]
    model = task.compile()
    layout = dry_run(task, model)
    assert list(layout.observation.items()) == list(robot.observation.items())
    assert list(task.units) == list(robot.observation)
    assert layout.privileged == {}
    assert layout.state == {}
    assert (model.nq, model.nv, model.nu) == robot.sizes
    assert (task.timing.control, task.timing.physics) == robot.timing
    assert task.timing.physics_steps == round(robot.timing[0] / robot.timing[1])
    assert (task.episode_length, task.settle_steps) == (1000, 0)
    assert model.body_mass.sum() == pytest.approx(robot.mass, abs=5e-4)
    assert model.actuator_ctrllimited.all()
    assert (model.actuator_ctrlrange == [-1, 1]).all()


@pytest.mark.parametrize("name", GEARS)
def test_gears(name: str) -> None:
    assert make(name).compile().actuator_gear[:, 0].tolist() == GEARS[name]


def test_only_the_listed_options_differ(name: str) -> None:
    robot = TASKS[name][0]
    ours, theirs = options(make(name).compile().opt), options(robot.physics().model.opt)
    differing = {option: (theirs[option], ours[option]) for option in ours if ours[option] != theirs[option]}
    assert differing == robot.options


def test_the_rest_of_the_model_is_the_same(name: str) -> None:
    ours, theirs = make(name).compile(), TASKS[name][0].physics().model.ptr
    prefixes = ["body_", "jnt_", "dof_", "geom_", "site_", "actuator_", "sensor_", "qpos0", "tendon_", "wrap_"]
    if name.startswith("Humanoid"):
        prefixes.remove("sensor_")
        kept = [i for i in range(theirs.nsensor) if theirs.sensor_type[i] != mujoco.mjtSensor.mjSENS_TOUCH]
        assert [ours.sensor(i).name for i in range(ours.nsensor)] == [theirs.sensor(i).name for i in kept]
        assert theirs.nsensor - ours.nsensor == 18
    if name in TARGETS:
        prefixes = ["jnt_", "dof_", "site_", "actuator_", "sensor_type", "sensor_adr", "sensor_dim", "qpos0"]
        same_but_for_the_target(ours, theirs)
    for attribute in (a for a in dir(ours) if a.startswith(tuple(prefixes))):
        np.testing.assert_array_equal(getattr(ours, attribute), getattr(theirs, attribute), err_msg=attribute)


def same_but_for_the_target(ours: mujoco.MjModel, theirs: mujoco.MjModel) -> None:
    """Bodies and geoms by name; the target's geom sits on a mocap body at the place where dm_control has it."""
    for index in range(1, theirs.nbody):
        body = theirs.body(index)
        for attribute in ("mass", "inertia", "pos", "quat", "ipos", "iquat", "dofadr"):
            expected = getattr(body, attribute)
            np.testing.assert_array_equal(getattr(ours.body(body.name), attribute), expected, err_msg=body.name)
    names = {theirs.geom(index).name for index in range(theirs.ngeom)} - {"root"}
    assert {ours.geom(index).name for index in range(ours.ngeom)} == names
    for geom in names - {"target"}:
        for attribute in ("type", "size", "pos", "quat", "rgba"):
            expected = getattr(theirs.geom(geom), attribute)
            np.testing.assert_array_equal(getattr(ours.geom(geom), attribute), expected, err_msg=geom)
    assert ours.body("target").mocapid == 0
    np.testing.assert_array_equal(ours.body("target").pos, theirs.geom("target").pos)
    assert ours.geom("target").bodyid == ours.body("target").id


@pytest.mark.parametrize(("name", "radius"), [("ReacherEasy", 0.05), ("ReacherHard", 0.015), ("SwimmerSwimmer6", 0.1)])
def test_the_target_is_drawn_at_its_size(name: str, radius: float) -> None:
    target = make(name).compile().geom("target")
    assert target.type == mujoco.mjtGeom.mjGEOM_SPHERE
    assert target.size[0] == radius


@pytest.mark.parametrize(("name", "most"), [("WalkerRun", 0.6), ("HumanoidRun", 0.6), ("SwimmerSwimmer6", 0.6)])
def test_capacity_is_more_than_random_motion_needs(name: str, most: float) -> None:
    task, random = make(name), np.random.default_rng(0)
    model, start = task.compile(), draw(name)
    data, contacts, rows = mujoco.MjData(model), 0, 0
    for world in range(12):
        mujoco.mj_resetData(model, data)
        data.qpos[:] = start.qpos[world]
        for _ in range(30):
            data.ctrl[:] = random.uniform(-1, 1, model.nu)
            for _ in range(task.timing.physics_steps):
                mujoco.mj_step(model, data)
                contacts, rows = max(contacts, data.ncon), max(rows, data.nefc)
    assert task.nconmax is not None
    assert task.njmax is not None
    assert contacts <= most * task.nconmax
    assert rows <= most * task.njmax
    assert rows > 0


@pytest.mark.parametrize("direction", [-1.0, 1.0])
def test_the_wrist_stays_within_its_range(direction: float) -> None:
    env = VectorEnv(make("ReacherEasy"), 1, threads=1)
    action, widest = torch.tensor([[0.0, direction]]), 0.0
    assert env.task.njmax is not None
    assert env.task.njmax >= 1  # Playground's 0 leaves no room for the limit
    for _ in range(150):
        env.step(action)
        widest = max(widest, direction * float(env.sim.qpos[0, 1]))
    assert math.radians(159) < widest < math.radians(170)  # the limit is a soft one


# --- formulas ----------------------------------------------------------------------------------


def with_our_options(robot: Robot) -> Any:
    physics = robot.physics()
    for option, (_, ours) in robot.options.items():
        setattr(physics.model.opt, option, ours)
    return physics


def place(physics: Any, task: base.Task, qpos: np.ndarray, qvel: np.ndarray, target: np.ndarray | None) -> None:
    """dm_control's world in a given state, its target where ours is."""
    if isinstance(task, reacher.Reacher):
        physics.named.model.geom_size["target", 0] = task._target_size
    with physics.reset_context():
        if target is not None:
            physics.named.model.geom_pos["target"] = target
        physics.data.qpos[:], physics.data.qvel[:] = qpos, qvel
    physics.data.qacc_warmstart[:] = 0.0


def their_observation(robot: Robot, task: base.Task, physics: Any) -> np.ndarray:
    return flat(robot.view(physics, task.get_observation(physics)))


def visited_states(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Random poses, each left alone or moved on by a few random actions: qpos, qvel and targets (N, 1, 3)."""
    robot, task = TASKS[name]
    random, physics = np.random.default_rng(1), with_our_options(robot)
    steps, states = make(name).timing.physics_steps, []
    for index in range(STATES):
        qpos, qvel, target = robot.pose(random)
        if index % 3 == 0:
            place(physics, task, qpos, qvel, target)
            for action in some_actions(random, 2, physics.model.nu):
                physics.set_control(action)
                physics.step(steps)
            qpos, qvel = physics.data.qpos.copy(), physics.data.qvel.copy()
        states.append((qpos, qvel, target))
    targets = None if states[0][2] is None else np.array([target for _, _, target in states])[:, None]
    return np.array([qpos for qpos, _, _ in states]), np.array([qvel for _, qvel, _ in states]), targets


def test_observation_and_reward_are_dm_controls_on_random_states(name: str) -> None:
    task, (robot, theirs) = make(name), TASKS[name]
    qpos, qvel, targets = visited_states(name)
    model = task.compile()
    action = some_actions(np.random.default_rng(2), STATES, model.nu)

    sim = NativeSimulation(model, STATES, dry_run(task, model).fields, task.timing.physics_steps, threads=2)
    everyone, mocap = torch.ones(STATES, dtype=torch.bool), None if targets is None else torch.from_numpy(targets)
    sim.reset(everyone, torch.from_numpy(qpos), torch.from_numpy(qvel), mocap)
    observation = concatenate(task.observe(sim, {})).numpy()
    reward = task.reward(sim, {}, torch.from_numpy(action)).numpy()

    physics, expected, paid = with_our_options(robot), [], []
    for world in range(STATES):
        place(physics, theirs, qpos[world], qvel[world], None if targets is None else targets[world, 0])
        physics.set_control(action[world])
        physics.forward()
        expected.append(their_observation(robot, theirs, physics))
        paid.append(theirs.get_reward(physics))
    np.testing.assert_allclose(observation, np.array(expected), rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(reward, np.array(paid), rtol=0, atol=TOLERANCE)
    # What follows shows that the states put the functions to the test.
    assert np.std(paid) > 0.05
    assert np.mean(np.array(paid) > 0.01) > 0.1
    assert np.std(expected, axis=0).min() > 0.01


def test_control_steps_are_dm_controls(name: str) -> None:
    """Our whole environment beside dm_control: the same start, target and actions."""
    robot, theirs = TASKS[name]
    worlds, env = 2, VectorEnv(make(name), 2, seed=3, threads=2)
    env.restart(random_phase=False)
    physics = [with_our_options(robot) for _ in range(worlds)]
    for world, one in enumerate(physics):
        target = env.sim.mocap_pos[world, 0].numpy() if env.model.nmocap else None
        place(one, theirs, env.sim.qpos[world].numpy(), env.sim.qvel[world].numpy(), target)
        first = their_observation(robot, theirs, one)
        np.testing.assert_allclose(env.observation[world].numpy(), first, rtol=0, atol=TOLERANCE)
        one.data.qacc_warmstart[:] = 0.0
    for actions in some_actions(np.random.default_rng(4), 20, worlds, env.action_size):
        step = env.step(torch.from_numpy(actions))
        assert step.observation.isfinite().all()
        assert ((step.reward >= 0) & (step.reward <= 1)).all()
        assert not (step.terminated | step.truncated).any()
        for world, (one, action) in enumerate(zip(physics, actions, strict=True)):
            one.set_control(action)
            one.step(env.task.timing.physics_steps)
            expected = their_observation(robot, theirs, one)
            np.testing.assert_allclose(step.observation[world].numpy(), expected, rtol=0, atol=TOLERANCE)
            assert step.reward[world].item() == pytest.approx(theirs.get_reward(one), abs=TOLERANCE)


@pytest.mark.parametrize("name", ["PendulumSwingup", "CartpoleBalanceSparse"])
def test_rounding_above_a_cosine_of_one_costs_nothing(name: str) -> None:
    task = make(name)
    model = task.compile()
    sim = NativeSimulation(model, 1, dry_run(task, model).fields, 1, threads=1)
    sim._tensors["xmat"] = torch.full((1, model.nbody, 3, 3), 1 + 1e-7)
    sim.qpos.zero_()
    assert task.reward(sim, {}, torch.zeros(1, 1)).item() == 1.0


# --- starts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["WalkerStand", "WalkerWalk", "WalkerRun"])
def test_walker_starts_anywhere_at_rest(name: str) -> None:
    start = draw(name)
    assert not start.qpos[:, :2].any()
    assert not start.qvel.any()
    for column, (low, high) in zip(
        start.qpos.T[2:], [(-180, 180), *[(-20, 100), (-150, 0), (-45, 45)] * 2], strict=True
    ):
        assert_uniform(column, math.radians(low), math.radians(high))
    assert_independent(start.qpos[:, 2:])


@pytest.mark.parametrize("name", ["HumanoidStand", "HumanoidWalk", "HumanoidRun"])
def test_humanoid_always_starts_in_the_models_pose(name: str) -> None:
    start = draw(name)
    assert (start.qpos == torch.tensor([0, 0, 1.5, 1, *[0] * 24])).all()
    assert not start.qvel.any()


@pytest.mark.parametrize("name", ["ReacherEasy", "ReacherHard"])
def test_reacher_starts_with_any_arm_and_a_target_in_reach(name: str) -> None:
    start = draw(name)
    assert start.mocap_pos is not None
    assert not start.qvel.any()
    x, y, z = start.mocap_pos[:, 0].T
    radius, angle = torch.hypot(x, y), torch.atan2(x, y)
    assert (z == 0.01).all()
    assert_uniform(start.qpos[:, 0], -PI, PI)
    assert_uniform(start.qpos[:, 1], -math.radians(160), math.radians(160))
    assert_uniform(radius, 0.05, 0.2)
    assert_uniform(angle, -PI, PI)
    assert_independent(torch.cat([start.qpos, radius[:, None], angle[:, None]], dim=1))


def test_pendulum_starts_on_one_side_at_rest() -> None:
    start = draw("PendulumSwingup")
    assert_uniform(start.qpos[:, 0], 0, PI)
    assert_independent(start.qpos)
    assert not start.qvel.any()


def test_point_mass_starts_anywhere_at_rest() -> None:
    start = draw("PointMass")
    for column in start.qpos.T:
        assert_uniform(column, -0.29, 0.29)
    assert_independent(start.qpos)
    assert not start.qvel.any()


def test_swimmer_starts_in_any_shape_with_a_near_or_far_target() -> None:
    start = draw("SwimmerSwimmer6")
    assert start.mocap_pos is not None
    assert not start.qpos[:, :2].any()
    assert not start.qvel.any()
    assert_uniform(start.qpos[:, 2], -PI, PI)
    for column in start.qpos.T[3:]:
        assert_uniform(column, -PI / 3, PI / 3)
    x, y, z = start.mocap_pos[:, 0].T
    assert (z == 0.05).all()
    for column in (x, y):
        assert column.abs().max() <= 2
        mixture = stats.kstest(column.numpy(), lambda v: 0.8 * stats.uniform(-2, 4).cdf(v) + 0.2 * near_box(v))
        assert mixture.pvalue > 1e-3
    # Both coordinates come from the same box: 0.2, and the share of the large box that lies in the small one.
    inside = ((x.abs() <= 0.3) & (y.abs() <= 0.3)).double().mean()
    assert inside.item() == pytest.approx(0.2 + 0.8 * 0.15**2, abs=0.012)
    assert abs(torch.corrcoef(torch.stack([x, y, *start.qpos.T[2:]])).triu(1)).max() < 5 / math.sqrt(len(x))


def near_box(values: np.ndarray) -> np.ndarray:
    return np.asarray(stats.uniform(-0.3, 0.6).cdf(values))


@pytest.mark.parametrize(("name", "angle"), [("CartpoleBalanceSparse", None), ("CartpoleSwingupSparse", PI)])
def test_sparse_cartpole_starts_as_the_dense_one(name: str, angle: float | None) -> None:
    start = draw(name)
    assert torch.equal(start.qpos, draw(name.removesuffix("Sparse")).qpos)
    for column in start.qvel.T:
        assert_normal(column, 0.0, 0.01)
    if angle is None:
        assert_uniform(start.qpos[:, 0], -0.1, 0.1)
        assert_uniform(start.qpos[:, 1], -0.034, 0.034)
    else:
        assert_normal(start.qpos[:, 1], angle, 0.01)
    assert_independent(torch.cat([start.qpos, start.qvel], dim=1))


@pytest.mark.parametrize("name", TARGETS)
def test_the_first_observation_shows_the_episodes_own_target(name: str) -> None:
    """Right after a restart, and in the step in which the next episode begins."""
    env = VectorEnv(make(name), 64, seed=5, threads=2)
    env.restart(random_phase=False)
    before = env.sim.mocap_pos.clone()
    check_distance(env)
    env.refresh_starts()  # as before each rollout; without it the supply begins again from its first row
    env.episode_step.fill_(env.episode_length - 1)
    step = env.step(torch.zeros(64, env.action_size))
    assert step.truncated.all()
    assert (env.sim.mocap_pos[:, 0, :2] - before[:, 0, :2]).abs().amax(dim=1).min() > 1e-4
    check_distance(env)


def check_distance(env: VectorEnv) -> None:
    """`to_target` is as long as the way from the finger or nose, by MuJoCo's own kinematics, to the mocap body."""
    begin = list(env.layout.observation).index("to_target")
    offset = sum(list(env.layout.observation.values())[:begin])
    data = mujoco.MjData(env.model)
    tip = "nose" if env.task.name.startswith("Swimmer") else "finger"
    for world in range(env.num_worlds):
        data.qpos[:] = env.sim.qpos[world].numpy()
        mujoco.mj_kinematics(env.model, data)
        way = env.sim.mocap_pos[world, 0].numpy() - data.geom(tip).xpos
        seen = env.observation[world, offset : offset + 2].numpy()
        assert np.linalg.norm(seen) == pytest.approx(np.linalg.norm(way[:2]), abs=TOLERANCE)
