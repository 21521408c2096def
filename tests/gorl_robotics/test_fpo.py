"""FPO: its error and loss against loops over samples, pairs and axes."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from fake_environment import small_config

from gorl_robotics.errors import InputError
from gorl_robotics.methods.fpo import BOUND, Fpo

SAMPLES, PAIRS, AXES = 3, 4, 2
ZERO = torch.tensor(0.0)


def policy() -> Fpo:
    torch.manual_seed(0)
    made = Fpo.from_config(small_config(fpo__pairs=PAIRS), 4, AXES)
    for parameter in made.flow.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return made


def batch(made: Fpo) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    time = torch.tensor([0.1, 0.4, 0.9, 1.0]).repeat(SAMPLES, 1).unsqueeze(-1)
    return {
        "observation": torch.randn(SAMPLES, 4),
        "action": torch.randn(SAMPLES, AXES),
        "noise": torch.randn(SAMPLES, PAIRS, AXES),
        "time": time,
    }


def slow_error(made: Fpo, given: dict[str, torch.Tensor], sample: int, of_noise: bool = False) -> float:
    total = 0.0
    for pair in range(PAIRS):
        t = float(given["time"][sample, pair])
        # The noise of the sample before, and for the first of the last, which is what -1 means to Python.
        other = given["noise"][sample - 1, pair] if of_noise else given["action"][sample]
        noise, action = given["noise"][sample, pair].tolist(), other.tolist()
        x = [t * n + (1 - t) * a for n, a in zip(noise, action, strict=True)]
        observation = given["observation"][sample].unsqueeze(0)
        v = made.flow.velocity(observation, torch.tensor([x]), torch.tensor([[t]]))[0].tolist()
        for n, at, speed in zip(noise, x, v, strict=True):
            clean = at - t * speed  # the action that point and velocity imply, and the noise from there
            total += (n - (clean + speed)) ** 2 / AXES / PAIRS
    return total


def test_a_single_step_whose_error_no_network_changes_is_refused() -> None:
    with pytest.raises(InputError, match=r"networks.flow_steps=1: expected 2 or more"):
        Fpo.from_config(small_config(networks__flow_steps=1), 4, AXES)


def test_error_equals_a_loop() -> None:
    made = policy()
    given = batch(made)
    expected = [slow_error(made, given, sample) for sample in range(SAMPLES)]
    torch.testing.assert_close(made.error(**given), torch.tensor(expected))
    assert min(expected) > 0.1


def test_loss_equals_a_loop() -> None:
    made, clip = policy(), 0.05
    given = batch(made)
    now = [slow_error(made, given, sample) for sample in range(SAMPLES)]
    change, advantage = [0.3, -0.02, -9.0], [1.5, -0.5, -0.7]  # clipped, within, and beyond what is believed
    old = [error + each for error, each in zip(now, change, strict=True)]
    loss, kl = 0.0, 0.0
    for each, gain in zip(change, advantage, strict=True):
        log_ratio = min(max(each, -3.0), 3.0)
        ratio = math.exp(log_ratio)
        loss -= min(ratio * gain, min(max(ratio, 1 - clip), 1 + clip) * gain) / SAMPLES
        kl += (ratio - 1 - log_ratio) / SAMPLES
    wide = sum(slow_error(made, given, sample, of_noise=True) for sample in range(SAMPLES)) / SAMPLES
    minibatch = {**given, "error": torch.tensor(old), "advantage": torch.tensor(advantage)}
    for weight in (0.0, 0.3):
        terms = made.loss(minibatch, small_config(ppo__clip=clip, ppo__entropy=weight).ppo, ZERO)
        assert float(terms.loss.detach()) == pytest.approx(loss + weight * wide, rel=1e-4)
    assert float(terms.kl) == pytest.approx(kl, rel=1e-4)
    assert float(terms.clipped) == pytest.approx(2 / 3)
    assert terms.entropy is None


def test_the_loss_makes_good_actions_likelier() -> None:
    made = policy()
    given = batch(made)
    before = made.error(**given).detach()
    advantage = torch.tensor([1.0, -1.0, 1.0])
    minibatch = {**given, "error": before, "advantage": advantage}
    made.loss(minibatch, small_config(ppo__clip=10.0).ppo, ZERO).loss.backward()
    with torch.no_grad():
        for parameter in made.flow.parameters():
            assert parameter.grad is not None
            parameter -= 1e-3 * parameter.grad
    assert float((advantage * (made.error(**given).detach() - before)).sum()) < 0


def test_where_nothing_is_better_than_the_rest_a_flow_goes_back_to_noise() -> None:
    made, generator = policy(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        made.flow.network[-1].weight.zero_()
        made.flow.network[-1].bias.fill_(6.0)  # every action is one and a half farther down
    optimizer = torch.optim.Adam(made.flow.parameters(), lr=3e-3)
    observation, settings = torch.randn(256, 4), small_config(ppo__entropy=1.0).ppo

    def sampled() -> dict[str, torch.Tensor]:
        sample = made.act(observation, torch.randn(256, AXES, generator=generator), generator)
        return {"observation": made.normaliser(observation), "action": sample.decoded, **sample.stored}

    assert float(sampled()["action"].mean()) < -1.3
    for _ in range(300):
        optimizer.zero_grad()
        made.loss({**sampled(), "advantage": torch.zeros(256)}, settings, ZERO).loss.backward()
        optimizer.step()
    assert abs(float(sampled()["action"].mean())) < 0.4
    assert float(sampled()["action"].std()) > 0.8


def test_pairs_are_drawn_for_every_sample_and_hold_the_present_error() -> None:
    made = policy()
    observation, noise = torch.randn(500, 4), torch.randn(500, AXES)
    sample = made.act(observation, noise, torch.Generator().manual_seed(0))
    stored = sample.stored
    assert {name: tuple(value.shape[1:]) for name, value in stored.items()} == {
        name: size for name, size in made.reads.items() if name != "action"
    }
    assert len(stored["noise"].unique()) == stored["noise"].numel()
    assert abs(float(stored["noise"].mean())) < 0.06
    assert float(stored["noise"].std()) == pytest.approx(1, abs=0.05)
    times, counts = (stored["time"] * made.flow.steps).round().unique(return_counts=True)
    assert times.tolist() == list(range(1, made.flow.steps + 1))  # never 0, where there is no noise to make out
    assert counts.min() > 0.7 * counts.max()
    seen = made.normaliser(observation)
    error = made.error(seen, sample.decoded, stored["noise"], stored["time"])
    torch.testing.assert_close(stored["error"], error.detach())
    torch.testing.assert_close(made.act(observation, noise).decoded, sample.decoded)


def test_no_action_runs_off_and_small_velocities_stay_what_they_are() -> None:
    made = policy()
    observation, noise = torch.randn(500, 4), torch.randn(500, AXES)
    free = copy.deepcopy(made)
    free.flow._bound = math.inf
    with torch.no_grad():
        for each in (made, free):
            each.flow.network[-1].weight.mul_(1e-3)
            each.flow.network[-1].bias.mul_(1e-3)
        torch.testing.assert_close(made.act(observation, noise).decoded, free.act(observation, noise).decoded)
        for each in (made, free):
            each.flow.network[-1].weight.mul_(1e9)
        moved = (made.act(observation, noise).decoded - noise).abs()
        assert not free.act(observation, noise).decoded.isfinite().all()
    assert moved.max() <= BOUND + 1e-4
    assert moved.max() > 0.9 * BOUND
    assert (made.error(**batch(made)) < 100).all()
