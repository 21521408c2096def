"""DPPO: the densities of a chain against torch's, and the loss against a loop over its steps."""

from __future__ import annotations

import math

import pytest
import torch
from fake_environment import small_config
from torch import Tensor
from torch.distributions import Normal

from gorl_robotics.methods.dppo import Dppo

WORLDS, AXES, STEPS, SIGMA = 5, 2, 6, 0.05


def policy() -> Dppo:
    torch.manual_seed(0)
    made = Dppo.from_config(small_config(networks__flow_steps=STEPS, dppo__sigma=SIGMA), 4, AXES)
    for parameter in made.flow.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    made.normaliser.update(2 + 3 * torch.randn(40, 4))
    return made


def means(made: Dppo, seen: Tensor, chain: Tensor) -> list[Tensor]:
    """Where each step was expected to lead, one step after the other."""
    found = []
    for step in range(STEPS):
        x, t = chain[:, step], torch.full((len(chain), 1), 1 - step / STEPS)
        found.append((x - made.flow.velocity(seen, x, t) / STEPS).detach())
    return found


def acted(made: Dppo) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    torch.manual_seed(1)
    observation, noise = torch.randn(WORLDS, 4), torch.randn(WORLDS, made.noise_size)
    sample = made.act(observation, noise)
    return made.normaliser(observation), noise, {"decoded": sample.decoded, **sample.stored}


def test_a_chain_goes_from_the_noise_to_the_action_in_gaussian_steps() -> None:
    made = policy()
    seen, noise, sample = acted(made)
    chain = sample["chain"]
    assert torch.equal(chain[:, 0], noise[:, :AXES])
    assert torch.equal(chain[:, -1], sample["decoded"])
    expected = means(made, seen, chain)
    for step, mean in enumerate(expected):
        kick = noise[:, AXES * (1 + step) : AXES * (2 + step)]
        torch.testing.assert_close(chain[:, step + 1], mean + SIGMA * kick, rtol=1e-4, atol=1e-5)
        density = Normal(mean, SIGMA).log_prob(chain[:, step + 1]).sum(dim=1)
        torch.testing.assert_close(sample["log_prob"][:, step], density, rtol=1e-3, atol=1e-3)
    assert (chain[:, 0] - chain[:, -1]).abs().mean() > 0.1


def test_log_prob_is_the_density_of_each_step() -> None:
    made = policy()
    seen, _, sample = acted(made)
    chain = sample["chain"] + 0.02 * torch.randn(WORLDS, STEPS + 1, AXES)
    expected = [
        Normal(mean, SIGMA).log_prob(chain[:, k + 1]).sum(dim=1) for k, mean in enumerate(means(made, seen, chain))
    ]
    torch.testing.assert_close(made.log_prob(seen, chain).detach(), torch.stack(expected, dim=1), rtol=1e-3, atol=1e-3)


def test_loss_clips_every_step_by_itself() -> None:
    made, clip = policy(), 0.2
    seen, _, sample = acted(made)
    now = made.log_prob(seen, sample["chain"]).detach()
    change = 0.4 * torch.randn(WORLDS, STEPS)
    advantage = torch.randn(WORLDS)
    loss, kl, clipped = 0.0, 0.0, 0
    for world in range(WORLDS):
        for step in range(STEPS):
            ratio, gain = math.exp(float(change[world, step])), float(advantage[world])
            loss -= min(ratio * gain, min(max(ratio, 1 - clip), 1 + clip) * gain) / (WORLDS * STEPS)
            kl += (ratio - 1 - math.log(ratio)) / WORLDS
            clipped += abs(ratio - 1) > clip
    minibatch = {"observation": seen, "chain": sample["chain"], "log_prob": now - change, "advantage": advantage}
    terms = made.loss(minibatch, small_config(ppo__clip=clip).ppo, torch.tensor(0.0))
    assert float(terms.loss.detach()) == pytest.approx(loss, rel=1e-3, abs=1e-5)
    assert float(terms.kl) == pytest.approx(kl, rel=1e-3)
    assert float(terms.clipped) == pytest.approx(clipped / (WORLDS * STEPS))
    assert 0 < clipped < WORLDS * STEPS


def test_its_noise_is_drawn_for_every_step() -> None:
    made = policy()
    assert made.noise_size == AXES * (1 + STEPS)
    observation, noise = torch.randn(WORLDS, 4), torch.randn(WORLDS, made.noise_size)
    action = made(observation, noise)
    for column in range(made.noise_size):
        changed = noise.clone()
        changed[:, column] += 1
        assert (made(observation, changed) != action).any(dim=1).all(), column
