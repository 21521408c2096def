"""Noise on what the policy sees, and model parameters that differ between worlds: where they act and where not."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any, ClassVar

import pytest
import torch
from fake_task import Slider, actions, copy, same, state, variant
from torch import Tensor

from envs.draws import Draws
from envs.dry_run import dry_run
from envs.fields import Fields
from envs.gymnasium_env import GymnasiumEnv, GymnasiumVectorEnv
from envs.native_simulation import NativeSimulation
from envs.task import Parameters, Task
from envs.vector_env import VectorEnv
from gorl_robotics.errors import InputError
from gorl_robotics.graphs import captured
from tasks.ant_velocity import AntVelocity


class Weighted(Slider):
    """A slider whose block weighs something else in every episode; only the critic is told."""

    name = "Weighted"
    randomised: ClassVar[tuple[str, ...]] = ("body_mass",)

    def parameters(self, sim: Fields, random: Draws) -> Parameters:
        mass = 1 + random.uniform(1)
        return Parameters({"body_mass": mass * sim.tensor(sim.model.body_mass)}, told={"mass": mass})


NOISE = {"position": 0.5, "target": 0.1}


def env_of(task: type[Task], worlds: int = 6, seed: int = 0, **attributes: Any) -> VectorEnv:
    noise = attributes.pop("noisy", True)
    env = VectorEnv(variant(task, **attributes), worlds, seed=seed, threads=1, noise=noise)
    env.restart(random_phase=False)
    return env


def masses(env: VectorEnv) -> Tensor:
    assert isinstance(env.sim, NativeSimulation)
    return torch.tensor([env.sim._batch.get_model(i).body_mass[1] for i in range(env.num_worlds)])


# --- noise ---------------------------------------------------------------------------------------


def test_noise_is_uniform_within_the_half_width_of_its_term_and_the_critic_sees_none() -> None:
    env = env_of(Slider, 3000, noise=NOISE, episode_length=3)
    for k, action in enumerate(actions(env, 3)):
        step = env.step(action)
        off = step.terminal_observation - step.terminal_critic_observation[:, :3]
        assert off[:, 1].abs().max() == 0.0  # the velocity has none
        for column, width in ((0, 0.5), (2, 0.1)):
            assert 0.99 * width < off[:, column].abs().max() <= width * 1.0001
            assert off[:, column].std() == pytest.approx(width / math.sqrt(3), rel=0.05)
        assert step.truncated.all() == (k == 2)
    first = step.observation - step.critic_observation[:, :3]  # an episode's first observation
    assert 0.49 < first[:, 0].abs().max() <= 0.5001
    assert abs(torch.corrcoef(torch.stack([first[:, 0], off[:, 0]]))[0, 1]) < 0.1


def test_noise_touches_neither_rewards_nor_states_nor_an_evaluation() -> None:
    quiet, noisy, evaluated = (env_of(Slider, noise=noise, noisy=on) for noise, on in (({}, 1), (NOISE, 1), (NOISE, 0)))
    for action in actions(quiet, 5):
        step, other = copy(quiet.step(action)), copy(evaluated.step(action))
        assert all(same(step[name], other[name]) for name in step)
        noisy.step(action)
        assert same(noisy.sim.qpos, quiet.sim.qpos)
        assert not same(noisy.buffers.observation, quiet.buffers.observation)
        noisy.state["target"].copy_(quiet.state["target"])  # which wanders by other draws


def test_a_task_without_noise_draws_what_it_drew(monkeypatch: pytest.MonkeyPatch) -> None:
    env, drawn = env_of(Slider), []
    monkeypatch.setattr(type(env._draws), "uniform", lambda self, *size: drawn.append(size) or torch.zeros(6, *size))
    env.step(torch.zeros(6, 1))
    assert drawn == [(1,)]  # Slider.update's own
    assert env._noise is None
    assert env_of(Slider, noise={"position": 0.0})._noise is None


@pytest.mark.parametrize(
    ("noise", "told"),
    [
        ({"positon": 0.1}, "unknown observation term in Slider.noise 'positon'; did you mean 'position'?"),
        ({"position": -0.1}, "Slider.noise: term 'position' has half-width -0.1, expected 0 or more"),
        ({"position": math.nan}, "Slider.noise: term 'position' has half-width nan, expected 0 or more"),
    ],
)
def test_noise_that_makes_no_sense_is_told(noise: dict[str, float], told: str) -> None:
    task = variant(Slider, noise=noise)
    with pytest.raises(InputError) as caught:
        dry_run(task, task.compile())
    assert str(caught.value) == told


# --- parameters ----------------------------------------------------------------------------------


def test_every_episode_has_its_own_mass_from_the_rollout_that_follows_its_start() -> None:
    env = env_of(Weighted, episode_length=4)
    assert env.critic_observation_size == 5
    first = masses(env)
    assert len(first.unique()) == 6
    assert ((first >= 4.0 / 4) & (first <= 2)).all()
    env.episode_step[3:] = 2
    for k, action in enumerate(actions(env, 4)):
        step = env.step(action)
        assert same(masses(env), first)  # nothing is written while a rollout runs
        told = first.float()
        assert torch.allclose(step.critic_observation[:, 4], told)
        assert torch.allclose(step.terminal_critic_observation[:, 4], told)
        if k == 1:
            env.refresh_starts()  # the next rollout
            second = masses(env)
            assert same(second[:3], first[:3])
            assert (second[3:] != first[3:]).all()
            assert torch.allclose(env.buffers.critic_observation[:, 4], second.float())
            first = second
    env.restart(random_phase=False)
    assert (masses(env) != first).all()


def test_a_heavier_world_accelerates_less() -> None:
    env = env_of(Weighted)
    before = env.sim.qvel.clone()
    env.step(torch.ones(6, 1))
    push = (env.sim.qvel - before)[:, 0] * masses(env)
    assert (push / push.mean() - 1).abs().max() < 0.01  # all but the damping


def test_parameters_are_drawn_again_alike_from_the_same_seed_and_survive_a_resume() -> None:
    first, twin, other = env_of(Weighted, seed=1), env_of(Weighted, seed=1), env_of(Weighted, seed=2, episode_length=9)
    assert same(masses(first), masses(twin))
    assert not same(masses(first), masses(other))
    first = env_of(Weighted, seed=1, episode_length=9)
    first.episode_step[2:4] = 7
    for action in actions(first, 3):
        first.step(action)
    saved = first.state_dict()
    other.load_state_dict(saved)
    assert same(masses(other), masses(first))
    for both in (first, other):
        both.refresh_starts()
    for action in actions(first, 8, seed=4):
        ours, theirs = copy(first.step(action)), copy(other.step(action))
        assert all(same(ours[name], theirs[name]) for name in ours)
    assert same(masses(other), masses(first))
    assert all(same(a, b) for a, b in zip(state(first).values(), state(other).values(), strict=True))


def test_what_is_declared_wrongly_is_told() -> None:
    for attributes, told in (
        ({"randomised": ("body_mas",)}, "unknown model field in Weighted.randomised 'body_mas'; did you mean"),
        ({"randomised": ("body_mass", "geom_pos")}, "returned ['body_mass'], but randomised names ['body_mass', 'geo"),
        ({"parameters": Task.parameters}, "no method parameters"),
        (
            {"parameters": lambda self, sim, random: Parameters({"body_mass": random.uniform(3)})},
            "Weighted.parameters: field 'body_mass' has shape (2, 3), expected (2, 2)",
        ),
        (
            {
                "parameters": lambda self, sim, random: Parameters(
                    {"body_mass": random.uniform(2)}, {"m": random.uniform()}
                )
            },
            "Weighted.parameters: told 'm' has shape (2,), expected (2, size)",
        ),
    ):
        task = variant(Weighted, **attributes)
        with pytest.raises(InputError) as caught:
            dry_run(task, task.compile())
        assert told in str(caught.value)


# --- gymnasium -----------------------------------------------------------------------------------


def test_a_gymnasium_world_does_not_depend_on_its_neighbours() -> None:
    """Noise and mass of world i of a vector are those of the single world with seed + i, over several episodes."""
    task = variant(Weighted, noise=NOISE, episode_length=4)
    vector, singles = GymnasiumVectorEnv(task, 3), [GymnasiumEnv(task) for _ in range(3)]
    seen = vector.reset(seed=5)[0]
    for i, single in enumerate(singles):
        assert (single.reset(seed=5 + i)[0] == seen[i]).all()
    for action in actions(vector._worlds, 10):
        seen, reward, _, truncated, _ = vector.step(action.numpy())
        for i, single in enumerate(singles):
            own, own_reward, _, _, _ = single.step(action[i].numpy())
            assert own_reward == reward[i]
            if truncated[i]:
                own = single.reset()[0]
            assert (own == seen[i]).all()


# --- rollouts of captured graphs -----------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_rollouts_meet_fresh_noise_and_the_parameters_that_are_in_force(device: str) -> None:
    with torch.cuda.stream(torch.cuda.Stream()) if device == "cuda" else nullcontext():
        env = VectorEnv(variant(AntVelocity, episode_length=6), 16, device=device, threads=1)
        finish = captured(lambda: env.finish() and None, env.device, [env.generator])
        nominal = float(env.model.body("torso").mass[0])
        column, width = env.critic_observation_size - 9, env.observation_size  # told: friction, mass, gains
        drawn, before = set(), torch.zeros(16, width, device=device)
        for _ in range(4):
            env.refresh_starts()
            mass = env.sim._parameters["body_mass"][:, 1].float() / nominal
            assert torch.allclose(env.buffers.critic_observation[:, column], mass, atol=1e-5)
            drawn |= set(mass.tolist())
            for _ in range(6):
                env.apply(2 * torch.rand(16, 8, device=device) - 1)
                env.physics()
                finish()
                noise = env.buffers.terminal_observation - env.buffers.terminal_critic_observation[:, :width]
                assert (noise[:, :22] != before[:, :22]).all(dim=0).any()
                assert noise[:, 22:].abs().max() == 0  # command and last action have none
                assert 0.3 < noise[:, 14:22].abs().max() <= 0.5001
                before = noise.clone()
                assert torch.allclose(env.buffers.critic_observation[:, column], mass, atol=1e-5)
        assert len(drawn) == 4 * 16  # every world began an episode in every rollout
        env.check()
