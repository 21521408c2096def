"""What every method owes the rest: noise decides its actions, its samples feed its loss, and it learns."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from fake_environment import TARGET, FakeEnvironment, small_config
from torch import Tensor

from gorl_robotics import methods
from gorl_robotics.config import config_values, resolve
from gorl_robotics.errors import InputError
from gorl_robotics.policy import Policy
from gorl_robotics.ppo import METRICS, Learner
from gorl_robotics.rollout import Collector

NAMES = sorted(methods.METHODS)


class Setup:
    """A method with its collector and learner on the fake environment."""

    def __init__(self, name: str, device: str = "cpu", **settings: Any) -> None:
        torch.manual_seed(0)
        self.config = small_config(method=name, **settings)
        self.env = FakeEnvironment(self.config.num_envs, device=device)
        where = self.env.device
        self.policy = methods.make(self.config, 4, 2).to(where)
        self.generator = torch.Generator(where).manual_seed(1)
        steps = self.config.ppo.rollout_steps
        self.learner = Learner(self.policy, 5, self.config, self.config.num_envs * steps, where, self.generator)
        self.collector = Collector(self.env, self.policy, steps, self.generator)

    def iterate(self, times: int) -> None:
        for _ in range(times):
            self.learner.update(self.collector.collect())

    def metrics(self) -> dict[str, float]:
        return dict(zip(self.learner.metric_names, self.learner.metrics().tolist(), strict=True))


def shaken(name: str) -> Policy:
    """A policy whose every weight was moved, its decoder's too."""
    torch.manual_seed(0)
    made = methods.make(small_config(method=name), 4, 2)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    made.normaliser.update(1 + 2 * torch.randn(50, 4))
    made.generative = made.refits
    return made


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_is_restored_but_not_for_another_observation(name: str) -> None:
    made, other = shaken(name), methods.make(small_config(method=name), 5, 2)
    saved = {"policy": made.state_dict(), "generative": made.generative}
    same = methods.make(small_config(method=name), 4, 2)
    same.restore(saved)
    assert same.generative == made.generative
    assert all(torch.equal(a, b) for a, b in zip(same.parameters(), made.parameters(), strict=True))
    with pytest.raises(InputError, match="it observed 4 numbers, now there are 5; undo that, or train anew"):
        other.restore(saved)


@pytest.mark.parametrize("name", NAMES)
def test_begins_with_normal_actions(name: str) -> None:
    """Standard normal ones, to which DPPO adds each step's noise."""
    config = small_config(method=name)
    made = methods.make(config, 4, 2)
    variance = 1 + (config.networks.flow_steps * config.dppo.sigma**2 if name == "dppo" else 0)
    observation, noise = torch.randn(4000, 4), torch.randn(4000, made.noise_size)
    assert not made(observation).any()
    decoded = made.act(observation, noise).decoded
    torch.testing.assert_close(decoded.mean(dim=0), torch.zeros(2), atol=0.08, rtol=0)
    torch.testing.assert_close(decoded.var(dim=0), torch.full((2,), float(variance)), atol=0.16, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_exported_is_what_acts(name: str) -> None:
    made = shaken(name)
    observation, noise = torch.randn(20, 4), torch.randn(20, made.noise_size)
    sample = made.act(observation, noise)
    torch.testing.assert_close(made(observation, noise), sample.action)
    torch.testing.assert_close(sample.decoded.tanh(), sample.action)
    still = made.act(observation, torch.zeros_like(noise)).action
    torch.testing.assert_close(made(observation), still)
    assert (still - sample.action).abs().mean() > 0.05
    assert (still[0] != still[1]).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_rollout_has_what_the_loss_reads_and_monitors_act_without_noise(name: str) -> None:
    setup = Setup(name)
    actions: list[Tensor] = []
    apply = setup.env.apply
    setup.env.apply = lambda action: (actions.append(action.clone()), apply(action))[1]  # type: ignore[method-assign,func-returns-value]
    before = setup.env.buffers.observation.clone()
    rollout = setup.collector.collect()
    for name, size in setup.policy.reads.items():
        assert rollout.read(name).shape == (8, 6, *size)
    torch.testing.assert_close(rollout.action[0].tanh(), actions[0][:6])
    torch.testing.assert_close(actions[0][6:], setup.policy(before[6:]).detach())
    assert (rollout.latent != 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_first_minibatch_starts_from_ratio_1(name: str) -> None:
    setup = Setup(name, ppo__epochs=1, ppo__minibatches=1, ppo__learning_rate=0.01)
    for _ in range(4):
        before = torch.cat([value.detach().flatten().clone() for value in setup.policy.trained.parameters()])
        setup.iterate(1)
        metrics = setup.metrics()
        assert abs(metrics["policy/kl"]) < 1e-5
        assert metrics["policy/clipped"] == 0
        after = torch.cat([value.detach().flatten() for value in setup.policy.trained.parameters()])
        assert not torch.equal(before, after)
    assert set(metrics) <= set(METRICS)
    assert ("policy/entropy" in metrics) == ("policy/std" in metrics) == (name not in ("fpo", "dppo"))


@pytest.mark.parametrize(("name", "rate", "clip", "left"), [("fpo", 0.01, 0.1, 0.2), ("dppo", 0.02, 0.2, 0.6)])
def test_learns_where_the_reward_is(name: str, rate: float, clip: float, left: float) -> None:
    """Gaussian and GoRL, which begin the same way, do so in test_ppo."""
    setup = Setup(
        name,
        num_envs=64,
        ppo__epochs=3,
        ppo__minibatches=2,
        ppo__learning_rate=rate,
        ppo__clip=clip,
        ppo__target_kl=math.inf,
        ppo__discount=0.5,
        ppo__reward_scale=1.0,
    )
    setup.iterate(1)
    first = float(setup.collector.rollout.reward.mean())
    setup.iterate(20)
    assert float(setup.collector.rollout.reward.mean()) > left * first  # rewards are negative
    action = setup.policy(setup.collector.rollout.observation.flatten(0, 1)).detach()
    assert (action - TARGET).abs().mean().item() < 0.2


def test_gaussian_is_what_gorl_begins_with() -> None:
    gaussian, flow, diffusion = (Setup(name) for name in ("gaussian", "gorl_flow", "gorl_diffusion"))
    for setup in (gaussian, flow, diffusion):
        setup.iterate(3)
    assert not any(name.startswith("decoder") for name in gaussian.policy.state_dict())
    for other in (flow, diffusion):
        assert gaussian.metrics() == other.metrics()
        for mine, theirs in (
            (gaussian.policy.trained, other.policy.trained),
            (gaussian.learner.critic, other.learner.critic),
        ):
            assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))


def test_a_methods_own_settings_are_settings() -> None:
    for layer in methods.layers().values():
        values = config_values(resolve({}, layer))
        assert {name: values[name] for name in layer} == layer
    assert resolve({"ppo.clip": 0.3}, methods.find("fpo").defaults).ppo.clip == 0.3


def test_a_robot_of_many_actuators_has_wider_networks_and_may_be_less_noisy() -> None:
    few, many = (methods.configure({}, actuators, False, {"ppo.discount": 0.9}) for actuators in (8, 9))
    assert (few.networks.policy, few.networks.decoder, few.ppo.least_std) == ([64] * 3, [64] * 4, 1.0)
    assert many.ppo.entropy < few.ppo.entropy
    assert (many.networks.policy, many.networks.decoder, many.ppo.least_std) == ([128] * 3, [128] * 4, 0.0)
    assert few.ppo.discount == many.ppo.discount == 0.9
    given = {"method": "fpo", "networks.policy": [32, 32]}
    on_cpu = methods.configure(given, 9, True, {})
    assert (on_cpu.networks.policy, on_cpu.ppo.clip, on_cpu.num_envs) == ([32, 32], 0.05, 256)


def test_without_a_target_the_rate_is_fixed() -> None:
    setup = Setup("fpo", ppo__learning_rate=0.05, ppo__target_kl=math.inf)
    setup.iterate(3)
    assert float(setup.learner.policy_rate) == pytest.approx(0.05)


def test_an_unknown_method_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown method 'gorl_flw'; did you mean 'gorl_flow'"):
        methods.find("gorl_flw")


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_captured_rollouts_and_updates_learn_too(name: str) -> None:
    with torch.cuda.stream(torch.cuda.Stream()):
        setup = Setup(name, "cuda", num_envs=64, ppo__epochs=3, ppo__learning_rate=0.01, ppo__discount=0.5)
        setup.iterate(1)
        first = float(setup.collector.rollout.reward.mean())
        setup.iterate(30)
        metrics = setup.metrics()
    assert float(setup.collector.rollout.reward.mean()) > 0.7 * first
    assert all(value == value for value in metrics.values())
