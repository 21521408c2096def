"""The normaliser against numpy, the Gaussian against torch.distributions, and exact restarts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from gorl_robotics.networks import (
    OBSERVATION_CLIP,
    LatentPolicy,
    Normaliser,
    gaussian_entropy,
    gaussian_log_prob,
    mlp,
)


def batches(offset: float, spread: float, count: int = 40) -> list[Tensor]:
    """Uneven batches (T, N, 3) whose own means wander."""
    draw = np.random.default_rng(0)
    shapes = [(int(draw.integers(1, 9)), int(draw.integers(1, 30)), 3) for _ in range(count)]
    means = offset + spread * draw.normal(size=(count, 3))
    return [
        torch.tensor(draw.normal(mean, spread, shape), dtype=torch.float32)
        for mean, shape in zip(means, shapes, strict=True)
    ]


@pytest.mark.parametrize(("offset", "spread"), [(0.0, 1.0), (-3.0, 0.01), (1e4, 0.5), (1e6, 3.0)])
def test_moments_are_those_of_everything_seen(offset: float, spread: float) -> None:
    normaliser = Normaliser(3)
    seen = batches(offset, spread)
    for batch in seen:
        normaliser.update(batch)
    rows = np.concatenate([batch.reshape(-1, 3).numpy().astype(np.float64) for batch in seen])
    assert normaliser.count == len(rows)
    np.testing.assert_allclose(normaliser.mean.numpy(), rows.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(normaliser.scale.numpy(), 1 / rows.std(axis=0), rtol=1e-6)
    np.testing.assert_allclose(normaliser.shift.numpy(), rows.mean(axis=0), rtol=1e-6, atol=1e-6)


def test_normalised_data_has_mean_0_and_deviation_1() -> None:
    normaliser = Normaliser(3)
    seen = batches(50.0, 2.0)
    for batch in seen:
        normaliser.update(batch)
    out = torch.cat([normaliser(batch).flatten(0, 1) for batch in seen])
    torch.testing.assert_close(out.mean(dim=0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(out.std(dim=0, correction=0), torch.ones(3), atol=1e-4, rtol=0)


def test_the_deviation_does_not_shrink_with_the_number_of_batches() -> None:
    # FPO's and GoRL's code dropped earlier batches' squares: after k equal batches it had std/√k.
    normaliser = Normaliser(2)
    batch = torch.tensor([[-1.0, -3.0], [1.0, 3.0]])
    for _ in range(100):
        normaliser.update(batch)
    torch.testing.assert_close(normaliser.scale, torch.tensor([1.0, 1 / 3]))


def test_a_constant_input_passes_as_zero() -> None:
    normaliser = Normaliser(2)
    for _ in range(10):
        normaliser.update(torch.tensor([[0.1, 12345.678]]).expand(7, 2))
    assert torch.equal(normaliser(torch.tensor([[0.1, 12345.678]])), torch.zeros(1, 2))
    assert torch.equal(normaliser.scale, torch.ones(2))


@pytest.mark.parametrize("value", [1e6, -1e30, math.inf])
def test_what_diverges_counts_as_a_hundred_deviations_out(value: float) -> None:
    normaliser, other = Normaliser(3), Normaliser(3)
    *before, last = batches(2.0, 1.0)
    for batch in before:
        normaliser.update(batch)
        other.update(batch)
    assert torch.equal(normaliser.bounded(last), last)
    diverged, limited = last.clone(), last.clone()
    diverged[0, 0] = value
    limited[0, 0] = other.mean + math.copysign(100, value) * (other.squares / other.count).sqrt()
    normaliser.update(diverged)
    other.update(limited)
    torch.testing.assert_close(normaliser.mean, other.mean)
    torch.testing.assert_close(normaliser.scale, other.scale)


def test_one_that_diverges_among_very_many_is_not_noticed() -> None:
    generator = torch.Generator().manual_seed(0)
    normaliser = Normaliser(1)
    for _ in range(20):
        normaliser.update(torch.randn(100_000, 1, generator=generator))
    before = normaliser.scale.clone()
    batch = torch.randn(100_000, 1, generator=generator)
    batch[17] = 1e7
    normaliser.update(batch)
    torch.testing.assert_close(normaliser.scale, before, rtol=0.005, atol=0)


@pytest.mark.parametrize("spread", [1e-5, 1e-3])
def test_an_input_that_begins_to_move_is_soon_seen_at_its_size(spread: float) -> None:
    generator = torch.Generator().manual_seed(0)
    normaliser = Normaliser(1)
    for _ in range(100):
        normaliser.update(spread * torch.randn(1000, 1, generator=generator))
    for _ in range(10):
        normaliser.update(torch.randn(1000, 1, generator=generator))
    torch.testing.assert_close(normaliser.scale, torch.tensor([math.sqrt(11)]), rtol=0.5, atol=0)


def test_is_the_identity_before_any_data_and_clips() -> None:
    normaliser = Normaliser(2)
    x = torch.tensor([[1.25, -0.5], [1e9, -1e9]])
    expected = torch.tensor([[1.25, -0.5], [OBSERVATION_CLIP, -OBSERVATION_CLIP]])
    assert torch.equal(normaliser(x), expected)


def test_only_update_changes_the_statistics_and_in_place() -> None:
    normaliser = Normaliser(3)
    normaliser.update(batches(1.0, 1.0)[0])
    before = {name: value.clone() for name, value in normaliser.state_dict().items()}
    storage = {name: value.data_ptr() for name, value in normaliser.state_dict().items()}
    for batch in batches(7.0, 3.0, count=3):
        normaliser(batch)
    assert all(torch.equal(value, before[name]) for name, value in normaliser.state_dict().items())
    normaliser.update(batches(7.0, 3.0)[0])
    assert all(not torch.equal(value, before[name]) for name, value in normaliser.state_dict().items())
    assert {name: value.data_ptr() for name, value in normaliser.state_dict().items()} == storage


def test_restart_gives_the_prior_for_every_observation() -> None:
    policy = LatentPolicy(5, 3, [16, 16])
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter)
    policy.restart()
    mean, deviation = policy(10 * torch.randn(100, 5))
    assert torch.equal(mean, torch.zeros(100, 3))
    torch.testing.assert_close(deviation, torch.ones(100, 3), rtol=1e-5, atol=1e-7)


def test_restart_is_in_place_and_keeps_hidden_weights() -> None:
    policy = LatentPolicy(5, 3, [16, 16])
    storage = {name: value.data_ptr() for name, value in policy.state_dict().items()}
    hidden = {name: value.clone() for name, value in policy.network[:-1].state_dict().items()}
    policy.restart()
    assert {name: value.data_ptr() for name, value in policy.state_dict().items()} == storage
    assert all(torch.equal(policy.network[:-1].state_dict()[name], value) for name, value in hidden.items())


def test_a_restarted_policy_can_learn_mean_and_deviation() -> None:
    policy = LatentPolicy(2, 1, [8])
    policy.restart()
    mean, deviation = policy(torch.tensor([[0.3, -0.4]]))
    (mean.sum() + 2 * deviation.sum()).backward()
    last = policy.network[-1]
    assert (last.weight.grad[0] != 0).any()
    assert (last.weight.grad[1] != 0).any()


def test_gaussian_terms_equal_torch_distributions() -> None:
    draw = torch.Generator().manual_seed(0)
    z, mean, spread = (torch.randn(6, 4, 3, generator=draw) for _ in range(3))
    std = spread.exp()
    expected = Independent(Normal(mean, std), 1)
    torch.testing.assert_close(gaussian_log_prob(z, mean, std), expected.log_prob(z))
    torch.testing.assert_close(gaussian_entropy(std), expected.entropy())


def test_mlp_has_the_layers_asked_for() -> None:
    network = mlp(3, [8, 5], 2)
    shapes = [tuple(layer.weight.shape) for layer in network if isinstance(layer, torch.nn.Linear)]
    assert shapes == [(8, 3), (5, 8), (2, 5)]
    weight = network[2].weight  # (5, 8): fewer rows than columns, so that the rows are orthogonal
    torch.testing.assert_close(weight @ weight.t(), 2 * torch.eye(5), atol=1e-5, rtol=0)
    x = torch.randn(4, 3)
    expected = x
    for layer in (network[0], network[2]):
        expected = expected @ layer.weight.t() + layer.bias
        expected = expected * torch.sigmoid(expected)
    torch.testing.assert_close(network(x), expected @ network[4].weight.t() + network[4].bias)
