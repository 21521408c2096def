"""Our suite tasks against dm_control's own code, on the same states and along the same trajectories.

Where ours follow MuJoCo Playground instead of dm_control, and how that is bridged here:

- Options: Playground's are faster. `HOPPER_OPTIONS` and `CARTPOLE_OPTIONS` list every one that differs, and a
  test holds them against the two models. Here dm_control's Physics gets our options; the rest of its model is
  its own and must equal ours.
- Hopper: observation terms, order and reward are the same.
- Cartpole: dm_control joins cart position and pole direction to one term `position`; ours are two.
- Reward: dm_control reads the control, ours the action: the same number, the control range being [-1, 1].
- Start: a fresh world of ours has no warm start, dm_control's has that of a forward pass without actuation.
  The solver stops after few iterations, so the trajectories would part; both begin with none here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mujoco
import numpy as np
import pytest
import torch
from dm_control.suite import base, cartpole, hopper

from envs.dry_run import concatenate, dry_run
from envs.native_simulation import NativeSimulation
from envs.task import Task
from envs.vector_env import VectorEnv
from tasks import make

STATES = 1000
TOLERANCE = 1e-5
DisableBit, EnableBit, Integrator = mujoco.mjtDisableBit, mujoco.mjtEnableBit, mujoco.mjtIntegrator


@dataclass(frozen=True)
class Reference:
    """dm_control's version of one of our tasks."""

    physics: Callable[[], hopper.Physics | cartpole.Physics]
    task: base.Task
    options: dict[str, tuple[int, int]]  # option: dm_control's value, ours
    pose: Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]]  # a random qpos and qvel


HOPPER_OPTIONS = {
    "iterations": (100, 4),
    "ls_iterations": (50, 10),
    "disableflags": (0, int(DisableBit.mjDSBL_EULERDAMP)),
}
CARTPOLE_OPTIONS = {
    "integrator": (int(Integrator.mjINT_RK4), int(Integrator.mjINT_EULER)),
    "iterations": (100, 1),
    "ls_iterations": (50, 4),
    "disableflags": (
        int(DisableBit.mjDSBL_CONTACT),
        int(DisableBit.mjDSBL_CONTACT | DisableBit.mjDSBL_EULERDAMP),
    ),
    "enableflags": (int(EnableBit.mjENBL_ENERGY), 0),
}


def hopper_pose(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A third anything; the others nearly upright, on the foot or just above, and often moving forward."""
    low, high = np.deg2rad([[-30, -170, 5, -45], [30, 10, 150, 45]])
    joints = random.uniform(low, high)
    root = [random.uniform(-5, 5), random.uniform(-0.5, 0.3), random.uniform(-np.pi, np.pi)]
    velocity = random.normal(size=7) * [2, 1, 1, 2, 2, 2, 2]
    if random.random() < 2 / 3:
        joints = np.clip(random.normal([0.0, -0.3, 0.5, -0.2], 0.15), low, high)
        root[1:] = [random.uniform(-0.16, -0.06), random.normal(0.0, 0.1)]
        velocity = random.normal([1, 0, 0, 0, 0, 0, 0], [1.5, 0.3, 0.3, 0.5, 0.5, 0.5, 0.5])
    return np.concatenate([root, joints]), velocity


def cartpole_pose(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Any cart position (beyond the rail's end too), any angle, fast or slow."""
    return random.uniform([-2, -4], [2, 4]), random.normal(size=2) * [1, 4]


def hopper_physics() -> hopper.Physics:
    return hopper.Physics.from_xml_string(*hopper.get_model_and_assets())


def cartpole_physics() -> cartpole.Physics:
    return cartpole.Physics.from_xml_string(*cartpole.get_model_and_assets())


REFERENCES = {
    "HopperStand": Reference(hopper_physics, hopper.Hopper(hopping=False), HOPPER_OPTIONS, hopper_pose),
    "HopperHop": Reference(hopper_physics, hopper.Hopper(hopping=True), HOPPER_OPTIONS, hopper_pose),
    "CartpoleBalance": Reference(
        cartpole_physics, cartpole.Balance(swing_up=False, sparse=False), CARTPOLE_OPTIONS, cartpole_pose
    ),
    "CartpoleSwingup": Reference(
        cartpole_physics, cartpole.Balance(swing_up=True, sparse=False), CARTPOLE_OPTIONS, cartpole_pose
    ),
}


@pytest.fixture(params=REFERENCES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def physics_with_our_options(reference: Reference) -> hopper.Physics | cartpole.Physics:
    physics = reference.physics()
    for option, (_, ours) in reference.options.items():
        setattr(physics.model.opt, option, ours)
    return physics


def place(physics: hopper.Physics | cartpole.Physics, qpos: np.ndarray, qvel: np.ndarray) -> None:
    with physics.reset_context():
        physics.data.qpos[:], physics.data.qvel[:] = qpos, qvel


def flat(observation: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([np.ravel(term) for term in observation.values()])


def random_actions(random: np.random.Generator, *size: int) -> np.ndarray:
    """Numbers that float32 holds exactly, so that both sides get the same control; some at the limits."""
    return np.clip(random.uniform(-1.2, 1.2, size), -1, 1).astype(np.float32).astype(np.float64)


def visited_states(reference: Reference, steps: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Random poses and what random actions make of them."""
    random = np.random.default_rng(1)
    physics = physics_with_our_options(reference)
    while True:
        place(physics, *reference.pose(random))
        for action in random_actions(random, 25, physics.model.nu):
            yield physics.data.qpos.copy(), physics.data.qvel.copy()
            physics.set_control(action)
            physics.step(steps)


def options(opt: object) -> dict[str, object]:
    """All fields of an `mjOption` in comparable form, whichever binding it comes from."""
    fields = [field for field in dir(mujoco.MjOption) if not field.startswith("_")]
    values = {field: getattr(opt, field) for field in fields}
    return {field: np.asarray(value).tolist() for field, value in values.items() if not callable(value)}


def test_only_the_listed_options_differ(name: str) -> None:
    reference = REFERENCES[name]
    ours, theirs = options(make(name).compile().opt), options(reference.physics().model.opt)
    assert ours.keys() == theirs.keys()
    assert {"iterations", "timestep", "gravity", "solver", "cone"} <= ours.keys()
    differing = {field: (theirs[field], ours[field]) for field in ours if ours[field] != theirs[field]}
    assert differing == reference.options


def test_the_rest_of_the_model_is_the_same(name: str) -> None:
    ours, theirs = make(name).compile(), REFERENCES[name].physics().model
    prefixes = ("body_", "jnt_", "dof_", "geom_", "site_", "actuator_", "sensor_", "qpos0")
    fields = [field for field in dir(ours) if field.startswith(prefixes)]
    assert len(fields) > 100
    for field in fields:
        np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field), err_msg=field)


def our_view(task: Task, qpos: np.ndarray, qvel: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Observations (N, n) and rewards (N,) of our task in the given states."""
    model = task.compile()
    sim = NativeSimulation(model, len(qpos), dry_run(task, model).fields, task.timing.physics_steps, threads=2)
    everyone = torch.ones(len(qpos), dtype=torch.bool)
    sim.place(everyone, torch.from_numpy(qpos), torch.from_numpy(qvel), None, None)
    sim.ctrl.copy_(torch.from_numpy(action))
    sim.forward()
    observation = concatenate(task.observe(sim, {}))
    return observation.numpy(), task.reward(sim, {}, torch.from_numpy(action)).numpy()


def their_view(
    reference: Reference, qpos: np.ndarray, qvel: np.ndarray, action: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The same by dm_control's functions."""
    physics = physics_with_our_options(reference)
    observations, rewards = [], []
    for world in range(len(qpos)):
        place(physics, qpos[world], qvel[world])
        physics.data.qacc_warmstart[:] = 0.0
        physics.set_control(action[world])
        physics.forward()
        observations.append(flat(reference.task.get_observation(physics)))
        rewards.append(reference.task.get_reward(physics))
    return np.array(observations), np.array(rewards)


def test_observation_and_reward_are_dm_controls_on_random_states(name: str) -> None:
    task, reference = make(name), REFERENCES[name]
    states = visited_states(reference, task.timing.physics_steps)
    qpos, qvel = (np.array(part) for part in zip(*(next(states) for _ in range(STATES)), strict=True))
    action = random_actions(np.random.default_rng(2), STATES, task.compile().nu)
    observation, reward = our_view(task, qpos, qvel, action)
    their_observation, their_reward = their_view(reference, qpos, qvel, action)
    np.testing.assert_allclose(observation, their_observation, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(reward, their_reward, rtol=0, atol=TOLERANCE)
    # What follows shows that the states put the functions to the test.
    assert np.std(their_reward) > 0.05
    assert np.mean(their_reward > 0.01) > 0.2
    if name.startswith("Hopper"):
        assert (their_observation[:, -2:] > 0).mean(axis=0).min() > 0.1


@dataclass(frozen=True)
class Moment:
    """One control step of several worlds, by our whole environment and by dm_control."""

    ours: tuple[np.ndarray, np.ndarray]  # observations (N, n) and rewards (N,)
    theirs: tuple[np.ndarray, np.ndarray]
    new_touch: np.ndarray  # (N, 2), what touch would be if it were computed from the new state


def trajectory(name: str, worlds: int, steps: int) -> Iterator[Moment]:
    """Steps our environment and dm_control side by side with the same actions from the same starts."""
    reference, env = REFERENCES[name], VectorEnv(make(name), worlds, seed=3, threads=2)
    env.restart(random_phase=False)
    physics = [physics_with_our_options(reference) for _ in range(worlds)]
    for one, qpos, qvel in zip(physics, env.sim.qpos.numpy(), env.sim.qvel.numpy(), strict=True):
        place(one, qpos, qvel)
        one.data.qacc_warmstart[:] = 0.0
    for actions in random_actions(np.random.default_rng(4), steps, worlds, env.action_size):
        step = env.step(torch.from_numpy(actions))
        assert not (step.terminated | step.truncated).any()
        for one, action in zip(physics, actions, strict=True):
            one.set_control(action)
            one.step(env.task.timing.physics_steps)
        observations = np.array([flat(reference.task.get_observation(one)) for one in physics])
        rewards = np.array([reference.task.get_reward(one) for one in physics])
        new_touch = np.array([touch_of_the_new_state(one) for one in physics])
        yield Moment((step.observation.numpy(), step.reward.numpy()), (observations, rewards), new_touch)


def touch_of_the_new_state(physics: hopper.Physics | cartpole.Physics) -> np.ndarray:
    """What the touch sensors would show had they been recomputed after the last physics step."""
    data = mujoco.MjData(physics.model.ptr)
    mujoco.mj_copyData(data, physics.model.ptr, physics.data.ptr)
    mujoco.mj_forward(physics.model.ptr, data)
    return np.log1p(data.sensordata[-2:])


def test_two_hundred_control_steps_are_dm_controls(name: str) -> None:
    worlds, steps, touching, told_apart = 4, 200, 0, 0
    for moment in trajectory(name, worlds, steps):
        for ours, theirs in zip(moment.ours, moment.theirs, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)
        if name.startswith("Hopper"):
            touch = moment.theirs[0][:, -2:]
            touching += int((touch > 0).any(axis=1).sum())
            told_apart += int((np.abs(moment.new_touch - touch) > 10 * TOLERANCE).any(axis=1).sum())
    if name.startswith("Hopper"):
        # Touch must stay that of the last physics step, and these trajectories show the difference.
        assert touching > 0.2 * worlds * steps
        assert told_apart > 0.1 * worlds * steps
