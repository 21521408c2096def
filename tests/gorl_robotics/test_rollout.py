"""The collector: rows that belong together, monitors apart, buffers reused, exact repetition."""

from __future__ import annotations

import pytest
import torch
from fake_environment import DRIFT, TARGET, FakeEnvironment, small_config
from torch import Tensor
from torch.distributions import Normal

from gorl_robotics.methods.gorl import GorlPolicy
from gorl_robotics.rollout import Collector, Rollout

STEPS, ENVS, MONITORS = 8, 6, 2
LIFETIMES = [2, 3, 5, 99, 99, 99, 99, 4]  # termination and truncation, at the age of 5 even in one step


class Logging(FakeEnvironment):
    """Remembers every action."""

    def __init__(self, seed: int = 0, device: str = "cpu") -> None:
        self.actions: list[Tensor] = []
        super().__init__(ENVS, MONITORS, episode_length=5, lifetimes=LIFETIMES, seed=seed, device=device)

    def apply(self, action: Tensor) -> None:
        self.actions.append(action.clone())
        super().apply(action)


def policy(generative: bool = False) -> GorlPolicy:
    """One whose latent's mean and deviation, and whose decoder, depend on the observation."""
    torch.manual_seed(0)
    made = GorlPolicy.from_config(small_config(), 4, 2)
    torch.nn.init.normal_(made.latent.network[-1].weight, std=0.2)
    torch.nn.init.normal_(made.decoder.network[-1].weight, std=0.2)
    made.normaliser.update(torch.randn(50, 4) * torch.tensor([3.0, 2.0, 1.0, 1.0]) + 2)
    made.generative = generative
    return made


def tensors(rollout: Rollout) -> dict[str, Tensor]:
    everything = {**vars(rollout), **rollout.stored}
    del everything["stored"]
    return everything


def collected(seed: int = 3, generative: bool = False) -> tuple[Logging, GorlPolicy, Rollout]:
    env, acting = Logging(), policy(generative)
    collector = Collector(env, acting, STEPS, torch.Generator().manual_seed(seed))
    return env, acting, collector.collect()


@pytest.mark.parametrize("generative", [False, True])
def test_a_row_holds_what_belongs_together(generative: bool) -> None:
    env, acting, rollout = collected(generative=generative)
    seen, ended = rollout.observation, rollout.terminated | rollout.truncated
    assert torch.equal(seen[..., 0], torch.arange(6.0).expand(STEPS, 6))  # worlds, monitors left out
    decoded = acting.decoder(seen.flatten(0, 1), rollout.latent.flatten(0, 1)) if generative else rollout.latent
    torch.testing.assert_close(rollout.action, decoded.detach().view(STEPS, ENVS, 2), rtol=1e-5, atol=1e-5)
    assert torch.allclose(rollout.action, rollout.latent) is not generative
    action = rollout.action.tanh()
    torch.testing.assert_close(torch.stack(env.actions)[:, :ENVS], action)
    torch.testing.assert_close(rollout.reward, -((action - TARGET) ** 2).sum(dim=-1))
    led_to = torch.cat([seen[..., :1], seen[..., 1:2] + 1, seen[..., 2:] + DRIFT * action], dim=-1)
    torch.testing.assert_close(rollout.terminal_observation, led_to)
    assert torch.equal(rollout.terminal_critic_observation[..., :4], rollout.terminal_observation)
    assert torch.equal(rollout.terminal_critic_observation[..., 4], rollout.critic_observation[..., 4])
    assert torch.equal(rollout.critic_observation[..., :4], seen)
    goes_on = ~ended[:-1]
    assert torch.equal(seen[1:][goes_on], rollout.terminal_observation[:-1][goes_on])
    assert (seen[1:][~goes_on][:, 1] == 0).all()  # the next episode's first observation


def test_flags_are_those_of_the_step() -> None:
    _, _, rollout = collected()
    age = rollout.terminal_observation[..., 1]
    assert torch.equal(rollout.terminated, age >= torch.tensor(LIFETIMES[:ENVS]))
    assert torch.equal(rollout.truncated, age >= 5)
    assert (rollout.terminated & ~rollout.truncated).any()
    assert (rollout.truncated & ~rollout.terminated).any()


def test_log_prob_is_the_density_of_the_latent() -> None:
    _, acting, rollout = collected()
    mean, std = acting.latent(acting.normaliser(rollout.observation))
    torch.testing.assert_close(rollout.stored["log_prob"], Normal(mean, std).log_prob(rollout.latent).sum(dim=-1))
    assert (rollout.latent - mean).abs().min() > 0  # sampled


def test_monitors_act_with_the_mean() -> None:
    env, acting = Logging(), policy()
    collector = Collector(env, acting, 1, torch.Generator().manual_seed(3))
    for _ in range(10):
        before = env.buffers.observation.clone()
        collector.collect()
        mean = acting(before, torch.zeros(ENVS + MONITORS, 2))
        torch.testing.assert_close(env.actions[-1][ENVS:], mean[ENVS:])
        assert (env.actions[-1][:ENVS] != mean[:ENVS]).all()


def test_buffers_are_reused_and_the_episodes_go_on() -> None:
    env, acting = Logging(), policy()
    collector = Collector(env, acting, STEPS, torch.Generator().manual_seed(3))
    first = collector.collect()
    storage = [tensor.data_ptr() for tensor in tensors(first).values()]
    latent, last = first.latent.clone(), env.buffers.observation[:ENVS].clone()
    second = collector.collect()
    assert second is first
    assert [tensor.data_ptr() for tensor in tensors(second).values()] == storage
    assert torch.equal(second.observation[0], last)
    assert (second.latent != latent).all()
    assert env.refreshed == 2


def test_the_seed_decides_everything() -> None:
    same, other = collected(seed=3), collected(seed=4)
    first = collected(seed=3)[2]
    assert all(torch.equal(value, tensors(same[2])[name]) for name, value in tensors(first).items())
    assert not torch.equal(first.latent, other[2].latent)
    assert len(first.latent.unique()) == first.latent.numel()  # every step and world draws its own


def test_recorded_is_what_storage_expects() -> None:
    from gorl_robotics.recording import ROLLOUT

    _, _, rollout = collected()
    assert set(rollout.recorded()) == set(ROLLOUT)
    assert rollout.samples == STEPS * ENVS


@pytest.mark.gpu
def test_a_captured_rollout_is_as_consistent_as_an_eager_one() -> None:
    with torch.cuda.stream(torch.cuda.Stream()):
        env = FakeEnvironment(ENVS, MONITORS, episode_length=5, lifetimes=LIFETIMES, device="cuda")
        acting = policy().cuda()
        collector = Collector(env, acting, STEPS, torch.Generator("cuda").manual_seed(3))
        for _ in range(3):
            rollout = collector.collect()
        torch.cuda.synchronize()
    action, seen = rollout.action.tanh(), rollout.observation
    torch.testing.assert_close(rollout.reward, -((action - TARGET) ** 2).sum(dim=-1))
    torch.testing.assert_close(rollout.terminal_observation[..., 2:], seen[..., 2:] + DRIFT * action)
    goes_on = ~(rollout.terminated | rollout.truncated)[:-1]
    assert torch.equal(seen[1:][goes_on], rollout.terminal_observation[:-1][goes_on])
    mean, std = acting.latent(acting.normaliser(seen))
    density = Normal(mean, std).log_prob(rollout.latent).sum(dim=-1)
    torch.testing.assert_close(rollout.stored["log_prob"], density, rtol=1e-4, atol=1e-4)
    assert len(rollout.latent.unique()) == rollout.latent.numel()
