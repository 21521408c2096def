"""A frozen evaluation: one episode per world and not a reward more, half of them without noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fake_environment import TARGET, Buffers, FakeEnvironment, small_config
from torch import Tensor

from gorl_robotics.evaluation import Evaluation, Evaluator
from gorl_robotics.methods.gorl import GorlPolicy

LIFETIMES = [1, 3, 99, 7, 2, 99, 5, 99]
LENGTH = 7  # the world with lifetime 7 ends for good and by time at once
MEAN, STD = torch.tensor([0.3, -0.8]), 1.0


class Logging(FakeEnvironment):
    """Remembers observations, actions, rewards and flags."""

    def __init__(self, seed: int = 0) -> None:
        self.seen: list[Tensor] = []
        self.actions: list[Tensor] = []
        self.rewards: list[Tensor] = []
        self.ended: list[Tensor] = []
        super().__init__(8, 0, episode_length=LENGTH, lifetimes=LIFETIMES, seed=seed)

    def apply(self, action: Tensor) -> None:
        self.seen.append(self.buffers.observation.clone())
        self.actions.append(action.clone())
        super().apply(action)

    def finish(self) -> Buffers:
        step = super().finish()
        self.rewards.append(step.reward.clone())
        self.ended.append(step.terminated | step.truncated)
        return step


def policy() -> GorlPolicy:
    """Acts with tanh z, z ~ N(MEAN, STD²) whatever it sees."""
    made = GorlPolicy.from_config(small_config(), 4, 2)
    made.latent.restart()
    with torch.no_grad():
        made.latent.network[-1].bias[:2] = MEAN
    return made


def first_episodes(env: Logging) -> list[float]:
    """Each world's rewards up to its first end."""
    returns = []
    for world in range(8):
        total = 0.0
        for reward, ended in zip(env.rewards, env.ended, strict=True):
            total += float(reward[world])
            if ended[world]:
                break
        returns.append(total)
    return returns


def test_without_noise_returns_have_a_closed_form() -> None:
    env = Logging()
    result = Evaluator(env, policy(), seed=1)()
    per_step = -sum((math.tanh(float(mean)) - TARGET) ** 2 for mean in MEAN)
    expected = [per_step * min(lifetime, LENGTH) for lifetime in LIFETIMES[:4]]
    assert result.deterministic.tolist() == pytest.approx(expected, rel=1e-5)
    for action in env.actions:
        torch.testing.assert_close(action[:4], MEAN.tanh().expand(4, 2))
        assert (action[4:] != action[0]).all()


def test_returns_are_those_of_exactly_one_episode() -> None:
    env = Logging()
    result = Evaluator(env, policy(), seed=1)()
    assert len(env.rewards) == LENGTH
    assert any(ended.any() for ended in env.ended[:-1])  # so that worlds began a second one
    computed = [*result.deterministic.tolist(), *result.stochastic.tolist()]
    assert computed == pytest.approx(first_episodes(env), rel=1e-5)


def test_worlds_start_at_the_beginning_of_an_episode() -> None:
    env = Logging()
    Evaluator(env, policy(), seed=1)()
    assert env.seen[0][:, 1].tolist() == [0.0] * 8


def test_a_second_evaluation_gives_the_same() -> None:
    env = Logging(seed=5)
    evaluator = Evaluator(env, policy(), seed=1)
    first = evaluator()
    second = evaluator()
    assert torch.equal(env.seen[0], env.seen[LENGTH])
    assert torch.equal(first.stochastic, second.stochastic)
    assert torch.equal(first.deterministic, second.deterministic)
    assert first.displacement == second.displacement == 0
    other = Evaluator(env, policy(), seed=2)()
    assert not torch.equal(first.stochastic, other.stochastic)


def test_evaluating_changes_nothing_about_the_policy() -> None:
    acting = policy()
    before = {name: value.clone() for name, value in acting.state_dict().items()}
    Evaluator(Logging(), acting, seed=1)()
    assert all(torch.equal(value, before[name]) for name, value in acting.state_dict().items())


def test_what_is_done_beside_an_evaluation_changes_nothing_about_it() -> None:
    acting = policy()
    alone = Evaluator(Logging(), acting, seed=1)()

    def work() -> None:
        torch.nn.init.constant_(acting.latent.network[-1].bias, 3.0)
        acting.generative = True

    evaluator = Evaluator(Logging(), acting, seed=1)
    beside = evaluator.beside(work)
    assert torch.equal(beside.deterministic, alone.deterministic)
    assert torch.equal(beside.stochastic, alone.stochastic)
    assert not torch.allclose(evaluator().deterministic, alone.deterministic)


def test_an_error_beside_an_evaluation_is_raised() -> None:
    def fails() -> None:
        raise ArithmeticError("seen")

    with pytest.raises(ArithmeticError, match="seen"):
        Evaluator(Logging(), policy(), seed=1).beside(fails)


def test_displacement_is_what_the_decoder_moves() -> None:
    acting, shift = policy(), 0.4
    evaluator = Evaluator(env := Logging(), acting, seed=1)
    torch.nn.init.constant_(acting.decoder.network[-1].bias, shift)  # decodes to z - shift
    acting.generative = True
    result = evaluator()
    moved = [(action - (action.atanh() + shift).tanh()).abs().mean() for action in env.actions]
    assert result.displacement == pytest.approx(float(torch.stack(moved).mean()), rel=1e-3)
    torch.testing.assert_close(env.actions[0][:4], (MEAN - shift).tanh().expand(4, 2), rtol=1e-4, atol=1e-5)


def test_summary_equals_numpy() -> None:
    draw = np.random.default_rng(0)
    values = {name: draw.normal(100, 30, 25) for name in ("deterministic", "stochastic")}
    tensors = [torch.tensor(value, dtype=torch.float32) for value in values.values()]
    row = Evaluation(tensors[0], tensors[1], 0.25).summary()
    for name, value in values.items():
        assert row[f"{name}_mean"] == pytest.approx(value.mean(), rel=1e-6)
        assert row[f"{name}_std"] == pytest.approx(value.std(ddof=1), rel=1e-6)
        assert row[f"{name}_p10"] == pytest.approx(np.percentile(value, 10), rel=1e-6)
    assert row["decoder_displacement"] == 0.25
    assert len(row) == 7


@pytest.mark.gpu
def test_on_cuda_too_a_second_evaluation_gives_the_same() -> None:
    # Seven steps are two eager calls, the capture and replays; later evaluations are replays alone.
    with torch.cuda.stream(torch.cuda.Stream()):
        env = FakeEnvironment(8, 0, episode_length=LENGTH, lifetimes=LIFETIMES, device="cuda")
        acting = policy().cuda()
        evaluator = Evaluator(env, acting, seed=1)
        results = [evaluator() for _ in range(3)]

        def work() -> None:
            torch.nn.init.constant_(acting.latent.network[-1].bias, 3.0)

        results.append(evaluator.beside(work))
    per_step = -sum((math.tanh(float(mean)) - TARGET) ** 2 for mean in MEAN)
    expected = [per_step * min(lifetime, LENGTH) for lifetime in LIFETIMES[:4]]
    for result in results:
        assert result.deterministic.tolist() == pytest.approx(expected, rel=1e-4)
        torch.testing.assert_close(result.stochastic, results[0].stochastic, rtol=1e-5, atol=1e-5)
