"""Auditions: several policies learn side by side as each would alone; the best goes on if it beats the first one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from fake_environment import FakeEnvironment, small_config
from torch import Tensor

from gorl_robotics.audition import Audition, Cast, candidates, steps_of
from gorl_robotics.config import Config
from gorl_robotics.methods.fpo import Fpo
from gorl_robotics.methods.gorl import GorlPolicy
from gorl_robotics.ppo import Learner
from gorl_robotics.rollout import Collector

WORLDS, MONITORS, COUNT = 768, 5, 3
SETTINGS: dict[str, Any] = {
    "num_envs": WORLDS,
    "monitors": MONITORS,
    "stages__candidates": COUNT,
    "stages__audition": 2,
    "refit__samples": 1000,
    "ppo__epochs": 2,
    "networks__policy": [16, 16],
    "networks__critic": [16, 16],
}
DEVICES = [pytest.param("cpu"), pytest.param("cuda", marks=pytest.mark.gpu)]


class Setup:
    """An audition in the fake environment."""

    def __init__(self, device: str = "cpu") -> None:
        torch.manual_seed(0)
        self.config = small_config(**SETTINGS)
        self.env = FakeEnvironment(WORLDS, MONITORS, device=device)
        self.device = self.env.device
        self.first = self.policy()
        self.audition = Audition(self.policy, self.first, 5, self.config, self.device, self.generator())
        steps = self.config.ppo.rollout_steps
        self.collector = Collector(self.env, self.audition.cast, steps, self.env.generator)
        self.samples = WORLDS * steps

    def policy(self) -> GorlPolicy:
        made = GorlPolicy.from_config(self.config, 4, 2).to(self.device)
        for parameter in made.latent.network[-1].parameters():
            torch.nn.init.normal_(parameter, 0.0, 0.3)
        return made

    def generator(self) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(7)

    def learner(self, policy: GorlPolicy, samples: int) -> Learner:
        return Learner(policy, 5, self.config, samples, self.device, self.generator())

    def iterate(self, times: int) -> None:
        for _ in range(times):
            self.audition.update(self.collector.collect())


def state(learner: Learner) -> list[Tensor]:
    """Everything a learner and its policy are made of, copied."""

    def tensors(value: Any) -> list[Tensor]:
        if isinstance(value, Tensor):
            return [value.detach().cpu().clone()]
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        return [tensor for part in parts for tensor in tensors(part)]

    return tensors(learner.state_dict()) + tensors(dict(learner.policy.state_dict()))


@pytest.mark.parametrize("method", [GorlPolicy, Fpo])
def test_each_policy_acts_in_its_own_worlds_and_the_first_in_the_monitors(method: Any) -> None:
    config = small_config()
    *others, first = policies = [method.from_config(config, 4, 2) for _ in range(4)]
    for policy in policies:
        for parameter in policy.parameters():
            torch.nn.init.normal_(parameter, 0.0, 0.3)
    cast = Cast(others, first, 6, torch.device("cpu"))
    observation, noise = torch.randn(9, 4), torch.randn(9, cast.noise_size)
    acted = cast.act(observation, noise, torch.Generator())
    for policy, worlds in zip(policies, ([0, 1], [2, 3], [4, 5], [6, 7, 8]), strict=True):
        alone = policy.act(observation[worlds], noise[worlds], torch.Generator())
        for name in ("latent", "decoded", "action"):
            torch.testing.assert_close(getattr(acted, name)[worlds], getattr(alone, name), rtol=1e-5, atol=1e-6)
        assert acted.stored.keys() == alone.stored.keys()
    assert not torch.allclose(policies[0].act(observation, noise).action, acted.action, atol=1e-2)


@pytest.fixture
def side_stream() -> Iterator[None]:
    """Captures do not work in the default stream of a GPU."""
    with torch.cuda.stream(torch.cuda.Stream()) if torch.cuda.is_available() else nullcontext():
        yield


@pytest.mark.usefixtures("side_stream")
@pytest.mark.parametrize("device", DEVICES)
def test_candidates_learn_as_each_would_alone(device: str) -> None:
    setup = Setup(device)
    generators = [generator.get_state() for generator in setup.audition.generators]
    share = WORLDS // COUNT
    alone = []
    for learner, generator in zip(setup.audition.learners, generators, strict=True):
        other = setup.learner(copy.deepcopy(learner.policy), setup.samples // COUNT)
        other.load_state_dict(learner.state_dict())
        other._generator.set_state(generator)
        alone.append(other)
    for _ in range(4):  # on a GPU the third update is the first captured one
        rollout = setup.collector.collect()
        for k, learner in enumerate(alone):
            learner.update(rollout.of_worlds(k * share, (k + 1) * share))
            learner.wait()
        setup.audition.update(rollout)
    for learner, other in zip(setup.audition.learners, alone, strict=True):
        for found, expected in zip(state(learner), state(other), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    first, second, _ = (state(learner)[0] for learner in setup.audition.learners)
    assert not torch.allclose(first, second, atol=1e-3), "they are all the same"


@pytest.mark.usefixtures("side_stream")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("earned", [-10.0, 10.0])
def test_the_best_goes_on_if_it_earned_more_than_the_first(device: str, earned: float) -> None:
    setup = Setup(device)
    with torch.no_grad():  # the fake environment pays for actions of 0.5: tanh 0.549
        last = setup.audition.learners[1].policy.latent.network[-1]
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0.549, 0.549, -4.0, -4.0]))
    setup.iterate(2)
    policy = setup.policy()
    learner = setup.learner(policy, setup.samples)
    learner.earned.fill_(earned)
    before = state(learner)
    said = setup.audition.elect(policy, learner)
    assert said.startswith("the first policy goes on: " if earned > 0 else "the best of them goes on: ")
    for found, expected in zip(
        state(learner), before if earned > 0 else state(setup.audition.learners[1]), strict=True
    ):
        assert torch.equal(found, expected)
    setup.collector.act_with(policy)
    learner.update(setup.collector.collect())
    assert torch.isfinite(learner.metrics()).all()


def test_metrics_are_means_over_the_candidates() -> None:
    setup = Setup()
    setup.iterate(1)
    each = torch.stack([learner.metrics() for learner in setup.audition.learners])
    later = setup.audition.metrics_later(torch.tensor(3.0)).now()
    torch.testing.assert_close(later, torch.cat([torch.tensor([3.0]), each.mean(dim=0)]))
    assert len(setup.audition.metric_names) == each.shape[1]
    assert float(setup.audition.policy_rate) > 0


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, 16),
        ({"num_envs": 256}, 0),
        ({"num_envs": 1001}, 0),  # no two or three have an equal share
        ({"num_envs": 1024}, 4),
        ({"num_envs": 16384, "total_steps": 300_000_000}, 16),
        ({"num_envs": 16384}, 0),  # 58 of a hundred million steps
        ({"total_steps": 60_000_000}, 0),  # the first stage would end before it
        ({"total_steps": 60_000_000, "stages.fractions": [1.0]}, 16),
        ({"total_steps": 50_000_000, "stages.fractions": [1.0]}, 0),  # more than a quarter
        ({"stages.candidates": 0}, 0),
        ({"stages.candidates": 1}, 0),
        ({"stages.candidates": 5}, 4),
    ],
)
def test_as_many_audition_as_have_worlds_and_steps_enough(settings: dict[str, Any], count: int) -> None:
    config = Config()
    for name, value in settings.items():
        group, _, last = name.rpartition(".")
        setattr(getattr(config, group) if group else config, last, value)
    assert candidates(config, 1) == count


def test_its_steps_are_those_of_all_processes() -> None:
    assert steps_of(Config(), 1) == 110 * 4096 * 32
    assert steps_of(Config(), 2) == 2 * steps_of(Config(), 1)
    assert candidates(Config(), 2) == 0, "29 of a hundred million steps"


@pytest.mark.parametrize(
    ("worlds", "processes", "wanted", "held", "count"),
    [
        (2048, 2, 16, None, 8),  # as one process with 4,096
        (4096, 2, 16, None, 8),  # in twice as many worlds
        (1024, 4, 16, None, 4),
        (256, 2, 16, None, 1),
        (256, 1, 16, None, 0),
        (4096, 32, 16, None, 1),  # at least one in each
        (4096, 2, 1, None, 0),
        (2048, 1, 16, 16, 8),  # half of those of two processes
        (2048, 4, 16, 16, 4),
        (2048, 3, 16, 16, 4),  # a fifth would not share the worlds out
        (2048, 4, 16, 3, 1),  # one of them new
    ],
)
def test_processes_share_the_candidates_out(
    worlds: int, processes: int, wanted: int, held: int | None, count: int
) -> None:
    config = Config(num_envs=worlds, total_steps=10**10)
    config.stages.candidates = wanted
    assert candidates(config, processes, held) == count
