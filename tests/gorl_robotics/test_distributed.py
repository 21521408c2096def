"""Two processes with half of the worlds each learn what one with all of them learns."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import distributed_worker as worker
import pytest
import torch
from learner_setup import weights
from torch import Tensor

from gorl_robotics import distributed
from gorl_robotics.device import choose_device
from gorl_robotics.errors import InputError
from gorl_robotics.networks import Normaliser
from gorl_robotics.refit import _held_out, _split

Found = list[dict[str, Any]]


def two_processes(folder: Path, device: str, timeout: float) -> Found:
    """What each of two processes found."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = str(Path(worker.__file__).resolve())
    root = Path(worker.__file__).resolve().parents[2]
    path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    ended = subprocess.run(
        [*launch, script, str(folder), device], env=environment, capture_output=True, text=True, timeout=timeout
    )
    assert ended.returncode == 0, ended.stderr
    return [torch.load(folder / f"rank-{rank}.pt", map_location="cpu") for rank in range(2)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return two_processes(tmp_path_factory.mktemp("found"), "cpu", timeout=60)


def joined_update(monkeypatch: pytest.MonkeyPatch) -> Any:
    """One process's learner after the same two updates from all worlds."""
    setup, rollouts = worker.joined()
    before = weights(setup.policy.latent)
    monkeypatch.setattr(torch, "randperm", worker.joined_shuffles())
    for rollout in rollouts:
        setup.learner.update(rollout)
    assert float((weights(setup.policy.latent) - before).abs().max()) > 0.01
    assert float(setup.learner.policy_rate) < 0.003, "the rate has not been adapted"
    return setup


def assert_update(found: Found, setup: Any, tolerance: float) -> None:
    close = {"rtol": tolerance, "atol": tolerance}
    for process in found:
        learnt = process["learnt"]
        torch.testing.assert_close(learnt["policy"], weights(setup.policy.latent), **close)
        for name, network in zip(("critic", "novelty"), setup.learner.networks, strict=True):
            torch.testing.assert_close(learnt[name], weights(network), **close)
        torch.testing.assert_close(learnt["rate"], setup.learner.policy_rate, **close)
        torch.testing.assert_close(learnt["metrics"], setup.learner.metrics(), rtol=10 * tolerance, atol=tolerance)
        for name, expected in setup.policy.normaliser.state_dict().items():
            torch.testing.assert_close(learnt["normaliser"][name], expected, **close)


def assert_identical(found: Found, *names: str) -> None:
    """To the last bit: what differs by one is multiplied by every further update."""
    for name in names:
        one, other = found[0], found[1]
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=0)


def test_an_update_equals_one_processs(found: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_update(found, joined_update(monkeypatch), tolerance=1e-6)
    assert_identical(
        [process["learnt"] for process in found], "policy", "critic", "novelty", "rate", "normaliser", "restarted"
    )


def test_moments_are_those_of_the_joined_data(found: Found) -> None:
    assert_identical(found, "merged")
    batches = [torch.cat([worker.recorded(rank)[0].flatten(0, 1) for rank in range(2)]) + 3000 + k for k in range(3)]
    rows = torch.cat(batches).double()
    moments = found[0]["merged"]
    assert float(moments["count"]) == len(rows)
    torch.testing.assert_close(moments["mean"], rows.mean(dim=0), rtol=1e-14, atol=0)
    torch.testing.assert_close(moments["squares"], rows.var(dim=0) * (len(rows) - 1), rtol=1e-11, atol=0)
    alone = Normaliser(4)
    for batch in batches:
        alone.update(batch)
    torch.testing.assert_close(moments["scale"], alone.scale, rtol=1e-7, atol=0)


def reference_refit() -> dict[str, Any]:
    """Both processes' refit in plain torch: one decoder, each one's rows, the mean of their losses."""
    config, fitted = worker.REFIT, worker.decoder(0)
    generators = [torch.Generator().manual_seed(50 + rank) for rank in range(2)]
    splits = [_split(*worker.recorded(rank), config.validation, generators[rank]) for rank in range(2)]
    fitted.restart(generators[0])
    worker.decoder(1).restart(generators[1])  # whose weights nobody sees
    training = [training for training, _ in splits]
    fitted.normaliser = Normaliser(4)
    fitted.normaliser.update(torch.cat([observation for observation, _ in training]))
    held = [_held_out(fitted, splits[rank][1], generators[rank]) for rank in range(2)]
    adam = torch.optim.Adam(fitted.network.parameters(), fused=False, foreach=False)
    best, kept, losses = math.inf, weights(fitted), []
    for update in range(config.updates):
        for group in adam.param_groups:
            group["lr"] = config.learning_rate * 0.5 * (1 + math.cos(math.pi * update / config.updates))
        losses = [drawn_loss(fitted, training[rank], generators[rank]) for rank in range(2)]
        adam.zero_grad()
        (sum(losses) / 2).backward()
        adam.step()
        with torch.no_grad():
            validation = float(sum(fitted.loss(*data) for data in held) / 2)
        if validation < best:
            best, kept = validation, weights(fitted)
    samples = sum(len(observation) for observation, _ in training)
    return {"weights": kept, "loss": best, "samples": samples, "normaliser": fitted.normaliser}


def drawn_loss(fitted: Any, data: tuple[Tensor, Tensor], generator: torch.Generator) -> Any:
    rows = torch.randint(len(data[0]), (worker.REFIT.batch // 2,), generator=generator)
    observation = fitted.normaliser(data[0][rows]).repeat(worker.REFIT.draws, 1)
    action = data[1][rows].repeat(worker.REFIT.draws, 1)
    t = torch.rand(len(action), 1, generator=generator)
    return fitted.loss(observation, action, t, torch.randn(action.shape, generator=generator))


def test_a_refit_averages_gradients_and_validation(found: Found) -> None:
    refits = [process["refitted"] for process in found]
    assert_identical(refits, "weights", "normaliser")
    with worker.few_validation_samples():
        expected = reference_refit()
    torch.testing.assert_close(refits[0]["weights"], expected["weights"], rtol=1e-4, atol=1e-5)
    for name, value in expected["normaliser"].state_dict().items():
        torch.testing.assert_close(refits[0]["normaliser"][name], value, rtol=1e-6, atol=1e-6)
    for refit in refits:
        assert refit["result"]["validation_loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert refit["result"]["samples"] == expected["samples"]
    assert 0 < refits[0]["result"]["best_update"] == refits[1]["result"]["best_update"]


def assert_elected(found: Found) -> list[Tensor]:
    """All go on with what the second process's second candidate has learnt; returns what the four had."""
    one, other = (process["auditioned"] for process in found)
    assert one["said"] == other["said"]
    assert one["said"].endswith("the first had earned 0.075 a step, the other 4 0.300, 0.200, 0.100, 0.000")
    assert_identical([one, other], "policy", "learner", "afterwards")
    assert float((one["afterwards"] - one["policy"]).abs().max()) > 1e-4
    candidates = [*one["candidates"], *other["candidates"]]
    torch.testing.assert_close(one["policy"], candidates[3], rtol=0, atol=0)
    return candidates


def test_candidates_learn_from_their_own_processs_worlds_and_the_best_of_all_goes_on(found: Found) -> None:
    candidates = assert_elected(found)
    alone = [worker.auditioned(rank, torch.device("cpu"))["candidates"] for rank in range(2)]
    for each, expected in zip(candidates, [*alone[0], *alone[1]], strict=True):
        torch.testing.assert_close(each, expected, rtol=1e-5, atol=1e-6)
    assert all(float((each - candidates[3]).abs().max()) > 0.01 for each in candidates[:3]), "two are the same"


def test_processes_agree_on_what_all_must_know(found: Found) -> None:
    one, other = (process["agreed"] for process in found)
    for agreed in (one, other):
        assert agreed["any"] == [True, False]
        assert agreed["total"] == 11
        assert agreed["from_main"] == "of 0"
        assert agreed["gathered"].tolist() == [[0, 10], [1, 11]]
        assert agreed["threads"] == [max(1, agreed["cores"] // 2), 7]
    assert [(state["rank"], state["tensor"].tolist()) for state in one["states"]] == [(0, [0]), (1, [0, 1])]
    assert other["states"] == []


def test_means_reach_every_part_of_a_buffer_and_nothing_beside_it(found: Found) -> None:
    """A buffer's parts are reduced together where they follow one another, in whatever order they are named."""
    for rank, process in enumerate(found):
        *means, between, after = process["agreed"]["averaged"]
        expected = [[[13.5], [14.5], [15.5]], [20.5, 21.5], [10.5, 11.5, 12.5], 0.5, [23.5, 24.5]]
        assert [mean.tolist() for mean in means] == expected
        assert [between.item(), after.item()] == [22 + rank, 25 + rank]


def test_seeds_differ_in_the_bits_that_torch_uses(found: Found) -> None:
    """Its CPU generator takes the lower 32 bits; seed 4 must not be another process of a run with seed 3."""
    one, other = (process["agreed"]["seed"] for process in found)
    assert one == 3
    assert abs(other - one) % 2**32 > 10**6
    assert 0 <= other < 2**63


def test_a_single_process_is_left_as_it_is() -> None:
    value = torch.tensor([1.0, 2.0])
    with distributed.processes():
        assert (distributed.rank(), distributed.size(), distributed.is_main()) == (0, 1, True)
        assert distributed.gather(value).data_ptr() == value.data_ptr()
        assert distributed.own_seed(2**63 - 1) == 2**63 - 1
        assert distributed.threads(0) == 0
        assert distributed.merge_moments(2, value, value) == (2, value, value)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("gpus", [False, True])
def test_a_process_leaves_without_taking_anything_down(
    monkeypatch: pytest.MonkeyPatch, gpus: bool, fails: bool
) -> None:
    codes: list[int] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("NCCL_GRAPH_MIXING_SUPPORT", "0")
    monkeypatch.setattr(torch.distributed, "is_torchelastic_launched", lambda: True)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus)
    monkeypatch.setattr("atexit.register", lambda leave, code: codes.append(code))
    with pytest.raises(InputError) if fails else nullcontext(), distributed.processes():
        if fails:
            raise InputError("no")
    assert codes == [fails]


def test_each_process_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {"size": 4, "local_size": 2, "local_rank": 1}.items():
        monkeypatch.setattr(distributed, name, lambda value=value: value)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda:1")
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match="takes its own GPU"):
        choose_device("cuda:0")
    monkeypatch.setattr(distributed, "local_size", lambda: 3)
    with pytest.raises(InputError, match="3 processes on this machine, which has 2 CUDA devices"):
        choose_device("auto")


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_captured_updates_on_two_gpus_equal_one_processs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Policy and critic reduce their gradients in captured graphs, one after the other."""
    found = two_processes(tmp_path, "cuda", timeout=180)
    learnt = [process["learnt"] for process in found]
    assert_identical(learnt, "policy", "critic", "rate", "normaliser", "restarted")
    assert_identical([process["refitted"] for process in found], "weights", "normaliser")
    assert_elected(found)
    assert_update(found, joined_update(monkeypatch), tolerance=1e-3)
