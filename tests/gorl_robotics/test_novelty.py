"""The bonus for new states: what it is paid for, how it fades, and that a resumed run pays the same."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from fake_environment import small_config
from learner_setup import Setup, side_stream
from torch import Tensor

from gorl_robotics.novelty import Novelty

STEPS, WORLDS, SIZE = 8, 64, 6


def make(seed: int = 0, device: str = "cpu") -> Novelty:
    torch.manual_seed(seed)
    generator = torch.Generator(device).manual_seed(seed)
    return Novelty(SIZE, STEPS * WORLDS, torch.device(device), generator)


def around(place: float, seed: int, device: str = "cpu") -> Tensor:
    """Observations near one place."""
    generator = torch.Generator().manual_seed(seed)
    return (place + 0.3 * torch.randn(STEPS, WORLDS, SIZE, generator=generator)).to(device)


def iterate(novelty: Novelty, observation: Tensor) -> Tensor:
    bonus = novelty.bonus(observation)
    novelty.draw()
    novelty.learn()
    return bonus


def test_the_first_bonuses_are_one_on_the_mean_and_bounded() -> None:
    novelty = make()
    observation = around(0.0, 1)
    observation[0, 0] = 1e6  # one that is far out counts as one at the bound
    bonus = novelty.bonus(observation)
    assert bonus.shape == (STEPS, WORLDS)
    assert bonus.max() <= 5
    inside = observation.clamp(-5, 5)
    error = (novelty.guess(inside) - novelty.target(inside)).square().mean(dim=-1)
    torch.testing.assert_close(bonus, (error / error.mean()).clamp(max=5).detach())


def test_what_has_been_seen_often_pays_less_than_what_has_not() -> None:
    novelty = make()
    known, new = around(0.0, 1), around(2.0, 2)
    before = float(novelty.bonus(new).mean() / novelty.bonus(known).mean())
    for k in range(60):
        iterate(novelty, around(0.0, 10 + k))
    assert float(novelty.bonus(new).mean() / novelty.bonus(known).mean()) > 3 * before


def test_bonuses_fade_while_guesses_improve() -> None:
    novelty = make()
    paid = [float(iterate(novelty, around(0.0, k)).mean()) for k in range(40)]
    assert paid[0] == pytest.approx(1, abs=0.05)
    assert paid[-1] < 0.5


def test_bonuses_do_not_come_back_when_guesses_get_no_better() -> None:
    novelty = make()
    paid = [float(iterate(novelty, around(0.0, k)).mean()) for k in range(900)]
    assert max(paid[500:]) < max(paid[100:300])
    assert paid[-1] < 0.1


def test_only_the_guessing_network_learns() -> None:
    novelty = make()
    target, guess = (copy.deepcopy(network.state_dict()) for network in (novelty.target, novelty.guess))
    iterate(novelty, around(0.0, 1))
    assert all(torch.equal(value, target[name]) for name, value in novelty.target.state_dict().items())
    assert not any(torch.equal(value, guess[name]) for name, value in novelty.guess.state_dict().items())


def test_what_was_saved_goes_on_with_the_same_bonuses() -> None:
    novelty, other = make(), make(seed=5)
    for k in range(3):
        iterate(novelty, around(0.0, k))
    other.restore(copy.deepcopy(novelty.saved()))
    other._generator.set_state(novelty._generator.get_state())
    for k in range(3, 6):
        assert torch.equal(iterate(novelty, around(0.0, k)), iterate(other, around(0.0, k)))


def test_what_was_saved_without_the_largest_level_goes_on() -> None:
    novelty, other = make(), make(seed=5)
    iterate(novelty, around(0.0, 1))
    saved = copy.deepcopy(novelty.saved())
    del saved["networks"]["most"]
    other.restore(saved)
    assert other.most == other.level == novelty.level > 0


def learnt(novelty: float) -> dict[str, Any]:
    """A learner's own state after updates from a task that pays nothing."""
    setup = Setup(small_config(ppo__novelty=novelty))
    for _ in range(2):
        rollout = setup.collector.collect()
        rollout.reward.zero_()
        setup.learner.update(rollout)
        assert not rollout.reward.any(), "what is recorded is the task's reward alone"
    return setup.learner.state_dict()


def test_without_a_bonus_nothing_of_it_is_saved() -> None:
    assert "novelty" in learnt(0.05)
    assert "novelty" not in learnt(0.0)


@pytest.mark.parametrize("weight", [0.05, 0.0])
def test_where_a_task_pays_nothing_what_is_learnt_from_is_the_bonus_alone(weight: float) -> None:
    setup = Setup(small_config(ppo__novelty=weight))
    rollout = setup.collector.collect()
    rollout.reward.zero_()
    setup.learner.update(rollout)
    paid = setup.learner._paid(rollout)
    assert bool((paid > 0).all()) is (weight > 0)
    assert float(paid.abs().max()) <= 5 * weight


def test_a_checkpoint_from_before_there_was_a_bonus_can_be_gone_on_with() -> None:
    setup = Setup(small_config(ppo__novelty=0.05))
    setup.learner.load_state_dict(learnt(0.0))
    setup.iterate(1)


@pytest.mark.gpu
def test_the_kernels_give_torchs_bonuses() -> None:
    with side_stream():  # graphs are not captured in torch's own
        on_gpu, on_cpu = make(device="cuda"), make()
        on_cpu.load_state_dict(on_gpu.state_dict())
        for k in range(3):
            bonus, expected = on_gpu.bonus(around(0.0, k, "cuda")), on_cpu.bonus(around(0.0, k))
            torch.testing.assert_close(bonus.cpu(), expected, rtol=1e-3, atol=1e-4)
            for novelty in (on_gpu, on_cpu):
                novelty._rows.copy_(torch.arange(novelty._rows.numel()).view_as(novelty._rows))
                novelty._turn.zero_()
                novelty.learn()
