"""Acrobot, ball in cup, cheetah, finger and fish against dm_control's code and a second statement of the edits.

Where MuJoCo Playground, and we with it, differ from dm_control:

- Models: explicit Euler damping is off and the solver stops earlier, in all of them. Acrobot: Euler instead of RK4,
  no energy flag. Finger: implicitfast, pyramidal cone, decoration that does not collide, half the physics step, the
  target on a mocap body. Fish: no contacts, half the physics step, a massive sphere instead of a box, the target on a
  mocap body. `EDITS` states this a second time, as changes to dm_control's XML text, and a test holds our models
  against it; dm_control's own Physics and Task then run on that text.
- Observations: the fish's uprightness comes first and its joints second, in dm_control the other way round. Where we
  have two terms for one of dm_control's, such as `sine, cosine` for `orientations`, the numbers are the same.
- Starts: the ball always hangs still, the finger may be in the spinner, the fish is at z = 0 instead of 0.1.
- Rewards: the same.

Where ours differ from Playground's: derived quantities belong to the new state, the first observation shows the
episode's own target, and the finger's hinge is drawn independently of its joints. In all three dm_control is right.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mujoco
import numpy as np
import pytest
import torch
from dm_control.suite import common
from suite_first import EDITS, FACTS, STATES, TOLERANCE, Facts, Pose
from test_suite_against_dm_control import flat, options, random_actions
from test_tasks import assert_independent, assert_uniform, draw

import envs.vector_env
from envs.draws import BatchDraws
from envs.dry_run import concatenate, dry_run
from envs.native_simulation import NativeSimulation
from envs.task import Task
from envs.vector_env import VectorEnv, action_range
from gorl_robotics.config import Config, resolve
from tasks import make


@pytest.fixture(params=FACTS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def few_settled_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settling the thousands of starts that training takes would need most of these tests' time."""
    monkeypatch.setattr(envs.vector_env, "SETTLED_STARTS", 64)


def their_physics(facts: Facts) -> Any:
    """dm_control's Physics of its XML with the edits made in the text."""
    text = common.read_model(f"{facts.suite.__name__.rpartition('.')[2]}.xml").decode()
    for old, new in EDITS[facts.edits]:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return facts.suite.Physics.from_xml_string(text, common.ASSETS)


def place(physics: Any, pose: Pose) -> None:
    with physics.reset_context():
        physics.data.qpos[:], physics.data.qvel[:] = pose.qpos, pose.qvel
        if physics.model.nmocap:
            physics.data.mocap_pos[:] = pose.target
    physics.data.qacc_warmstart[:] = 0.0


def their_view(facts: Facts, physics: Any) -> tuple[np.ndarray, float]:
    terms = facts.task.get_observation(physics)
    return flat({term: terms[term] for term in facts.terms or terms}), float(facts.task.get_reward(physics))


# --- numbers -----------------------------------------------------------------------------------


def test_dimensions_terms_and_time_steps(name: str) -> None:
    task, facts = make(name), FACTS[name]
    model = task.compile()
    assert (model.nq, model.nv, model.nu) == facts.sizes
    assert list(dry_run(task, model).observation.items()) == list(facts.observation.items())
    assert list(task.units) == list(facts.observation)
    assert (task.timing.control, task.timing.physics) == (facts.control, facts.physics)
    assert model.opt.timestep == facts.physics
    assert task.episode_length == 1000
    assert task.settle_steps == (200 if name == "CheetahRun" else 0)
    assert model.body_mass.sum() == pytest.approx(facts.mass, abs=5e-4 * max(1.0, facts.mass / 10))
    for bound, limit in zip(action_range(model), (-1.0, 1.0), strict=True):
        assert bound.tolist() == [limit] * model.nu


def test_discount_is_set_where_it_is_a_fact_about_the_task(name: str) -> None:
    config = resolve({"task": name}, {}, make(name).overrides)
    assert config.ppo.discount == (0.95 if name in ("FingerSpin", "BallInCup") else Config().ppo.discount)


def test_the_model_is_dm_controls_with_the_listed_edits(name: str) -> None:
    ours, theirs = make(name).compile(), their_physics(FACTS[name]).model
    assert options(ours.opt) == options(theirs.opt)
    prefixes = ("body_", "jnt_", "dof_", "geom_", "site_", "actuator_", "sensor_", "tendon_", "wrap_", "qpos0")
    fields = [field for field in dir(ours) if field.startswith(prefixes)]
    assert len(fields) > 100
    for field in fields:
        np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field), err_msg=field)


# --- observation and reward --------------------------------------------------------------------


def visited(facts: Facts, physics: Any, steps: int) -> Iterator[Pose]:
    """Random poses and what random actions make of them."""
    random = np.random.default_rng(1)
    while True:
        pose = facts.pose(random)
        place(physics, pose)
        for action in random_actions(random, 5, physics.model.nu):
            yield Pose(physics.data.qpos.copy(), physics.data.qvel.copy(), pose.target)
            physics.set_control(action)
            physics.step(steps)


def our_view(task: Task, poses: list[Pose], action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    model = task.compile()
    sim = NativeSimulation(model, len(poses), dry_run(task, model).fields, task.timing.physics_steps, threads=2)
    qpos, qvel = (torch.from_numpy(np.array([pose[i] for pose in poses])) for i in range(2))
    targets = torch.from_numpy(np.array([pose.target for pose in poses]))[:, None] if model.nmocap else None
    sim.place(torch.ones(len(poses), dtype=torch.bool), qpos, qvel, targets, None)
    sim.ctrl.copy_(torch.from_numpy(action))
    sim.forward()
    return concatenate(task.observe(sim, {})).numpy(), task.reward(sim, {}, torch.from_numpy(action)).numpy()


def test_observation_and_reward_are_dm_controls_on_random_states(name: str) -> None:
    task, facts = make(name), FACTS[name]
    physics = their_physics(facts)
    states = visited(facts, physics, task.timing.physics_steps)
    poses = [next(states) for _ in range(STATES)]
    actions = random_actions(np.random.default_rng(2), STATES, physics.model.nu)
    theirs = []
    for pose, action in zip(poses, actions, strict=True):
        place(physics, pose)
        physics.set_control(action)
        physics.forward()
        theirs.append(their_view(facts, physics))
    observations, rewards = (np.array(part) for part in zip(*theirs, strict=True))
    observation, reward = our_view(task, poses, actions)
    np.testing.assert_allclose(observation, observations, rtol=1e-6, atol=TOLERANCE)
    np.testing.assert_allclose(reward, rewards, rtol=0, atol=TOLERANCE)
    # What follows shows that the states put the functions to the test.
    assert np.std(rewards) > 0.05
    assert 0.05 < np.mean(rewards > 0.5) < 0.95
    assert observations.std(axis=0).min() > 1e-3
    if name.startswith("Finger"):
        assert (observations[:, 7:9] > 0).mean(axis=0).min() > 0.01


def test_fifty_control_steps_are_dm_controls(name: str) -> None:
    worlds, facts = 4, FACTS[name]
    env = VectorEnv(make(name), worlds, seed=3, threads=2)
    env.restart(random_phase=False)
    physics = [their_physics(facts) for _ in range(worlds)]
    for i, one in enumerate(physics):
        target = env.sim.mocap_pos[i].numpy() if env.model.nmocap else None
        place(one, Pose(env.sim.qpos[i].numpy(), env.sim.qvel[i].numpy(), target))
    for actions in random_actions(np.random.default_rng(4), 50, worlds, env.action_size):
        step = env.step(torch.from_numpy(actions))
        for one, action in zip(physics, actions, strict=True):
            one.set_control(action)
            one.step(env.task.timing.physics_steps)
        observations, rewards = zip(*(their_view(facts, one) for one in physics), strict=True)
        np.testing.assert_allclose(step.observation.numpy(), np.array(observations), rtol=1e-6, atol=TOLERANCE)
        np.testing.assert_allclose(step.reward.numpy(), np.array(rewards), rtol=0, atol=TOLERANCE)


def test_twenty_random_steps_are_finite_and_paid_between_0_and_1(name: str) -> None:
    env = VectorEnv(make(name), 16, seed=0, threads=2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        step = env.step(2 * torch.rand(16, env.action_size, generator=generator) - 1)
        assert step.observation.isfinite().all()
        assert ((step.reward >= 0) & (step.reward <= 1)).all()
        assert not step.terminated.any()
    env.check()


# --- starts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparse", ["", "Sparse"])
def test_acrobot_starts_anywhere_at_rest(sparse: str) -> None:
    start = draw(f"AcrobotSwingup{sparse}")
    for column in start.qpos.T:
        assert_uniform(column, -np.pi, np.pi)
    assert_independent(start.qpos)
    assert not start.qvel.any()


def test_ball_in_cup_starts_from_one_pose() -> None:
    start = draw("BallInCup")
    assert not start.qpos.any()
    assert not start.qvel.any()


def test_cheetah_starts_level_with_any_joint_angles() -> None:
    start = draw("CheetahRun")
    assert not start.qpos[:, :3].any()
    assert not start.qvel.any()
    degrees = [(-30, 60), (-50, 50), (-230, 50), (-57, 0.4), (-70, 50), (-28, 28)]
    for column, (low, high) in zip(start.qpos.T[3:], degrees, strict=True):
        assert_uniform(column, *np.deg2rad([low, high]))
    assert_independent(start.qpos[:, 3:])


def test_cheetah_has_fallen_for_two_hundred_steps_when_its_episode_begins() -> None:
    task = make("CheetahRun")
    env = VectorEnv(task, 8, seed=5, threads=2)
    # The same draws, dropped by MuJoCo itself.
    drawn = task.initial_state(env.starts.simulation, BatchDraws(64, torch.Generator().manual_seed(5), torch.float64))
    data = mujoco.MjData(env.model)
    for i in range(8):
        mujoco.mj_resetData(env.model, data)
        data.qpos[:] = drawn.qpos[i].numpy()
        mujoco.mj_forward(env.model, data)
        mujoco.mj_step(env.model, data, 200)
        np.testing.assert_allclose(env.sim.qpos[i].numpy(), data.qpos, rtol=0, atol=1e-9)
        np.testing.assert_allclose(env.sim.qvel[i].numpy(), data.qvel, rtol=0, atol=1e-9)
        expected = np.concatenate([data.qpos[1:], data.qvel])
        np.testing.assert_allclose(env.observation[i].numpy(), expected, rtol=0, atol=1e-6)
    assert env.sim.qvel.any(dim=1).all()
    assert (env.sim.qpos[:, 1] < -0.05).all()


@pytest.mark.parametrize("task", ["FingerSpin", "FingerTurnEasy", "FingerTurnHard"])
def test_finger_starts_anywhere_at_rest(task: str) -> None:
    start = draw(task)
    assert not start.qvel.any()
    for column, degrees in zip(start.qpos.T, (110, 110, 180), strict=True):
        assert_uniform(column, *np.deg2rad([-degrees, degrees]))
    columns = [start.qpos]
    if task == "FingerSpin":
        assert start.mocap_pos is None
    else:
        assert start.mocap_pos is not None
        x, y, z = start.mocap_pos[:, 0].T
        angle = torch.atan2(x - 0.2, z - 0.4)
        np.testing.assert_allclose(torch.hypot(x - 0.2, z - 0.4), 0.13, rtol=0, atol=1e-12)
        assert not y.any()
        assert_uniform(angle, -np.pi, np.pi)
        columns.append(angle[:, None])
    assert_independent(torch.cat(columns, dim=1))


def test_fish_starts_at_the_origin_in_any_orientation() -> None:
    start = draw("FishSwim")
    assert not start.qvel.any()
    assert not start.qpos[:, :3].any()
    quaternion, joints = start.qpos[:, 3:7], start.qpos[:, 7:]
    np.testing.assert_allclose(quaternion.norm(dim=1), 1.0, rtol=0, atol=1e-12)
    # Of a uniformly random orientation every element of the rotation matrix is uniform (Archimedes' hat-box theorem).
    upright = 1 - 2 * (quaternion[:, 1] ** 2 + quaternion[:, 2] ** 2)
    assert_uniform(upright, -1, 1)
    assert_uniform(2 * (quaternion[:, 1] * quaternion[:, 3] + quaternion[:, 0] * quaternion[:, 2]), -1, 1)
    for column in joints.T:
        assert_uniform(column, -0.2, 0.2)
    assert start.mocap_pos is not None
    target = start.mocap_pos[:, 0]
    for column, (low, high) in zip(target.T, [(-0.4, 0.4), (-0.4, 0.4), (0.1, 0.3)], strict=True):
        assert_uniform(column, low, high)
    assert_independent(torch.cat([upright[:, None], joints, target], dim=1))
    assert_independent(torch.cat([quaternion[:, :1], joints, target], dim=1))


@pytest.mark.parametrize("task", ["FingerTurnEasy", "FingerTurnHard", "FishSwim"])
def test_the_first_observation_shows_the_episodes_own_target(task: str) -> None:
    env = VectorEnv(make(task), 32, seed=1, threads=2)
    before = env.sim.mocap_pos.clone()
    assert_shows_target(env, env.observation)
    env.refresh_starts()
    env.episode_step.fill_(env.episode_length - 1)
    assert env.step(torch.zeros(32, env.action_size)).truncated.all()
    assert (env.sim.mocap_pos != before).any(dim=-1).all()
    assert_shows_target(env, env.observation)


def assert_shows_target(env: VectorEnv, observation: torch.Tensor) -> None:
    """By plain arithmetic on the state: the hinge is at (0.2, 0.4), the mouth 7.45 cm ahead of the fish's centre."""
    target, qpos = env.sim.mocap_pos[:, 0].numpy(), env.sim.qpos.numpy()
    for i, shown in enumerate(observation.numpy()):
        if env.task.name == "FishSwim":
            matrix = np.empty(9)
            mujoco.mju_quat2Mat(matrix, qpos[i, 3:7])
            x, y, z = (target[i] - qpos[i, :3]) @ matrix.reshape(3, 3) - [0, 0.0745, 0]
            np.testing.assert_allclose(shown[8:11], [x, -z, y], rtol=0, atol=1e-6)  # turned by -90° about x
            continue
        apart = target[i, ::2] - [0.2, 0.4]
        tip = 0.13 * np.array([-np.sin(qpos[i, 2]), np.cos(qpos[i, 2])])
        np.testing.assert_allclose(shown[9:11], apart, rtol=0, atol=1e-6)
        radius = 0.07 if env.task.name == "FingerTurnEasy" else 0.03
        np.testing.assert_allclose(shown[11], np.linalg.norm(apart - tip) - radius, rtol=0, atol=1e-6)
