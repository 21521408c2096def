"""What keeps the latent Gaussian in shape: its rate, its entropy, the pulls, and a restart."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from fake_environment import small_config
from learner_setup import Setup

from gorl_robotics.methods.gorl import GorlPolicy
from gorl_robotics.ppo import Learner


def test_restart_keeps_the_critic_and_what_the_policy_sees_and_forgets_how_it_acts() -> None:
    config = small_config(ppo__learning_rate=0.01, ppo__target_kl=1e-4, stages__first_regularisation=0.125)
    setup = Setup(config)
    setup.iterate(3)
    learner, policy = setup.learner, setup.policy
    kept = copy.deepcopy([learner.critic.state_dict(), learner.critic_normaliser.state_dict()])
    kept += copy.deepcopy([policy.normaliser.state_dict(), policy.decoder.state_dict()])
    critic_adam = copy.deepcopy(learner.critic_optimizer.state_dict()["state"])
    rate = learner.policy_rate
    assert float(rate) < 0.01
    hidden = copy.deepcopy(policy.latent.network[:-1].state_dict())
    learner.regularisation[0] *= 3
    learner.restart_policy(0.25)
    assert all(torch.equal(hidden[name], value) for name, value in policy.latent.network[:-1].state_dict().items())
    mean, std = policy.latent(torch.randn(20, 4))
    assert torch.equal(mean, torch.zeros(20, 2))
    torch.testing.assert_close(std, torch.ones(20, 2))
    assert learner.policy_rate is rate
    assert float(rate) == pytest.approx(0.01)
    assert learner.regularisation.tolist() == pytest.approx([config.ppo.entropy, 0.125, 0.25])
    states = list(learner.policy_optimizer.state_dict()["state"].values())
    assert states
    assert all(not value.any() for state in states for value in state.values())
    now = [learner.critic.state_dict(), learner.critic_normaliser.state_dict()]
    now += [policy.normaliser.state_dict(), policy.decoder.state_dict()]
    assert all(torch.equal(a[name], b[name]) for a, b in zip(kept, now, strict=True) for name in a)
    after = learner.critic_optimizer.state_dict()["state"]
    assert all(torch.equal(critic_adam[i][name], after[i][name]) for i in after for name in after[i])


@pytest.mark.parametrize(
    ("kl", "before", "after"),
    [
        (0.021, 1e-3, 1e-3 / 1.5),
        (0.0049, 1e-3, 1.5e-3),
        (0.006, 1e-3, 1e-3),
        (0.019, 1e-3, 1e-3),
        (0.0, 0.0095, 0.01),
        (9.0, 1.2e-5, 1e-5),
    ],
)
def test_rate_follows_the_kl(kl: float, before: float, after: float) -> None:
    learner = Setup(small_config(ppo__learning_rate=0.01, ppo__target_kl=0.01)).learner
    learner.policy_rate.fill_(before)
    learner._adapt_rate(torch.tensor(kl))
    assert float(learner.policy_rate) == pytest.approx(after, rel=1e-5)
    assert learner.critic_optimizer.rate == 0.01


@pytest.mark.parametrize(("share", "highest"), [(1.0, 0.01), (0.3, 0.003), (0.0, 1e-5)])
def test_the_highest_rate_can_be_lowered(share: float, highest: float) -> None:
    learner = Setup(small_config(ppo__learning_rate=0.01, ppo__target_kl=0.01)).learner
    learner.bound_rate(share)
    learner._adapt_rate(torch.tensor(0.0))
    assert float(learner.policy_rate) == pytest.approx(highest, rel=1e-5)


@pytest.mark.parametrize(
    ("std", "before", "after"),
    [(0.99, 0.02, 0.0201), (1.01, 0.02, 0.02 / 1.005), (0.5, 0.0499, 0.05), (3.0, 0.00501, 0.005)],
)
def test_entropy_keeps_the_mean_deviation_up(std: float, before: float, after: float) -> None:
    learner = Setup(small_config(ppo__entropy=0.005, ppo__least_std=1.0)).learner
    learner.regularisation[0] = before
    learner._adapt_entropy(torch.tensor(std))
    assert float(learner.regularisation[0]) == pytest.approx(after, rel=1e-5)


def test_the_deviation_is_kept_up_where_a_narrow_one_pays() -> None:
    narrow, kept = (
        Setup(small_config(ppo__learning_rate=0.02, ppo__discount=0.5, ppo__entropy=0.05, ppo__least_std=least))
        for least in (0.0, 1.0)
    )
    for setup in (narrow, kept):
        setup.iterate(40)
    assert narrow.metric("policy/std") < 0.8
    assert kept.metric("policy/std") > narrow.metric("policy/std") + 0.1


@pytest.mark.parametrize(("actuators", "expected"), [(1, 0.1), (4, 0.1), (8, 0.2), (21, 0.525)])
def test_many_actuators_are_pulled_harder(actuators: int, expected: float) -> None:
    config = small_config(stages__first_regularisation=0.1)
    policy = GorlPolicy.from_config(config, 4, actuators)
    learner = Learner(policy, 5, config, 64, torch.device("cpu"), torch.Generator())
    assert learner.regularisation[1:].tolist() == pytest.approx([expected, expected])


@pytest.mark.parametrize(("saved", "expected"), [(0.5, [0.01, 0.25, 0.25]), ([0.02, 0.125], [0.02, 0.125, 0.125])])
def test_a_former_checkpoint_has_one_pull(saved: Any, expected: list[float]) -> None:
    setup = Setup(small_config(ppo__entropy=0.01))
    setup.learner.load_state_dict({**setup.learner.state_dict(), "regularisation": torch.tensor(saved)})
    assert setup.learner.regularisation.tolist() == pytest.approx(expected)
