"""Ant against gymnasium's own Ant-v5, and what AntVelocity pays for, commands and draws."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
import torch

import tasks
from envs.draws import BatchDraws
from envs.dry_run import RecordingFields, dry_run
from envs.fields import Fields
from envs.task import State, Task
from envs.vector_env import VectorEnv
from gorl_robotics.errors import InputError
from tasks.ant_velocity import FASTEST, AntVelocity

FIELDS = ("qpos", "qvel", "xpos", "cfrc_ext")


@pytest.fixture(scope="module")
def theirs() -> Iterator[Any]:
    env = gymnasium.make("Ant-v5").unwrapped
    yield env
    env.close()


def seen(task: Task, data: mujoco.MjData, model: mujoco.MjModel) -> Fields:
    """Gymnasium's data as one world."""
    tensors = {name: torch.from_numpy(np.array(getattr(data, name)))[None] for name in FIELDS}
    return Fields(model, tensors, 1)


def test_time_steps_and_sizes_are_those_of_ant_v5(theirs: Any) -> None:
    task = tasks.make("Ant")
    model = task.compile()
    assert (task.timing.control, task.timing.physics) == (theirs.dt, theirs.model.opt.timestep) == (0.05, 0.01)
    assert dry_run(task, model).observation_size == theirs.observation_space.shape[0] == 105
    assert task.episode_length == gymnasium.spec("Ant-v5").max_episode_steps
    for name in ("body_mass", "actuator_gear", "actuator_ctrlrange", "geom_friction", "jnt_range", "qpos0"):
        assert (getattr(model, name) == getattr(theirs.model, name)).all(), name
    assert model.opt.integrator == theirs.model.opt.integrator


def test_reward_end_and_observation_are_those_of_ant_v5_on_its_transitions(theirs: Any) -> None:
    """Both formulas on the same numbers: gymnasium's fields after each of its own random steps."""
    task, random = tasks.make("Ant"), np.random.default_rng(0)
    model = task.compile()
    ends, contacts = 0, 0.0
    for episode in range(12):
        theirs.reset(seed=episode)
        state: State = {"x": torch.from_numpy(theirs.data.body("torso").xpos[:1].copy())}
        theirs.data.qvel[2] = 4.0 * (episode % 4)  # some jump too high
        for _ in range(40):
            action = random.uniform(-1, 1, 8)
            observation, reward, terminated, _, info = theirs.step(action)
            sim = seen(task, theirs.data, model)
            ours = task.reward(sim, state, torch.from_numpy(action)[None])
            assert float(ours) == pytest.approx(reward, abs=1e-9)
            assert bool(task.terminated(sim, state)) == terminated
            np.testing.assert_allclose(torch.cat([*task.observe(sim, state).values()], dim=1)[0], observation)
            state = task.update(sim, state, BatchDraws(1, torch.Generator(), torch.float64))
            ends, contacts = ends + terminated, contacts - info["reward_contact"]
            if terminated:
                break
    assert ends >= 3
    assert contacts > 0.05


def test_the_environment_pays_nearly_what_ant_v5_pays(theirs: Any) -> None:
    """From the same state with the same action; they differ by where within the last physics step they look."""
    env, random = VectorEnv(tasks.make("Ant"), 1, threads=1), np.random.default_rng(1)
    differences = []
    for episode in range(6):
        theirs.reset(seed=episode)
        for _ in range(40):
            copied = {name: torch.from_numpy(getattr(theirs.data, name).copy())[None] for name in ("qpos", "qvel")}
            copied["qacc_warmstart"] = torch.from_numpy(theirs.data.qacc_warmstart.copy())[None]
            env.sim.load_state_dict({**env.sim.state_dict(), **copied})
            env.state["x"].copy_(copied["qpos"][:, 0])
            action = random.uniform(-1, 1, 8)
            _, reward, terminated, _, _ = theirs.step(action)
            env.apply(torch.from_numpy(action)[None].float())
            env.physics()
            np.testing.assert_allclose(env.sim.qpos[0], theirs.data.qpos, atol=1e-6)
            assert bool(env.finish().terminated) == terminated
            differences.append(float(env.buffers.reward) - reward)
    assert np.median(np.abs(differences)) < 0.01
    assert np.max(np.abs(differences)) < 0.15
    assert abs(np.mean(differences)) < 3e-3


def test_starts_are_those_of_ant_v5(theirs: Any) -> None:
    sim = VectorEnv(tasks.make("Ant"), 4000, threads=2).starts.simulation
    drawn = np.stack([theirs.reset(seed=seed)[0][:27] for seed in range(300)])
    drawn[:, 1:5] /= np.linalg.norm(drawn[:, 1:5], axis=1, keepdims=True)
    ours = torch.cat([sim.qpos[:, 2:], sim.qvel], dim=1).numpy()
    assert np.abs(ours.mean(axis=0) - drawn.mean(axis=0)).max() < 0.03
    assert np.abs(ours.std(axis=0) - drawn.std(axis=0)).max() < 0.03
    assert (sim.qpos[:, 3:7].norm(dim=1) - 1).abs().max() < 1e-12


def test_a_field_that_no_sensor_makes_mujoco_compute_is_refused() -> None:
    class Blind(type(tasks.make("Ant"))):  # type: ignore[misc]
        def model(self) -> mujoco.MjSpec:
            spec = super().model()
            spec.delete(spec.sensor("acceleration"))
            return spec

    task = Blind()
    with pytest.raises(InputError, match="'cfrc_ext' is computed for a sensor only: add an accelerometer"):
        dry_run(task, task.compile())


# --- the commanded ant ---------------------------------------------------------------------------


def upright(worlds: int = 2) -> tuple[AntVelocity, RecordingFields, State]:
    task = AntVelocity()
    sim = RecordingFields(task.compile(), worlds)
    state = task.initial_state(sim, BatchDraws(worlds, torch.Generator().manual_seed(0), torch.float64)).state
    return task, sim, state


def test_commands_change_in_some_worlds_and_stay_in_the_others() -> None:
    task, sim, state = upright(250)
    assert state["command"].abs().max() <= FASTEST
    assert (state["command"].std(dim=0) - FASTEST / 3**0.5).abs().max() < 0.1 * FASTEST
    random, changes = BatchDraws(250, torch.Generator().manual_seed(1), torch.float64), []
    for _ in range(20):
        after = task.update(sim, dict(state), random)
        changed = (after["command"] != state["command"]).all(dim=1)
        assert (after["command"] == state["command"]).all(dim=1).eq(~changed).all()
        changes.append(changed.double().mean())
    assert torch.stack(changes).mean() == pytest.approx(0.05 / 3.0, abs=0.006)


def test_tracking_is_paid_and_effort_costs() -> None:
    task, sim, state = upright()
    still, full = torch.zeros(2, 8, dtype=torch.float64), torch.ones(2, 8, dtype=torch.float64)
    state["command"] = torch.tensor([[0.0, 0.0], [0.5, 0.0]], dtype=torch.float64)
    assert task.reward(sim, state, still).tolist() == pytest.approx([1.0, np.exp(-1.0)])
    sim.sensordata[:, sim.sensor("linear_velocity")] = torch.tensor([0.5, 0.0, 3.0], dtype=torch.float64)
    assert task.reward(sim, state, still).tolist() == pytest.approx([np.exp(-1.0), 1.0])
    assert task.reward(sim, state, full).tolist() == pytest.approx([np.exp(-1.0) - 0.032, 0.968])
    assert task.reward(sim, {**state, "last_action": full}, full).tolist()[1] == pytest.approx(0.984)
    sim.sensordata[:, sim.sensor("angular_velocity")] = 0.5
    assert task.reward(sim, state, still).tolist()[1] == pytest.approx(1 - 0.005 * 0.75)
    sim.sensordata[:, sim.sensor("angular_velocity")] = 9.0
    assert task.reward(sim, state, full).tolist() == [0.0, 0.0]


def test_it_ends_when_the_torso_is_too_low_or_upside_down() -> None:
    task, sim, state = upright(3)
    sim.qpos[1, 2] = 0.15
    sim.xmat[2, sim.body("torso")] = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    assert task.terminated(sim, state).tolist() == [False, True, True]


def test_velocity_is_what_the_torso_sees() -> None:
    env = VectorEnv(AntVelocity(), 3, threads=1, noise=False)
    quarter = torch.tensor([0.5**0.5, 0.0, 0.0, 0.5**0.5], dtype=torch.float64)  # faces y
    qpos = env.sim.qpos.clone()
    qpos[:, 3:7], qpos[:, 2] = quarter, 0.9
    qvel = torch.zeros_like(env.sim.qvel)
    qvel[:, 1] = 1.0  # moves along y
    env.sim.reset(torch.ones(3, dtype=torch.bool), qpos, qvel)
    velocity = env.task.velocity(env.sim)  # type: ignore[attr-defined]
    torch.testing.assert_close(velocity[0], torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64), atol=1e-9, rtol=0)
