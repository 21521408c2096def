"""PPO: one whole update against plain torch, and a problem it must solve."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_environment import TARGET, small_config
from learner_setup import Setup, copied, side_stream, weights
from torch import Tensor
from torch.distributions import Normal

from gorl_robotics.advantages import advantages
from gorl_robotics.networks import fits_critic_kernel
from gorl_robotics.ppo import Learner
from gorl_robotics.rollout import Rollout


def reference_update(setup: Setup, rollout: Rollout) -> dict[str, Any]:
    """One update of `setup` in plain torch: unfused Adam, torch's distributions, no buffers. Changes nothing."""
    ppo, learner = setup.config.ppo, setup.learner
    policy, critic = copy.deepcopy(setup.policy), copy.deepcopy(learner.critic)
    seen = policy.normaliser(rollout.observation).flatten(0, 1)
    critic_seen = learner.critic_normaliser(rollout.critic_observation)
    with torch.no_grad():
        value = critic(critic_seen).squeeze(-1)
        ahead = critic(learner.critic_normaliser(rollout.terminal_critic_observation)).squeeze(-1)
    led_to = learner.critic_normaliser(rollout.terminal_critic_observation).clamp(-5, 5)
    assert learner.novelty is not None
    with torch.no_grad():
        error = (learner.novelty.guess(led_to) - learner.novelty.target(led_to)).square().mean(dim=-1)
    paid = rollout.reward + ppo.novelty * (error / error.mean()).clamp(max=5)
    reward, ends = paid * ppo.reward_scale, (rollout.terminated, rollout.truncated)
    gain = advantages(reward, value, ahead, *ends, ppo.discount, ppo.gae_lambda)
    target, gain = (gain + value).flatten(), gain.flatten()
    gain = (gain - gain.mean()) / gain.std()
    rate = ppo.learning_rate
    policy_adam = torch.optim.Adam(policy.latent.parameters(), lr=rate, fused=False, foreach=False)
    critic_adam = torch.optim.Adam(critic.parameters(), lr=rate, fused=False, foreach=False)
    generator = torch.Generator()
    generator.set_state(setup.generator.get_state())
    entropy_weight, to_zero, narrow = learner.regularisation.tolist()
    for _ in range(ppo.epochs):
        for rows in torch.randperm(rollout.samples, generator=generator).chunk(ppo.minibatches):
            now = Normal(*policy.latent(seen[rows]))
            log_ratio = (
                now.log_prob(rollout.latent.flatten(0, 1)[rows]).sum(1) - rollout.stored["log_prob"].flatten()[rows]
            )
            log_ratio = log_ratio.clamp(-3, 3)
            ratio = log_ratio.exp()
            surrogate = torch.min(ratio * gain[rows], ratio.clamp(1 - ppo.clip, 1 + ppo.clip) * gain[rows])
            pull = (to_zero * now.mean.square() + narrow * now.stddev.square()).sum(1).mean()
            loss = -surrogate.mean() - entropy_weight * now.entropy().sum(1).mean() + pull
            value_loss = 0.5 * (critic(critic_seen.flatten(0, 1)[rows]).squeeze(-1) - target[rows]).square().mean()
            for each, network, adam in ((loss, policy.latent, policy_adam), (value_loss, critic, critic_adam)):
                adam.zero_grad()
                each.backward()
                torch.nn.utils.clip_grad_norm_(network.parameters(), ppo.max_grad_norm)
                adam.step()
            kl = float((ratio - 1 - log_ratio).detach().mean())
            rate *= 1 / 1.5 if kl > 2 * ppo.target_kl else 1.5 if kl < ppo.target_kl / 2 else 1
            rate = policy_adam.param_groups[0]["lr"] = min(max(rate, 1e-5), ppo.learning_rate)
            entropy_weight *= 1.005 if now.stddev.mean() < ppo.least_std else 1 / 1.005
            entropy_weight = min(max(entropy_weight, ppo.entropy), 10 * ppo.entropy)
    return {"policy": weights(policy.latent), "critic": weights(critic), "rate": rate}


@pytest.mark.parametrize("norm", [0.8, 1.8], ids=["clips some of the policy's", "clips some of the critic's"])
def test_an_update_equals_plain_torch(norm: float) -> None:
    config = small_config(
        ppo__epochs=3,
        ppo__learning_rate=0.02,
        ppo__target_kl=0.01,
        ppo__reward_scale=0.3,
        ppo__max_grad_norm=norm,
    )
    setup = Setup(config, lifetimes=[2, 3, 4, 5, 99, 99, 99, 99])
    with torch.no_grad():  # a policy that depends on what it sees, but has not been optimised yet
        setup.policy.latent.network[-1].weight.normal_(0, 0.3, generator=setup.generator)
    rollout = setup.collector.collect()
    assert rollout.terminated.any()
    assert rollout.truncated.any()
    setup.policy.normaliser.update(rollout.observation + 1)
    setup.learner.critic_normaliser.update(rollout.critic_observation + 1)
    rollout = setup.collector.collect()
    expected = reference_update(setup, rollout)
    assert not torch.allclose(weights(setup.policy.latent), expected["policy"], atol=1e-2)
    setup.learner.update(rollout)
    torch.testing.assert_close(weights(setup.policy.latent), expected["policy"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(weights(setup.learner.critic), expected["critic"], rtol=1e-3, atol=1e-4)
    assert float(setup.learner.policy_rate) == pytest.approx(expected["rate"], rel=1e-5)
    assert expected["rate"] < 0.02  # so that the rate has been adapted


def on_cores(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(count)))


def halves_threads(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The names of the threads in which the halves of updates to come have run to their ends."""
    found = {}

    def watched(half: str, improve: Callable[[], None]) -> Callable[[], None]:
        def improved() -> None:
            improve()
            found[half] = threading.current_thread().name

        return improved

    for half in ("policy", "critic"):
        name = f"_{half}_minibatches"
        monkeypatch.setattr(learner, name, watched(half, getattr(learner, name)))
    return found


def test_two_threads_learn_what_one_does_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    on_cores(monkeypatch, 2)
    learnt = []
    for threads in (1, 2):
        setup = Setup(small_config(threads=threads, ppo__learning_rate=0.02))
        where = halves_threads(setup.learner, monkeypatch)
        setup.iterate(4)
        learner = setup.learner
        learnt.append([weights(setup.policy.latent), weights(learner.critic), learner.metrics(), learner.policy_rate])
        assert (where["policy"] != where["critic"]) is (threads == 2)
    for one, two in zip(*learnt, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(("cores", "processes"), [(1, 1), (2, 2)])
def test_a_single_core_and_several_processes_learn_in_one_thread(
    monkeypatch: pytest.MonkeyPatch, cores: int, processes: int
) -> None:
    on_cores(monkeypatch, cores)
    with monkeypatch.context() as patched:
        patched.setattr("gorl_robotics.distributed.size", lambda: processes)
        setup = Setup(small_config())
    where = halves_threads(setup.learner, monkeypatch)
    setup.iterate(1)
    assert where["policy"] == where["critic"]


@pytest.mark.parametrize("half", ["policy", "critic"])
def test_a_half_that_fails_fails_the_update_and_leaves_nothing_running(
    monkeypatch: pytest.MonkeyPatch, half: str
) -> None:
    on_cores(monkeypatch, 2)
    setup = Setup(small_config())
    where, other = halves_threads(setup.learner, monkeypatch), {"policy": "critic", "critic": "policy"}[half]
    setup.iterate(1)

    def fails() -> None:
        raise ArithmeticError(half)

    with monkeypatch.context() as patched:
        patched.setattr(setup.learner, f"_{half}_minibatches", fails)
        where.clear()
        with pytest.raises(ArithmeticError, match=half):
            setup.iterate(1)
        assert set(where) == {other}
    setup.iterate(1)
    assert set(where) == {"policy", "critic"}


def test_parts_done_for_their_kernels_change_no_later_update() -> None:
    plain, compiled = Setup(small_config()), Setup(small_config())
    for setup in (plain, compiled):
        setup.iterate(1)
        for part in setup.learner.parts() if setup is compiled else ():
            part()
        setup.iterate(1)
    assert torch.equal(weights(compiled.policy), weights(plain.policy))
    assert torch.equal(weights(compiled.learner.critic), weights(plain.learner.critic))
    for one, other in zip(compiled.learner.networks, plain.learner.networks, strict=True):
        assert torch.equal(weights(one), weights(other))


def test_every_sample_is_used_once_in_an_epoch() -> None:
    setup = Setup(small_config(ppo__epochs=2))
    setup.iterate(1)
    first, second = (order.flatten() for order in setup.learner._order.chunk(2))
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(48))
    assert not torch.equal(first, second)


def test_the_first_minibatch_starts_from_ratio_1() -> None:
    # Where statistics are updated before the optimisation, the log-probabilities of the rollout are stale.
    setup = Setup(small_config(ppo__epochs=1, ppo__minibatches=1, ppo__learning_rate=0.01))
    for _ in range(5):
        setup.iterate(1)
        assert abs(setup.metric("policy/kl")) < 1e-8
        assert setup.metric("policy/clipped") == 0
    mean, _ = setup.policy.latent(torch.randn(10, 4))
    assert mean.abs().max() > 0.01  # else ratio 1 says nothing


def test_statistics_take_in_the_rollout_afterwards() -> None:
    setup = Setup(small_config())
    setup.iterate(2)
    normaliser, critic = setup.policy.normaliser, setup.learner.critic_normaliser
    assert float(normaliser.count) == float(critic.count) == 2 * 48
    mean, squares = normaliser.mean.clone(), normaliser.squares.clone()
    rollout = setup.collector.collect()
    setup.learner.update(rollout)
    new = (mean * 96 + rollout.observation.double().flatten(0, 1).sum(dim=0)) / 144
    torch.testing.assert_close(normaliser.mean, new)
    assert (normaliser.squares[1:] > squares[1:]).all()


def test_learns_where_the_reward_is() -> None:
    config = small_config(
        num_envs=64,
        ppo__epochs=3,
        ppo__minibatches=2,
        ppo__learning_rate=0.02,
        ppo__target_kl=0.02,
        ppo__entropy=0.0,  # and so its weight stays
        ppo__discount=0.5,
        ppo__reward_scale=1.0,
        stages__first_regularisation=0.0,
    )
    setup = Setup(config)
    setup.iterate(1)
    first, spread = float(setup.collector.rollout.reward.mean()), setup.metric("policy/std")
    setup.iterate(12)
    rollout = setup.collector.collect()
    assert float(rollout.reward.mean()) > 0.2 * first  # rewards are negative
    assert setup.metric("policy/std") < 0.6 * spread
    action = setup.policy(rollout.observation.flatten(0, 1), torch.zeros(config.num_envs * 8, 2))
    assert (action - TARGET).abs().mean().item() < 0.15


def test_a_restored_learner_goes_on_exactly() -> None:
    config = small_config(ppo__learning_rate=0.01, ppo__target_kl=1e-3)
    setup, other = Setup(config), Setup(config)
    setup.iterate(3)
    setup.learner.regularisation.copy_(torch.tensor([0.01, 0.125, 0.25]))
    rate = other.learner.policy_rate
    other.policy.load_state_dict(setup.policy.state_dict())
    other.learner.load_state_dict(copy.deepcopy(setup.learner.state_dict()))
    other.generator.set_state(setup.generator.get_state())
    assert other.learner.policy_rate is rate  # as a captured update knows it
    assert float(rate) == float(setup.learner.policy_rate) < 0.01
    rollout = copied(setup.collector.collect())
    for each in (setup, other):
        each.generator.manual_seed(5)
        each.learner.update(rollout)
    assert torch.equal(weights(setup.policy), weights(other.policy))
    assert torch.equal(weights(setup.learner.critic), weights(other.learner.critic))
    assert torch.equal(setup.learner.policy_rate, other.learner.policy_rate)
    assert torch.equal(setup.learner.critic_normaliser.mean, other.learner.critic_normaliser.mean)
    assert torch.equal(other.learner.regularisation, setup.learner.regularisation)
    assert other.learner.regularisation[1:].tolist() == [0.125, 0.25]


def on_gpu_from(setup: Setup) -> Setup:
    """The same policy and learner on CUDA, restored from what a checkpoint holds: tensors on the CPU."""
    other = Setup(setup.config, "cuda")
    other.policy.load_state_dict(setup.policy.state_dict())
    other.learner.load_state_dict(copy.deepcopy(setup.learner.state_dict()))
    return other


def same_shuffles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Minibatches in the CPU's order on both devices, whose generators differ."""
    original, draw = torch.randperm, torch.Generator().manual_seed(11)

    def randperm(n: int, device: torch.device, generator: torch.Generator) -> Tensor:
        return original(n, generator=draw).to(device)

    monkeypatch.setattr(torch, "randperm", randperm)


@pytest.mark.gpu
def test_a_captured_update_equals_the_eager_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # 2 epochs of 4 minibatches: two eager calls, the capture and replays within the first update.
    config = small_config(num_envs=32, ppo__epochs=2, ppo__learning_rate=0.003, ppo__target_kl=0.01)
    setup = Setup(config, lifetimes=[3] * 10 + [99] * 24)
    setup.iterate(2)
    rollouts = [copied(setup.collector.collect()) for _ in range(2)]
    with side_stream():
        other = on_gpu_from(setup)
        for each in (setup, other):
            same_shuffles(monkeypatch)
            for rollout in rollouts:
                each.learner.update(copied(rollout, each.env.device.type))
            monkeypatch.undo()
        torch.cuda.synchronize()
    assert other.learner.policy_rate.is_cuda
    torch.testing.assert_close(weights(other.policy), weights(setup.policy), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(weights(other.learner.critic), weights(setup.learner.critic), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(other.learner.policy_rate.cpu(), setup.learner.policy_rate, rtol=1e-4, atol=0)
    torch.testing.assert_close(other.learner.metrics().cpu(), setup.learner.metrics(), rtol=1e-2, atol=1e-4)


@pytest.mark.gpu
def test_the_critics_kernel_improves_it_as_torch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(num_envs=32, ppo__epochs=2, networks__critic=[256] * 3)
    with side_stream():
        setup, other = Setup(config, "cuda"), Setup(config, "cuda")
        assert fits_critic_kernel(setup.learner.critic)
        rollout, before = setup.collector.collect(), weights(setup.learner.critic)
        for each in (setup, other):
            same_shuffles(monkeypatch)
            each.learner.update(copied(rollout, "cuda"))
            monkeypatch.undo()
            monkeypatch.setattr("gorl_robotics.losses.fits_critic_kernel", lambda critic: False)
        value_losses = [each.metric("loss/value") for each in (setup, other)]
    # Adam's first steps are as long where a gradient is nothing but rounding: no bound on single weights.
    change = (weights(setup.learner.critic) - before).norm()
    assert change > 0
    assert (weights(setup.learner.critic) - weights(other.learner.critic)).norm() < 0.01 * change
    assert value_losses[0] == pytest.approx(value_losses[1], rel=1e-4)


@pytest.mark.gpu
def test_a_captured_update_sees_a_restart() -> None:
    config = small_config(ppo__learning_rate=0.01, ppo__epochs=2)
    with side_stream():
        setup = Setup(config, "cuda")
        setup.iterate(2)
        setup.learner.restart_policy(0.0)
        setup.iterate(1)
        steps = [float(state["step"]) for state in setup.learner.policy_optimizer.state_dict()["state"].values()]
        mean, _ = setup.policy.latent(torch.randn(10, 4, device="cuda"))
    assert set(steps) == {8.0}  # minibatches since the restart
    assert 0 < float(mean.detach().abs().max()) < 1
