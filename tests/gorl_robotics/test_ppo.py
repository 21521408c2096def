"""PPO: the loss against a slow reference, one whole update against plain torch, and a problem it must solve."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_environment import TARGET, FakeEnvironment, small_config
from torch import Tensor
from torch.distributions import Normal

from gorl_robotics.advantages import advantages
from gorl_robotics.config import Config
from gorl_robotics.losses import policy_loss
from gorl_robotics.methods.gorl import GorlPolicy
from gorl_robotics.networks import fits_critic_kernel
from gorl_robotics.ppo import METRICS, Learner
from gorl_robotics.rollout import Collector, Rollout

ZERO = torch.zeros(3)


class Setup:
    """A fake environment, a policy, its collector and its learner."""

    def __init__(self, config: Config, device: str = "cpu", **env: Any) -> None:
        torch.manual_seed(0)
        self.config = config
        self.env = FakeEnvironment(config.num_envs, device=device, **env)
        where = self.env.device
        self.policy = GorlPolicy.from_config(config, 4, 2).to(where)
        self.generator = torch.Generator(where).manual_seed(1)
        steps = config.ppo.rollout_steps
        self.learner = Learner(self.policy, 5, config, config.num_envs * steps, where, self.generator)
        self.collector = Collector(self.env, self.policy, steps, self.generator)

    def iterate(self, times: int) -> None:
        for _ in range(times):
            self.learner.update(self.collector.collect())

    def metric(self, name: str) -> float:
        return float(self.learner.metrics()[METRICS.index(name)])


def weights(module: torch.nn.Module) -> Tensor:
    return torch.cat([value.detach().flatten().cpu().clone() for value in module.parameters()])


def copied(rollout: Rollout, device: str = "cpu") -> Rollout:
    def clone(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: clone(each) for name, each in value.items()}
        return value.clone().to(device)

    return Rollout(**clone(vars(rollout)))


def minibatch() -> dict[str, Tensor]:
    """Three samples of a two-dimensional latent; ratios below, within and above the clip range."""
    mean = torch.tensor([[0.1, -0.2], [0.4, 0.0], [-0.3, 0.6]])
    std = torch.tensor([[1.0, 0.5], [0.8, 1.2], [0.6, 0.9]])
    latent = torch.tensor([[0.5, -0.4], [0.0, 1.0], [-0.5, 0.2]])
    log_prob = Normal(mean, std).log_prob(latent).sum(dim=1)
    return {
        "mean": mean,
        "std": std,
        "latent": latent,
        "old_log_prob": log_prob - torch.tensor([0.6, 0.05, 0.6]).mul(torch.tensor([-1.0, 1.0, 1.0])),
        "advantage": torch.tensor([1.5, -0.5, 0.7]),
    }


def test_policy_loss_equals_a_slow_reference() -> None:
    batch, clip, entropy_weight, pulls = minibatch(), 0.2, 0.03, {"mean": 0.07, "std": 0.04}
    surrogate, entropy, kl, clipped = 0.0, 0.0, 0.0, 0
    for row in range(3):
        new = 0.0
        for i in range(2):
            mean, std, z = (float(batch[name][row, i]) for name in ("mean", "std", "latent"))
            new += -((z - mean) ** 2) / (2 * std**2) - math.log(std) - math.log(2 * math.pi) / 2
            entropy += (0.5 * math.log(2 * math.pi * math.e * std**2)) / 3
        ratio, advantage = math.exp(new - float(batch["old_log_prob"][row])), float(batch["advantage"][row])
        surrogate += min(ratio * advantage, min(max(ratio, 1 - clip), 1 + clip) * advantage) / 3
        kl += (ratio - 1 - math.log(ratio)) / 3
        clipped += abs(ratio - 1) > clip
    pull = sum(weight * float((batch[name] ** 2).sum()) / 3 for name, weight in pulls.items())
    expected = -surrogate - entropy_weight * entropy + pull
    terms = policy_loss(**batch, clip=clip, regularisation=torch.tensor([entropy_weight, *pulls.values()]))
    assert float(terms.loss) == pytest.approx(expected, rel=1e-5)
    assert float(terms.kl) == pytest.approx(kl, rel=1e-4)
    assert float(terms.entropy) == pytest.approx(entropy, rel=1e-5)
    assert clipped == 2
    assert float(terms.clipped) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "moves"),
    [(0.5, 1.0, False), (-0.5, -1.0, False), (0.5, -1.0, True), (-0.5, 1.0, True), (0.1, 1.0, True)],
)
def test_no_gradient_where_clipped(log_ratio: float, advantage: float, moves: bool) -> None:
    mean = torch.tensor([[0.2, -0.1]], requires_grad=True)
    std, latent = torch.tensor([[0.7, 1.1]]), torch.tensor([[0.9, 0.4]])
    old = Normal(mean.detach(), std).log_prob(latent).sum(dim=1) - log_ratio
    loss = policy_loss(mean, std, latent, old, torch.tensor([advantage]), 0.2, ZERO).loss
    loss.backward()
    assert mean.grad is not None
    assert bool((mean.grad != 0).all()) is moves
    assert bool((mean.grad != 0).any()) is moves


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


def side_stream() -> torch.cuda.StreamContext:
    """Where captures work, as `prepare_device` has it for a whole run."""
    return torch.cuda.stream(torch.cuda.Stream())


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
    assert 0 < float(mean.abs().max()) < 1
