"""The environment step: limits, resets, random phases, worlds that diverge, going on from a saved state."""

from __future__ import annotations

import math

import mujoco
import numpy as np
import pytest
import torch
from fake_task import Falling, Slider, actions, copy, same, state, variant
from torch import Tensor

import envs.vector_env
import tasks
from envs.native_simulation import NativeSimulation
from envs.simulation import SimulationError
from envs.task import Task
from envs.vector_env import VectorEnv
from gorl_robotics.errors import InputError


def hopper() -> Task:
    return tasks.make("HopperStand")


def slider_env(num_envs: int, monitors: int = 0, seed: int = 0, **attributes: float) -> VectorEnv:
    env = VectorEnv(variant(Slider, **attributes), num_envs, monitors=monitors, seed=seed)
    env.restart(random_phase=False)
    return env


def test_an_episode_that_ends_is_followed_by_the_next_in_the_same_step() -> None:
    env = slider_env(6, episode_length=5)
    for k, action in enumerate(actions(env, 5)):
        env.apply(action)
        env.physics()
        led_to = torch.cat([env.sim.qpos, env.sim.qvel], dim=1).float()
        step = env.finish()
        assert same(step.terminal_observation[:, :2], led_to)
        assert same(step.observation[:, 2:], env.state["target"].float())
        assert step.truncated.all() == (k == 4)
    assert not step.terminated.any()
    assert (step.observation[:, 0] != step.terminal_observation[:, 0]).all()
    assert (step.observation[:, 0].abs() <= 0.1).all()
    # The simulation is where the new observation says, and goes on from there.
    assert same(step.observation[:, :2], torch.cat([env.sim.qpos, env.sim.qvel], dim=1).float())
    assert (env.state["age"] == 0).all()
    before = step.observation.clone()
    after = env.step(torch.full((6, 1), -1 / 3)).observation  # no force
    torch.testing.assert_close(after[:, 0], before[:, 0] + 0.02 * before[:, 1], atol=1e-4, rtol=0)


def test_the_critic_sees_the_privileged_terms_behind_the_observation() -> None:
    env = slider_env(4, episode_length=3)
    assert (env.observation_size, env.critic_observation_size) == (3, 4)
    for k, action in enumerate(actions(env, 3)):
        step = env.step(action)
        expected = torch.cat([step.terminal_observation, torch.full((4, 1), k + 1.0)], dim=1)
        assert same(step.terminal_critic_observation, expected)
    assert same(step.critic_observation, torch.cat([step.observation, torch.zeros(4, 1)], dim=1))


def test_termination_and_truncation_are_apart_and_may_coincide() -> None:
    env = slider_env(4, episode_length=10, limit=0.5)
    env.apply(torch.zeros(4, 1))
    env.physics()
    env.sim.qpos[torch.tensor([0, 2]), 0] = 0.6
    env.episode_step.copy_(torch.tensor([3, 9, 9, 3]))
    placed = state(env)
    step = env.finish()
    assert step.terminated.tolist() == [True, False, True, False]
    assert step.truncated.tolist() == [False, True, True, False]
    assert env.episode_step.tolist() == [0, 0, 0, 4]
    assert (env.sim.qpos[:3] != placed["qpos"][:3]).all()
    assert same(env.sim.qpos[3], placed["qpos"][3])


def test_the_reward_belongs_to_the_step_that_was_taken() -> None:
    env = slider_env(3, episode_length=1)
    target = env.state["target"].clone()
    env.apply(torch.tensor([[-1.0], [0.5], [3.0]]))
    env.physics()
    expected = torch.tensor([-1.0, 0.5, 1.0]) - (env.sim.qpos - target)[:, 0].abs()
    assert same(env.finish().reward, expected.float())


def test_actions_span_the_control_range_and_are_clipped_to_it() -> None:
    env = slider_env(5)
    env.apply(torch.tensor([[-1.0], [0.0], [1.0], [-7.0], [7.0]]))
    assert env.sim.ctrl[:, 0].tolist() == [-2.0, 1.0, 4.0, -2.0, 4.0]
    env.model.actuator_ctrllimited[:] = False
    assert [bound.tolist() for bound in envs.vector_env.action_range(env.model)] == [[-1.0], [1.0]]


def test_a_reset_touches_only_the_worlds_that_are_done() -> None:
    env = VectorEnv(hopper(), 6, seed=1)
    env.restart(random_phase=False)
    for action in actions(env, 20):
        env.step(action)
    env.episode_step[torch.tensor([1, 4])] = env.task.episode_length - 1
    env.apply(actions(env, 1)[0])
    env.physics()
    before = state(env)
    step, after = env.finish(), state(env)
    done = torch.tensor([False, True, False, False, True, False])
    assert same(step.truncated, done)
    assert all(same(after[name][~done], before[name][~done]) for name in before)
    assert same(step.observation[~done], step.terminal_observation[~done])
    assert (after["qpos"][done] != before["qpos"][done]).any(dim=1).all()
    assert (before["qacc_warmstart"][done] != 0).any()
    assert (after["qacc_warmstart"][done] == 0).all()


def test_resets_differ_from_each_other_and_from_earlier_ones() -> None:
    env = VectorEnv(variant(type(hopper()), episode_length=4), 16)
    starts = [env.sim.qpos[:, 2:].clone()]
    for _ in range(6):  # rollouts of 4 steps: every world begins one episode in each
        env.refresh_starts()
        for action in actions(env, 4):
            ended = env.step(action).truncated
            starts.append(env.sim.qpos[ended][:, 2:].clone())
    for joint in torch.cat(starts).T:  # pitch, waist, hip, knee, ankle
        assert len(joint.unique()) == len(joint) == 7 * 16


def test_each_world_takes_its_own_row_of_a_supply_that_is_drawn_anew_for_each_rollout() -> None:
    env = slider_env(8, episode_length=10)
    supplies = []
    for ending in ([2, 5, 6], [0, 2]):
        env.refresh_starts()
        supplies.append(env.starts.rows(torch.arange(8)).qpos[:, 0])
        env.episode_step[torch.tensor(ending)] = 9
        step = env.step(torch.zeros(8, 1))
        assert step.truncated.nonzero().flatten().tolist() == ending
        assert same(env.sim.qpos[ending, 0], supplies[-1][ending])
    assert not set(supplies[0].tolist()) & set(supplies[1].tolist())


@pytest.mark.parametrize("size", [10, 4])  # more than there are worlds, or as many
def test_settled_starts_are_handed_out_once_each_before_any_again(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(envs.vector_env, "SETTLED_STARTS", size)
    env = VectorEnv(Falling(), 4)
    supply = env.starts.rows(torch.arange(size)).qpos[:, 0].tolist()
    assert len(set(supply)) == size
    handed = env.sim.qpos[:, 0].tolist()
    for ending in ([2, 3], [0], [1, 2, 3], [0, 2]):
        env.refresh_starts()  # draws none: settling is dear
        env.episode_step.zero_()
        env.episode_step[torch.tensor(ending)] = env.episode_length - 1
        step = env.step(torch.zeros(4, env.action_size))
        assert step.truncated.nonzero().flatten().tolist() == ending
        handed += env.sim.qpos[step.truncated, 0].tolist()
    assert handed == [supply[k % size] for k in range(12)]


def test_random_phases_cover_the_episode_and_first_partial_episodes_count_in_no_statistics() -> None:
    length, worlds = 20, 2000
    env = VectorEnv(variant(Slider, episode_length=length), worlds)
    phases = env.episode_step.clone()
    counts = torch.bincount(phases, minlength=length)
    assert len(counts) == length
    assert counts.min() > 0.5 * worlds / length
    rewards, ends = [], []
    for action in actions(env, 2 * length):
        step = copy(env.step(action))
        rewards.append(step["reward"])
        ends.append(step["truncated"])
        if len(ends) == length:
            assert same(env.last_return.isfinite(), phases == 0)
    assert env.last_return.isfinite().all()
    assert (torch.stack(ends).sum(dim=0) == 2).all()
    total = torch.stack(rewards).cumsum(dim=0)
    last = 2 * length - 1 - phases  # a world's second end
    world = torch.arange(worlds)
    first = torch.where(last >= length, total[last - length, world], 0.0)
    torch.testing.assert_close(env.last_return, total[last, world] - first, atol=1e-4, rtol=1e-5)


def poisoned(env: VectorEnv, action: Tensor, worlds: list[int]) -> dict[str, Tensor]:
    env.apply(action)
    env.sim.qvel[torch.tensor(worlds), 0] = torch.nan
    env.physics()
    return copy(env.finish())


def test_a_world_that_becomes_nonfinite_ends_without_harm() -> None:
    env, twin = (VectorEnv(hopper(), 8, seed=2) for _ in range(2))
    for both in (env, twin):
        both.restart(random_phase=False)
    for action in actions(env, 10):
        env.step(action)
        twin.step(action)
    before, action = env.observation.clone(), actions(env, 1, seed=9)[0]
    step, healthy = poisoned(env, action, [3]), copy(twin.step(action))

    others = torch.arange(8) != 3
    assert same(step["terminated"], ~others)
    assert step["reward"][3] == 0
    assert same(step["terminal_observation"][3], before[3])
    assert not same(step["observation"][3], before[3])
    for name in step:
        assert step[name].isfinite().all(), name
        assert same(step[name][others], healthy[name][others]), name

    start = env.sim.qpos[[3]].clone(), env.sim.qvel[[3]].clone()
    fresh = NativeSimulation(env.task.compile(), 1, (), env.task.timing.physics_steps)
    fresh.reset(torch.ones(1, dtype=torch.bool), *start)
    for action in actions(env, 50):
        env.step(action)
        twin.step(action)
        fresh.ctrl.copy_(env.sim.ctrl[[3]])
        fresh.step()
        assert same(env.sim.qpos[[3]], fresh.qpos)
        assert same(env.observation[others], twin.observation[others])
    env.check()
    assert env.health.total_nonfinite == 1


def test_more_than_one_percent_of_nonfinite_worlds_is_an_error() -> None:
    env = slider_env(200)
    quiet = torch.zeros(200, 1)
    assert poisoned(env, quiet, [5])["reward"][5] == 0
    poisoned(env, quiet, [199])
    env.check()
    assert env.health.total_nonfinite == 2
    poisoned(env, quiet, [5, 6])
    poisoned(env, quiet, [7])
    with pytest.raises(SimulationError, match=r"^Slider: 3 of 200 worlds .* timing\.physics .now 0\.005 s."):
        env.check()
    env.check()  # each check counts its own rollout
    assert env.health.total_nonfinite == 5


def test_a_world_that_diverges_again_and_again_is_one_world_and_so_many_times() -> None:
    env = slider_env(200)
    for worlds in ([5], [5, 6], [5], [6]):
        poisoned(env, torch.zeros(200, 1), worlds)
    env.check()  # two of two hundred
    assert (env.health.total_nonfinite, env.lost) == (5, 5)
    for worlds in ([5], [5, 6], [7]):
        poisoned(env, torch.zeros(200, 1), worlds)
    with pytest.raises(SimulationError, match="Slider: 3 of 200 worlds"):
        env.check()
    assert (env.health.total_nonfinite, env.lost) == (9, 9)


def test_an_account_tells_how_often_physics_diverged_and_raises_nothing() -> None:
    env = slider_env(200)
    assert env.account() == ""
    poisoned(env, torch.zeros(200, 1), [5])
    assert env.account() == "physics diverged, times: 1"
    for worlds in ([5, 6], [7]):
        poisoned(env, torch.zeros(200, 1), worlds)
    told = env.account()
    assert told.startswith("physics diverged, times: 3; Slider: 3 of 200 worlds became non-finite")
    assert env.account() == ""


def test_a_world_that_spins_faster_than_a_step_can_follow_begins_anew() -> None:
    env = VectorEnv(hopper(), 8, seed=2)
    env.restart(random_phase=False)
    before = env.observation.clone()
    half_a_turn = math.pi / env.task.timing.physics
    hinge = int(env.model.jnt_dofadr[env.model.joint("waist").id])
    slide = int(env.model.jnt_dofadr[env.model.joint("rootx").id])
    env.sim.qvel[0, slide] = 3 * half_a_turn  # as fast as you like: it is no angle
    env.sim.qvel[1, hinge] = 0.9 * half_a_turn
    env.sim.qvel[2, hinge] = 1.1 * half_a_turn
    env.sim.qvel[3, hinge] = -1.1 * half_a_turn
    step = env.finish()
    assert step.terminated.tolist() == [False, False, True, True, False, False, False, False]
    assert same(step.terminal_observation[2:4], before[2:4])
    assert step.reward[2:4].tolist() == [0, 0]
    assert (env.sim.qvel.abs() < half_a_turn)[2:].all()
    env.check()  # two of eight, and training goes on
    assert (env.health.total_nonfinite, env.lost) == (0, 2)

    env.sim.qvel[1, hinge] = math.inf  # is both, and counts once
    env.finish()
    env.check()
    assert (env.health.total_nonfinite, env.lost) == (1, 3)
    resumed = VectorEnv(hopper(), 8, seed=3)
    resumed.load_state_dict(env.state_dict())
    assert (resumed.health.total_nonfinite, resumed.lost) == (1, 3)


def test_an_overflow_names_the_task_and_ends_training_where_it_is_no_exception(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    env = slider_env(200)
    monkeypatch.setattr(env.sim, "fault", lambda faults: "raise njmax" if int(faults[0]) else "")
    for worlds in (0, 1, 2, 3):
        monkeypatch.setattr(env.sim, "faults", lambda worlds=worlds: torch.tensor([worlds]))
        if worlds > 2:  # more than 1 %
            with pytest.raises(SimulationError, match=r"^Slider: raise njmax$"):
                env.judge(env.faults())
        else:
            assert env.judge(env.faults()) == ("Slider: raise njmax" if worlds else "")
    with pytest.raises(SimulationError, match=r"^Slider: raise njmax$"):
        env.check()


def test_monitors_are_further_worlds_behind_the_others() -> None:
    env = slider_env(4, monitors=3)
    assert (env.num_envs, env.num_worlds, env.sim.num_worlds) == (4, 7, 7)
    action = torch.zeros(7, 1)
    action[4:] = 1.0
    for _ in range(30):
        step = env.step(action)
    assert [getattr(step, name).shape[0] for name in copy(step)] == [7] * 7
    assert step.observation[4:, 1].min() > step.observation[:4, 1].max()


@pytest.mark.parametrize("settle_steps", [0, 3])
def test_a_restored_environment_goes_on_exactly(settle_steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envs.vector_env, "SETTLED_STARTS", 64)
    task = variant(Slider, episode_length=15, limit=0.08, settle_steps=settle_steps)
    first, second = (VectorEnv(task, 5, monitors=2, seed=seed) for seed in (1, 2))
    for action in actions(first, 7):
        first.step(action)
        second.step(-action)
    saved = first.state_dict()
    kept = {name: value.clone() for name, value in saved.items()}

    def go_on(env: VectorEnv) -> list[dict[str, Tensor]]:
        steps = []
        for k, action in enumerate(actions(env, 60, seed=3)):
            if k % 20 == 10:
                env.refresh_starts()
            steps.append({**copy(env.step(action)), **state(env), "return": env.last_return.clone()})
        env.restart()
        return [*steps, {"phase": env.episode_step.clone(), **state(env)}]

    expected = go_on(first)
    assert all(same(saved[name], kept[name]) for name in saved)  # a copy, not views
    second.load_state_dict(saved)
    assert same(second.observation, saved["own.observation"])
    for ours, theirs in zip(go_on(second), expected, strict=True):
        assert [name for name in theirs if not same(ours[name], theirs[name])] == []
    assert sum(step["truncated"].sum() for step in expected[:-1]) > 5
    assert sum(step["terminated"].sum() for step in expected[:-1]) > 5


def test_starts_settle_without_control_and_are_kept_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envs.vector_env, "SETTLED_STARTS", 40)
    env = VectorEnv(Falling(), 3)
    data = mujoco.MjData(env.model)
    rows = env.starts.rows(torch.arange(40))
    for world in range(3):
        mujoco.mj_resetData(env.model, data)
        data.qpos[0] = rows.state["age"][world]  # the height it was placed at
        for _ in range(30):
            mujoco.mj_step(env.model, data)
        assert env.sim.qpos[world].tolist() == data.qpos.tolist()
        assert env.sim.qvel[world].tolist() == data.qvel.tolist()
        assert env.observation[world, 0] == np.float32(data.qpos[0])
    assert rows.qpos.max() < 1.0
    env.refresh_starts()
    assert same(env.starts.rows(torch.arange(40)).qpos, rows.qpos)
    env.draw_starts()
    assert not (env.starts.rows(torch.arange(40)).qpos == rows.qpos).any()


@pytest.mark.parametrize("num_envs", [0, -3])
def test_a_number_of_worlds_below_one_is_refused(num_envs: int) -> None:
    with pytest.raises(InputError, match=f"num_envs must be at least 1, got {num_envs}"):
        VectorEnv(Slider(), num_envs)


def test_the_seed_decides_every_draw() -> None:
    first, again, other = (VectorEnv(Slider(), 4, seed=seed) for seed in (3, 3, 4))
    for action in actions(first, 10):
        steps = [copy(env.step(action)) for env in (first, again, other)]
    assert same(first.episode_step, again.episode_step)
    assert all(same(steps[0][name], steps[1][name]) for name in steps[0])
    assert not (steps[0]["observation"] == steps[2]["observation"]).any()
