"""The gymnasium vector environment is a SyncVectorEnv of single views, and gymnasium's wrappers run on it."""

from __future__ import annotations

import ctypes.util
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from fake_task import Slider, variant
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics

import tasks
from envs.draws import WorldDraws
from envs.gymnasium_env import GymnasiumEnv, GymnasiumVectorEnv
from envs.vector_env import VectorEnv
from gorl_robotics.errors import InputError

WORLDS = 3
# The slider ends for good at its limit, and at the age of 60 for good and by the time limit at once.
TASKS = {
    "cartpole": lambda: tasks.make("CartpoleSwingup"),
    "hopper": lambda: variant(type(tasks.make("HopperStand")), episode_length=170),
    "settled": lambda: variant(type(tasks.make("HopperStand")), episode_length=60, settle_steps=20),
    "slider": lambda: variant(Slider, episode_length=60, limit=0.5, lifetime=60),
}


def sync(make: Any, worlds: int = WORLDS) -> SyncVectorEnv:
    singles = [lambda: GymnasiumEnv(make()) for _ in range(worlds)]
    return SyncVectorEnv(singles, autoreset_mode=AutoresetMode.SAME_STEP)


def actions(env: GymnasiumVectorEnv, seed: int, steps: int) -> np.ndarray:
    shape = (steps, *env.action_space.shape)
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def assert_same_step(ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> None:
    for mine, other in zip(ours[:4], theirs[:4], strict=True):
        assert mine.dtype == other.dtype
        np.testing.assert_array_equal(mine, other)
    infos, expected = ours[4], theirs[4]
    assert set(infos) == set(expected)
    if infos:
        np.testing.assert_array_equal(infos["_final_obs"], expected["_final_obs"])
        np.testing.assert_array_equal(infos["_final_info"], expected["_final_info"])
        assert infos["final_info"] == expected["final_info"]
        for i in np.flatnonzero(infos["_final_obs"]):
            np.testing.assert_array_equal(infos["final_obs"][i], expected["final_obs"][i])


@pytest.mark.parametrize("task", TASKS)
def test_equals_a_sync_vector_env_of_single_views(task: str) -> None:
    ours, theirs = GymnasiumVectorEnv(TASKS[task](), WORLDS), sync(TASKS[task])
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    assert ours.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    np.testing.assert_array_equal(ours.reset(seed=5)[0], theirs.reset(seed=5)[0])
    terminated, truncated, both = 0, 0, 0
    for action in actions(ours, 1, 1000 if task == "settled" else 3000):
        step = ours.step(action)
        assert_same_step(step, theirs.step(action))
        terminated, truncated = terminated + step[2].sum(), truncated + step[3].sum()
        both += (step[2] & step[3]).sum()
    assert truncated >= 3
    if task == "slider":
        assert both >= 3
        assert terminated - both >= 3


def test_a_reset_in_the_middle_equals_that_of_a_sync_vector_env() -> None:
    ours, theirs = GymnasiumVectorEnv(TASKS["slider"](), WORLDS), sync(TASKS["slider"])
    some = np.array([False, True, True])
    resets: list[dict[str, Any]] = [
        {"seed": [3, 1, 4]},
        {"seed": [9, None, 8]},
        {"seed": None},
        {"options": {"reset_mask": some}},
        {"seed": 2, "options": {"reset_mask": some}},
    ]
    for reset in resets:
        # A copy for each: SyncVectorEnv takes the mask out of the options.
        observation, expected = ours.reset(**deepcopy(reset))[0], theirs.reset(**deepcopy(reset))[0]
        np.testing.assert_array_equal(observation, expected)
        for action in actions(ours, 2, 45):
            assert_same_step(ours.step(action), theirs.step(action))


def test_world_i_of_seed_s_is_the_single_view_of_seed_s_plus_i() -> None:
    many, one = GymnasiumVectorEnv(TASKS["slider"](), 5), GymnasiumEnv(TASKS["slider"]())
    observation = many.reset(seed=20)[0]
    assert len({row.tobytes() for row in observation}) == 5
    np.testing.assert_array_equal(one.reset(seed=23)[0], observation[3])


def test_a_world_does_not_depend_on_its_neighbours_actions() -> None:
    first, second = (GymnasiumVectorEnv(TASKS["slider"](), 2) for _ in range(2))
    first.reset(seed=1)
    second.reset(seed=1)
    neighbours_ended = [0, 0]
    for action in actions(first, 4, 200):
        a = first.step(action)
        b = second.step(np.stack([action[0], np.ones(1, np.float32)]))
        np.testing.assert_array_equal(a[0][0], b[0][0])
        neighbours_ended[0] += bool(a[2][1])
        neighbours_ended[1] += bool(b[2][1])
    assert neighbours_ended[0] != neighbours_ended[1]


def test_episodes_are_truncated_at_the_tasks_episode_length() -> None:
    env = GymnasiumVectorEnv(variant(type(tasks.make("CartpoleBalance")), episode_length=7), 2)
    env.reset(seed=0)
    ends = [env.step(action)[3].tolist() for action in actions(env, 0, 21)]
    assert ends == ([[False] * 2] * 6 + [[True] * 2]) * 3


def test_what_was_returned_does_not_change_later() -> None:
    env = GymnasiumVectorEnv(TASKS["slider"](), 2)
    env.reset(seed=0)
    first, *rest = [env.step(action) for action in actions(env, 0, 2)]
    kept = [array.copy() for array in first[:4]]
    assert not np.array_equal(first[0], rest[0][0])
    env.step(np.ones((2, 1), np.float32))
    for array, copy in zip(first[:4], kept, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.filterwarnings("ignore:.*A Box observation space:UserWarning")
@pytest.mark.filterwarnings("ignore:.*not having a spec:UserWarning")
def test_a_single_view_passes_gymnasiums_checker(task: str) -> None:
    check_env(GymnasiumEnv(TASKS[task]()), skip_render_check=True)


def test_a_single_view_stays_where_its_episode_ended_until_it_is_reset() -> None:
    env = GymnasiumEnv(variant(Slider, limit=0.5))
    env.reset(seed=0)
    for _ in range(1000):
        observation, _, terminated, truncated, _ = env.step(np.ones(1, np.float32))
        if terminated:
            break
    assert terminated
    assert not truncated
    assert abs(observation[0]) > 0.5
    assert abs(env.reset()[0][0]) < 0.2


def test_record_episode_statistics_reports_the_returns() -> None:
    env = RecordEpisodeStatistics(GymnasiumVectorEnv(TASKS["slider"](), WORLDS))
    env.reset(seed=3)
    returns, lengths, ended = np.zeros(WORLDS), np.zeros(WORLDS, int), 0
    for action in actions(env, 5, 300):
        _, reward, terminated, truncated, infos = env.step(action)
        returns, lengths = returns + reward, lengths + 1
        done = terminated | truncated
        if done.any():
            np.testing.assert_allclose(infos["episode"]["r"][done], returns[done])
            np.testing.assert_array_equal(infos["episode"]["l"][done], lengths[done])
            ended += done.sum()
        returns[done], lengths[done] = 0, 0
    assert env.episode_count == ended >= 10


def test_numpy_to_torch_runs_and_keeps_the_returns() -> None:
    pytest.importorskip("array_api_compat", reason="gymnasium's NumpyToTorch needs array-api-compat")
    from gymnasium.wrappers.vector import NumpyToTorch

    plain = RecordEpisodeStatistics(GymnasiumVectorEnv(TASKS["slider"](), WORLDS))
    env = NumpyToTorch(RecordEpisodeStatistics(GymnasiumVectorEnv(TASKS["slider"](), WORLDS)))
    expected = plain.reset(seed=3)[0]
    np.testing.assert_array_equal(env.reset(seed=3)[0].numpy(), expected)
    ended = 0
    for action in actions(plain, 5, 150):
        ours, theirs = env.step(torch.from_numpy(action)), plain.step(action)
        for tensor, array in zip(ours[:4], theirs[:4], strict=True):
            assert isinstance(tensor, torch.Tensor)
            np.testing.assert_array_equal(tensor.numpy(), array)
        if "episode" in theirs[4]:
            ended += 1
            np.testing.assert_array_equal(ours[4]["episode"]["r"].numpy(), theirs[4]["episode"]["r"])
            np.testing.assert_array_equal(ours[4]["final_obs"].numpy(), theirs[4]["final_obs"])
    assert ended >= 3


def test_only_the_worlds_of_the_mask_draw() -> None:
    def generators() -> list[np.random.Generator]:
        return [np.random.default_rng(seed) for seed in range(3)]

    some, reference = generators(), generators()
    draws = WorldDraws(some, torch.float64, torch.device("cpu"))
    mask = torch.tensor([True, False, True])
    rows = draws.only(mask).normal(2)
    np.testing.assert_array_equal(rows[2], reference[2].standard_normal(2))
    assert rows[1].tolist() == [0.0, 0.0]
    everyone = draws.uniform()
    assert everyone.shape == (3,)
    assert everyone[1] == reference[1].random()  # its first number: the masked draw did not advance it
    assert everyone[2] == reference[2].random()


def test_drawing_some_starts_anew_keeps_the_others() -> None:
    env = VectorEnv(Slider(), 3)
    mask, index = torch.tensor([False, True, False]), torch.arange(3)
    before = env.starts.rows(index)
    env.starts.fill(WorldDraws([np.random.default_rng(i) for i in range(3)], torch.float64, env.device), mask)
    after = env.starts.rows(index)
    for old, new in (
        (before.qpos, after.qpos),
        (before.state["target"], after.state["target"]),
        (before.observation, after.observation),
    ):
        assert (old != new).any(dim=1).tolist() == [False, True, False]


@pytest.mark.parametrize("shape", [(1,), (2, 2), (1, 1), (3, 1)])
def test_actions_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    env = GymnasiumVectorEnv(Slider(), 2)
    env.reset(seed=0)
    with pytest.raises(InputError, match=r"expected \(2, 1\)"):
        env.step(np.zeros(shape, np.float32))


def test_a_wrong_number_of_seeds_or_render_mode_is_refused() -> None:
    with pytest.raises(InputError, match="each of 2 worlds, got 3"):
        GymnasiumVectorEnv(Slider(), 2).reset(seed=[1, 2, 3])
    with pytest.raises(InputError, match="'human'"):
        GymnasiumEnv(Slider(), render_mode="human")


def test_without_a_render_mode_there_is_no_picture() -> None:
    env = GymnasiumEnv(Slider())
    env.reset(seed=0)
    assert env.render() is None


@pytest.mark.skipif(ctypes.util.find_library("EGL") is None, reason="no EGL to render with")
def test_renders_the_present_state() -> None:
    env = GymnasiumEnv(TASKS["cartpole"](), render_mode="rgb_array")
    assert env.metadata["render_fps"] == 100
    env.reset(seed=0)
    start = env.render()
    assert start is not None
    assert start.shape == (240, 320, 3)
    assert start.dtype == np.uint8
    assert start.std() > 10
    for _ in range(30):
        env.step(np.ones(1, np.float32))
    assert np.abs(env.render().astype(int) - start).mean() > 0.5
    env.reset(seed=0)
    np.testing.assert_array_equal(env.render(), start)
    env.close()
    env.close()
