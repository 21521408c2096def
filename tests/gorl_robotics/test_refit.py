"""The refit: it learns conditional distributions, validates on worlds of its own, and keeps the best weights."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_environment import small_config
from torch import Tensor

import gorl_robotics.refit
from gorl_robotics.config import Refit
from gorl_robotics.decoder import Decoder
from gorl_robotics.diffusion import DiffusionDecoder
from gorl_robotics.flow import FlowDecoder
from gorl_robotics.methods.gorl import GorlPolicy
from gorl_robotics.refit import RefitResult, _Fit, refit

UPDATES, WORLDS, STEPS = 40, 20, 15


@pytest.fixture(autouse=True)
def _few_validation_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gorl_robotics.refit, "_VALIDATION_SAMPLES", 2000)  # 65,536 take a CPU a second each time


def settings(updates: int = UPDATES, batch: int = 64, rate: float = 1e-3, validation: float = 0.2) -> Refit:
    return small_config(
        refit__updates=updates,
        refit__batch=batch,
        refit__draws=2,
        refit__learning_rate=rate,
        refit__validation=validation,
    ).refit


def decoder(observation_size: int = 2, action_size: int = 1, hidden: int = 16) -> FlowDecoder:
    torch.manual_seed(0)
    return FlowDecoder(observation_size, action_size, [hidden, hidden], steps=10)


def numbered(worlds: int = WORLDS) -> tuple[Tensor, Tensor]:
    """Observations (time, world), small enough not to be clipped, and random actions."""
    draw = torch.Generator().manual_seed(1)
    time, world = torch.meshgrid(torch.arange(STEPS) / 4.0, torch.arange(worlds) / 4.0, indexing="ij")
    return torch.stack([time, world], dim=-1), torch.randn(STEPS, worlds, 1, generator=draw)


def weights(fitted: Decoder) -> Tensor:
    return torch.cat([value.detach().flatten() for value in fitted.parameters()])


class Spy:
    """Sees each loss, tells training (with gradients) from validation, and may replace the latter's value."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, replace: Callable[[int], float] | None = None) -> None:
        self.trained: list[Tensor] = []
        self.validated: list[Tensor] = []
        self.losses: list[float] = []
        self.weights: list[Tensor] = []
        original = FlowDecoder.loss

        def loss(fitted: FlowDecoder, observation: Tensor, *rest: Tensor) -> Tensor:
            value = original(fitted, observation, *rest)
            raw = observation / fitted.normaliser.scale + fitted.normaliser.shift
            if torch.is_grad_enabled():
                self.trained.append(raw)
                return value
            if replace is not None:
                value = torch.tensor(replace(len(self.losses)))
            self.validated.append(raw)
            self.losses.append(float(value))
            self.weights.append(weights(fitted))
            return value

        monkeypatch.setattr(FlowDecoder, "loss", loss)


def worlds_of(rows: list[Tensor]) -> set[int]:
    return set((torch.cat(rows)[:, 1] * 4).round().int().tolist())


def fit(fitted: Decoder, data: tuple[Tensor, Tensor], config: Refit, seed: int = 0) -> RefitResult:
    return refit(fitted, *data, config, torch.Generator().manual_seed(seed))


def test_validation_worlds_are_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    result = fit(decoder(), numbered(), settings())
    trained, validated = worlds_of(spy.trained), worlds_of(spy.validated)
    assert not trained & validated
    assert trained | validated == set(range(WORLDS))
    assert len(validated) == 0.2 * WORLDS
    assert result.samples == 16 * STEPS
    assert sum(len(batch) for batch in spy.trained) == UPDATES * 128  # two draws of time and noise for 64 samples


def test_another_seed_holds_out_other_worlds(monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    held = []
    for seed in (0, 1):
        fit(decoder(), numbered(), settings(updates=2), seed)
        held.append(worlds_of(spy.validated))
        spy.validated.clear()
    assert held[0] != held[1]


@pytest.mark.parametrize(("worlds", "share", "held"), [(10, 0.0, 1), (2, 0.5, 1), (10, 0.5, 5), (3, 0.1, 1)])
def test_at_least_one_world_is_held_out_and_one_trained_on(
    monkeypatch: pytest.MonkeyPatch, worlds: int, share: float, held: int
) -> None:
    spy = Spy(monkeypatch)
    result = fit(decoder(), numbered(worlds), settings(updates=5, validation=share))
    assert len(worlds_of(spy.validated)) == held
    assert result.samples == (worlds - held) * STEPS
    assert not worlds_of(spy.trained) & worlds_of(spy.validated)


def test_a_single_world_validates_on_itself() -> None:
    result = fit(decoder(), numbered(1), settings(updates=5))
    assert result.samples == STEPS
    assert math.isfinite(result.validation_loss)


def test_statistics_are_those_of_the_training_data(monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    fitted, data = decoder(), numbered()
    fitted.normaliser.update(1000 * torch.randn(30, 2))  # of an earlier fit
    fit(fitted, data, settings(updates=100))
    index = torch.tensor(sorted(worlds_of(spy.trained)))
    rows = data[0][:, index].flatten(0, 1).double()
    assert fitted.normaliser.count == len(rows)
    torch.testing.assert_close(fitted.normaliser.mean, rows.mean(dim=0))
    expected = 1 / rows.std(dim=0, correction=0)
    torch.testing.assert_close(fitted.normaliser.scale, expected.float())


def test_the_best_validation_weights_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch, replace=lambda k: abs(k - 7) + 0.5)
    fitted = decoder()
    result = fit(fitted, numbered(), settings(rate=0.01))
    assert len(spy.losses) == 20
    assert torch.equal(weights(fitted), spy.weights[7])
    assert not torch.equal(weights(fitted), spy.weights[-1])
    assert result.validation_loss == 0.5
    assert result.best_update == 8 * UPDATES // 20
    assert result.updates == UPDATES


def test_a_fit_that_diverges_leaves_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    Spy(monkeypatch, replace=lambda k: math.nan)
    fitted, z = decoder(), torch.randn(5, 1)
    result = fit(fitted, numbered(), settings())
    assert torch.equal(fitted(torch.randn(5, 2), z), z)
    assert result.best_update == 0


def test_validation_losses_compare(monkeypatch: pytest.MonkeyPatch) -> None:
    # With a rate of zero nothing changes: the same rows, times and noise give the same loss each time.
    spy = Spy(monkeypatch)
    result = fit(decoder(), numbered(), settings(rate=0.0))
    assert len(set(spy.losses)) == 1
    assert result.validation_loss == spy.losses[0]


@pytest.mark.parametrize(("worlds", "samples"), [(4, 25), (20, 60), (40, 100)])
def test_as_many_validation_samples_as_there_are_within_bounds(
    monkeypatch: pytest.MonkeyPatch, worlds: int, samples: int
) -> None:
    monkeypatch.setattr(gorl_robotics.refit, "_FEWEST_VALIDATION_SAMPLES", 25)
    monkeypatch.setattr(gorl_robotics.refit, "_VALIDATION_SAMPLES", 100)
    spy = Spy(monkeypatch)
    fit(decoder(), numbered(worlds), settings(updates=1))
    assert [len(batch) for batch in spy.validated] == [samples]


def test_the_rate_falls_to_zero_along_a_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    monkeypatch.setattr("gorl_robotics.refit.Adam.step", lambda adam: rates.append(float(adam.rate)))
    fit(decoder(), numbered(), settings(updates=11, rate=0.02))
    assert rates[0] == pytest.approx(0.02)
    assert rates[-1] < 0.001
    assert rates == sorted(rates, reverse=True)
    assert rates[1] + rates[10] == pytest.approx(0.02)  # a cosine is symmetric about its middle


def test_the_generator_decides_everything() -> None:
    fitted = []
    for torch_seed, seed in ((1, 5), (2, 5), (1, 6)):
        made = decoder()
        torch.manual_seed(torch_seed)
        fit(made, numbered(), settings(), seed)
        fitted.append(weights(made))
    assert torch.equal(fitted[0], fitted[1])
    assert not torch.equal(fitted[0], fitted[2])


def test_halves_of_a_batch_have_the_gradients_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    for batch in (1, 2, 31):  # with an odd number of rows the halves differ
        wholes, averaged = [], []
        fitted, original = decoder(), FlowDecoder.loss

        def loss(self: FlowDecoder, *rows: Tensor, original: Any = original, batches: Any = wholes) -> Tensor:
            batches.append(rows)
            return original(self, *rows)

        def average(network: torch.nn.Module, gradients: Any = averaged) -> None:
            gradients.append([parameter.grad.clone() for parameter in network.parameters()])  # type: ignore[union-attr]

        fit_one = _Fit(fitted, (torch.randn(50, 2), torch.randn(50, 1)), settings(batch=batch), torch.Generator(), 1)
        with monkeypatch.context() as patched:
            patched.setattr(FlowDecoder, "loss", loss)
            patched.setattr("gorl_robotics.distributed.average_gradients", average)
            torch.nn.init.normal_(fitted.network[-1].weight)  # type: ignore[arg-type]
            before = copy.deepcopy(fitted)
            fit_one.steps(1)
        whole = original(before, *(torch.cat(parts) for parts in zip(*wholes, strict=True)))
        expected = torch.autograd.grad(whole, list(before.network.parameters()))
        torch.testing.assert_close(averaged[0], list(expected))
        torch.testing.assert_close(fit_one.loss, whole.detach())


def test_two_threads_fit_what_one_does_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1})
    fitted, used = [], []
    original = FlowDecoder.loss

    def loss(self: FlowDecoder, *batch: Tensor) -> Tensor:
        used[-1].add(threading.get_ident())
        return original(self, *batch)

    monkeypatch.setattr(FlowDecoder, "loss", loss)
    for threads in (1, 2):
        used.append(set())
        torch.manual_seed(0)
        policy = GorlPolicy.from_config(small_config(threads=threads), 2, 1)
        policy.end_stage(*numbered(), settings(), torch.Generator().manual_seed(0))
        fitted.append(weights(policy.decoder))
    assert [len(threads) for threads in used] == [1, 2]
    assert torch.equal(*fitted)


def test_a_world_that_diverged_does_not_blind_the_decoder() -> None:
    torch.manual_seed(0)
    policy = GorlPolicy.from_config(small_config(), 2, 1)
    observation, action = numbered()
    policy.normaliser.update(observation.repeat(100, 1, 1))
    observation[3:5, 4] = 1e9
    policy.end_stage(observation, action, settings(updates=2, validation=0.0), torch.Generator().manual_seed(0))
    # Two of 300 at a hundred deviations are eight deviations of all together.
    assert (policy.decoder.normaliser.scale > policy.normaliser.scale / 9).all()


def bimodal(worlds: int, share: Tensor) -> tuple[Tensor, Tensor]:
    """Actions near ±1; where the observation is negative (row 0 of `share`) or positive they are +1 this often."""
    draw = torch.Generator().manual_seed(2)
    side = torch.rand(100, worlds, generator=draw) < 0.5
    up = torch.rand(100, worlds, generator=draw) < share[side.long()]
    action = torch.where(up, 1.0, -1.0) + 0.05 * torch.randn(100, worlds, generator=draw)
    return torch.where(side, 3.0, -3.0).unsqueeze(-1), action.unsqueeze(-1)


def assert_bimodal(fitted: Decoder, share: Tensor) -> None:
    z = torch.randn(4000, 1, generator=torch.Generator().manual_seed(3))
    for side, observation in enumerate((-3.0, 3.0)):
        seen = torch.full((4000, 1), observation, device=fitted.normaliser.shift.device)
        with torch.no_grad():
            action = fitted(seen, z.to(seen)).cpu()
        assert (action > 0).float().mean().item() == pytest.approx(float(share[side]), abs=0.06)
        assert (action.abs() < 0.5).float().mean().item() < 0.06  # hardly anything between the modes
        for mode in (action[action > 0], -action[action < 0]):
            assert mode.mean().item() == pytest.approx(1.0, abs=0.12)
            assert mode.std().item() < 0.25


@pytest.mark.parametrize("kind", [FlowDecoder, DiffusionDecoder])
def test_samples_the_conditional_distribution_it_was_fitted_to(kind: type[Decoder]) -> None:
    share = torch.tensor([0.25, 0.7])
    torch.manual_seed(0)
    fitted = kind(1, 1, [64, 64], steps=10)
    result = fit(fitted, bimodal(50, share), settings(updates=400, batch=512, rate=0.01))
    assert_bimodal(fitted, share)
    assert 0 < result.validation_loss < 1.1  # predicting the mean alone gives 1 to 2
    assert result.best_update > 200


@pytest.mark.gpu
def test_on_cuda_too() -> None:
    share = torch.tensor([0.25, 0.7])
    with torch.cuda.stream(torch.cuda.Stream()):
        fitted = decoder(1, hidden=64).cuda()
        config = settings(updates=400, batch=512, rate=0.01)
        for _ in range(2):  # a second refit captures a step of its own
            observation, action = (x.cuda() for x in bimodal(50, share))
            result = refit(fitted, observation, action, config, torch.Generator("cuda").manual_seed(0))
        assert_bimodal(fitted, share)
    assert result.train_loss > 0
    assert math.isfinite(result.validation_loss)
