"""Generalised advantages: numba, Warp and a plain loop agree, and closed forms hold."""

from __future__ import annotations

from collections.abc import Callable

import numba
import pytest
import torch
from torch import Tensor

from gorl_robotics import advantages_on_cpu
from gorl_robotics.advantages import _launch, advantages

DISCOUNT, LAMBDA = 0.97, 0.9
Problem = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def problem(seed: int, steps: int = 40, worlds: int = 23, ends: float = 0.15) -> Problem:
    """Rewards, values, next values and flags, which fall together in one step now and then."""
    draw = torch.Generator().manual_seed(seed)
    reward, value, next_value = (torch.randn(steps, worlds, generator=draw) for _ in range(3))
    terminated, truncated = (torch.rand(steps, worlds, generator=draw) < ends for _ in range(2))
    return reward, value, next_value, terminated, truncated


def by_loop(given: Problem, discount: float, gae_lambda: float) -> Tensor:
    """The definition, sum over the steps ahead of (γλ)^k·δ up to the episode's end, in double precision."""
    reward, value, next_value = (x.double() for x in given[:3])
    terminated, truncated = given[3], given[4]
    out = torch.zeros_like(reward)
    steps, worlds = reward.shape
    for world in range(worlds):
        for start in range(steps):
            weight = 1.0
            for t in range(start, steps):
                goes_on = 0.0 if terminated[t, world] else 1.0
                delta = reward[t, world] + discount * goes_on * next_value[t, world] - value[t, world]
                out[start, world] += weight * delta
                weight *= discount * gae_lambda
                if terminated[t, world] or truncated[t, world]:
                    break
    return out


def by_numba(given: Problem, discount: float, gae_lambda: float) -> Tensor:
    return advantages(*given, discount, gae_lambda)


def by_warp(given: Problem, discount: float, gae_lambda: float) -> Tensor:
    out = torch.empty_like(given[0])
    _launch((*given, out), discount, gae_lambda)
    return out


@pytest.mark.parametrize("method", [by_numba, by_warp])
@pytest.mark.parametrize(("seed", "ends"), [(0, 0.15), (1, 0.5), (2, 0.0), (3, 1.0)])
def test_equals_the_definition(method: Callable[..., Tensor], seed: int, ends: float) -> None:
    given = problem(seed, steps=20, worlds=7, ends=ends)
    if 0 < ends < 1:
        assert (given[3] & given[4]).any()
        assert (given[3] ^ given[4]).any()
    computed = method(given, DISCOUNT, LAMBDA)
    torch.testing.assert_close(computed.double(), by_loop(given, DISCOUNT, LAMBDA), rtol=1e-5, atol=1e-5)


def test_warp_equals_numba_on_a_larger_batch() -> None:
    given = problem(4, steps=64, worlds=257)
    torch.testing.assert_close(by_warp(given, DISCOUNT, LAMBDA), advantages(*given, DISCOUNT, LAMBDA))


@pytest.mark.parametrize("method", [by_numba, by_warp])
def test_tensors_need_not_be_contiguous(method: Callable[..., Tensor]) -> None:
    given = problem(5, steps=9, worlds=5)
    turned = tuple(x.t().contiguous().t() for x in given)
    assert not turned[0].is_contiguous()
    expected = by_loop(given, DISCOUNT, LAMBDA).float()
    torch.testing.assert_close(method(turned, DISCOUNT, LAMBDA), expected, rtol=1e-5, atol=1e-5)


def test_lambda_one_is_the_discounted_return_minus_the_value() -> None:
    reward, value, _, never, _ = problem(6, steps=12, worlds=3, ends=0.0)
    # Within an episode the value of what a step led to is that of the next step's state.
    next_value = torch.cat([value[1:], torch.full((1, 3), 2.0)])
    returns = torch.stack(
        [sum(DISCOUNT ** (k - t) * reward[k] for k in range(t, 12)) + DISCOUNT ** (12 - t) * 2.0 for t in range(12)]  # type: ignore[misc]
    )
    computed = advantages(reward, value, next_value, never, never, DISCOUNT, 1.0)
    torch.testing.assert_close(computed, returns - value, rtol=1e-5, atol=1e-5)


def test_lambda_zero_is_the_td_error() -> None:
    reward, value, next_value, terminated, truncated = problem(7)
    error = reward + DISCOUNT * next_value * (~terminated) - value
    computed = advantages(reward, value, next_value, terminated, truncated, DISCOUNT, 0.0)
    torch.testing.assert_close(computed, error)


@pytest.mark.parametrize(
    ("terminated", "truncated", "expected"),
    [(False, True, 1 + 0.5 * 10 - 3), (True, False, 1 - 3), (True, True, 1 - 3)],
    ids=["truncation bootstraps", "termination does not", "termination wins"],
)
def test_what_an_episodes_end_is_worth(terminated: bool, truncated: bool, expected: float) -> None:
    flags = [torch.tensor([[flag], [False]]) for flag in (terminated, truncated)]
    reward, value, next_value = (torch.tensor([[first], [100.0]]) for first in (1.0, 3.0, 10.0))
    computed = advantages(reward, value, next_value, flags[0], flags[1], 0.5, 0.9)
    assert computed[0, 0] == expected  # and nothing of the second step, which belongs to the next episode


@pytest.mark.gpu
def test_cuda_equals_the_cpu() -> None:
    given = problem(8, steps=32, worlds=1025)
    on_gpu = advantages(*(x.cuda() for x in given), DISCOUNT, LAMBDA)
    torch.testing.assert_close(on_gpu.cpu(), advantages(*given, DISCOUNT, LAMBDA), rtol=1e-5, atol=1e-5)


def test_without_a_place_for_its_cache_the_loop_is_compiled_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    njit = numba.njit

    def nowhere(*functions: Callable[..., None], cache: bool = False) -> Callable[..., object]:
        if cache:
            raise RuntimeError("no locator available")
        return njit(*functions)

    monkeypatch.setattr(numba, "njit", nowhere)
    assert advantages_on_cpu._compiled(lambda x: x + 1)(1) == 2
