"""The policy's loss against a slow reference."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from gorl_robotics.losses import policy_loss

ZERO = torch.zeros(3)


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
    [
        (0.5, 1.0, False),
        (-0.5, -1.0, False),
        (0.5, -1.0, True),
        (-0.5, 1.0, True),
        (0.1, 1.0, True),
        (2.9, -1.0, True),
        (3.1, -1.0, False),
        (-3.1, 1.0, False),
    ],
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


def test_a_sample_far_out_does_not_drown_the_others() -> None:
    """Its ratio would be e^200: no number, and a gradient in which no other shows."""
    mean = torch.zeros(2, 1, requires_grad=True)
    latent, old, advantage = torch.tensor([[0.5], [0.5]]), torch.tensor([0.0, -200.0]), torch.tensor([1.0, -1.0])
    log_prob = Normal(0.0, 1.0).log_prob(latent).sum(dim=1)
    terms = policy_loss(mean, torch.ones(2, 1), latent, log_prob + old, advantage, 0.2, ZERO)
    assert float(terms.loss.detach()) == pytest.approx((math.exp(3) - 1) / 2)
    assert float(terms.kl) == pytest.approx((math.exp(3) - 4) / 2)
    terms.loss.backward()
    assert mean.grad is not None
    assert mean.grad.flatten().tolist() == pytest.approx([-0.25, 0.0])
