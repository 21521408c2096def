"""Practice: who is cut short and how often, and what the rest of the environment makes of it."""

from __future__ import annotations

import pytest
import torch
from fake_task import Slider, actions, copy, same, variant

from envs.practice import Practice
from envs.vector_env import VectorEnv

CPU = torch.device("cpu")


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_only_worlds_above_the_mean_are_cut_and_as_often_as_asked(sign: float) -> None:
    worlds, rate, steps = 1000, 0.05, 400
    practice, generator = Practice(worlds, rate, CPU), torch.Generator().manual_seed(0)
    reward = torch.where(torch.arange(worlds) < 300, 1.0, 0.0) + (0.0 if sign > 0 else -5.0)
    nobody = torch.zeros(worlds, dtype=torch.bool)
    cuts = torch.zeros(worlds)
    for _ in range(steps):
        cuts += practice.cut(reward, generator)
        practice.begin(nobody)
    assert (cuts[300:] == 0).all()
    expected = rate * steps
    assert cuts[:300].mean().item() == pytest.approx(expected, abs=4 * (expected / 300) ** 0.5)


@pytest.mark.parametrize("level", [3.0, 0.0, -3.0])
def test_a_new_episode_begins_as_the_worst_and_is_cut_only_once_it_has_done_well(level: float) -> None:
    practice, generator = Practice(4, 1.0, CPU), torch.Generator().manual_seed(0)
    reward = torch.tensor([level + 1, level + 1, level, level])
    for _ in range(500):
        practice.cut(reward, generator)
    practice.begin(torch.tensor([True, False, False, False]))
    assert practice.recent[0] == practice.recent.min()
    waited = 0
    while not practice.cut(reward, generator)[0]:
        waited += 1
    assert 10 < waited < 100  # control steps of doing well before it counts as such


def test_where_all_worlds_are_alike_nobody_is_cut() -> None:
    practice, generator = Practice(64, 1.0, CPU), torch.Generator().manual_seed(0)
    assert not any(practice.cut(torch.zeros(64), generator).any() for _ in range(50))


def test_a_cut_is_a_truncation_that_counts_in_no_statistics_and_spares_the_monitors() -> None:
    env = VectorEnv(variant(Slider, episode_length=200), 64, monitors=8, practice=0.2)
    env.restart(random_phase=False)
    cut = torch.zeros(72)
    for k, action in enumerate(actions(env, 199)):
        before = env.episode_step.clone()
        step = env.step(action)
        cut += step.truncated
        assert same(env.episode_step, torch.where(step.truncated, 0, before + 1)), k
    assert cut[:64].sum() > 100
    assert cut[64:].sum() == 0
    assert env.last_return.isnan().all()  # no episode has run its whole time
    assert same(env.step(actions(env, 1)[0]).truncated[64:], torch.ones(8, dtype=torch.bool))
    assert env.last_return[64:].isfinite().all()


def test_a_restored_environment_cuts_the_same_worlds() -> None:
    env = VectorEnv(variant(Slider), 32, practice=0.1, seed=3)
    for action in actions(env, 60):
        env.step(action)
    saved = env.state_dict()
    onwards = actions(env, 60)
    expected = [copy(env.step(action)) for action in onwards]
    again = VectorEnv(variant(Slider), 32, practice=0.1, seed=4)
    again.load_state_dict(saved)
    found = [copy(again.step(action)) for action in onwards]
    assert sum(step["truncated"].sum() for step in expected) > 10
    assert all(same(one[name], other[name]) for one, other in zip(expected, found, strict=True) for name in one)
