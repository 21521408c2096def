"""The diffusion decoder against a slow DDIM, and what its parameterisation promises."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gorl_robotics.diffusion import DiffusionDecoder

STEPS = 10


def signal(step: int, steps: int = STEPS) -> float:
    """ᾱ after so many steps of a decoding."""
    return 1 - 0.999 * (1 - step / steps)


def decoder(steps: int = STEPS) -> DiffusionDecoder:
    """One with random weights everywhere and statistics of its own."""
    torch.manual_seed(0)
    made = DiffusionDecoder(3, 2, [16, 16], steps)
    for parameter in made.network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    made.normaliser.update(5 + 2 * torch.randn(100, 3))
    return made


def test_is_the_identity_at_first_and_after_a_restart() -> None:
    z, observation = torch.randn(50, 2), torch.randn(50, 3)
    assert torch.equal(DiffusionDecoder(3, 2, [16, 16], STEPS)(100 * observation, z), z)
    made = decoder()
    assert not torch.allclose(made(observation, z), z, atol=0.01)
    made.restart()
    assert torch.equal(made(observation, z), z)


def test_decoding_begins_in_noise_and_ends_in_the_action() -> None:
    action, noise = torch.randn(100_000, 1), torch.randn(100_000, 1)
    begin, end = (DiffusionDecoder.mixed(action, noise, torch.full((1,), t)) for t in (1.0, 0.0))
    assert torch.equal(end, action)
    torch.testing.assert_close(begin, math.sqrt(1e-3) * action + math.sqrt(0.999) * noise)
    correlation = torch.corrcoef(torch.cat([begin, action], dim=1).T)[0, 1]
    assert abs(float(correlation)) < 0.05  # z ~ N(0, I) knows nothing of the action, nor need it


@pytest.mark.parametrize("steps", [1, 3, STEPS])
def test_decoding_is_ddim_with_the_noise_that_the_network_implies(steps: int) -> None:
    made = decoder(steps)
    observation, z = 5 + 2 * torch.randn(7, 3), torch.randn(7, 2)
    x = z
    for step in range(steps):
        now, after = signal(step, steps), signal(step + 1, steps)
        shrink = math.sqrt(after / now)
        turn = math.sqrt(1 - after) - shrink * math.sqrt(1 - now)  # x' = shrink·x + turn·ε
        length = math.hypot(math.sqrt(after) - math.sqrt(now), math.sqrt(1 - after) - math.sqrt(1 - now))
        t = torch.full((7, 1), 1 - step / steps)
        predicted = made.velocity(made.normaliser(observation), x, t)
        noise = ((1 - shrink) * x - length * predicted) / turn
        action = (x - math.sqrt(1 - now) * noise) / math.sqrt(now)
        x = math.sqrt(after) * action + math.sqrt(1 - after) * noise
    torch.testing.assert_close(made(observation, z), x, rtol=1e-3, atol=1e-3)


def test_loss_is_zero_where_every_step_is_ddims() -> None:
    made, action, noise = decoder(), torch.tensor([[0.7, -0.2]]), torch.tensor([[-1.1, 0.4]])

    def exact(observation: Tensor, x: Tensor, t: Tensor) -> Tensor:
        step = round((1 - float(t)) * STEPS)
        now, after = signal(step), signal(step + 1)
        torch.testing.assert_close(x, math.sqrt(now) * action + math.sqrt(1 - now) * noise)
        there = math.sqrt(after) * action + math.sqrt(1 - after) * noise
        length = math.hypot(math.sqrt(after) - math.sqrt(now), math.sqrt(1 - after) - math.sqrt(1 - now))
        return (x - there) / length + off

    made.velocity = exact  # type: ignore[method-assign]
    for off in (0.0, 0.25):
        for t in (0.0, 0.01, 0.15, 0.55, 0.99, 1.0):
            loss = made.loss(torch.zeros(1, 3), action, torch.full((1, 1), t), noise)
            assert float(loss) == pytest.approx(off**2, abs=1e-6)


def test_every_step_counts_the_same_in_the_loss() -> None:
    action, noise = torch.randn(2, 10_000, 2).unbind()
    made = DiffusionDecoder(3, 2, [16, 16], STEPS)  # predicts 0: the loss is the target's mean square
    for step in range(STEPS):
        t = torch.full((len(action), 1), (step + 0.5) / STEPS)
        with torch.no_grad():
            loss = made.loss(torch.zeros(len(action), 3), action, t, noise)
        assert float(loss) == pytest.approx(1.0, abs=0.04)


@pytest.mark.gpu
def test_decoding_on_cuda_equals_the_cpus() -> None:
    torch.manual_seed(0)
    made = DiffusionDecoder(5, 6, [64] * 4, STEPS)
    torch.nn.init.normal_(made.network[-1].weight, std=0.3)
    observation, z = torch.randn(1000, 5), torch.randn(1000, 6)
    with torch.no_grad():
        expected = made(observation, z)
        on_gpu = made.cuda()(observation.cuda(), z.cuda()).cpu()
    assert (expected - z).abs().mean() > 0.1
    torch.testing.assert_close(on_gpu, expected, rtol=1e-4, atol=1e-4)
