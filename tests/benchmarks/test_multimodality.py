"""Peaks of known distributions, the mirror image of a task, and the whole command on known policies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from running import SAMPLES as ITERATION
from running import here, only_run, settings
from torch import Tensor

import tasks
from benchmarks import multimodality, two_way_start
from benchmarks.action_sources import NEIGHBOURS, Trained, from_neighbours, load, recorded
from benchmarks.modes import measure
from benchmarks.symmetry import CARTPOLE, MIRRORS, visit
from envs.vector_env import VectorEnv
from gorl_robotics import refit
from gorl_robotics.config import Config, resolve

STATES, SAMPLES = 60, 1024


def drawn(distribution: Callable[[torch.Generator], Tensor]) -> Tensor:
    return distribution(torch.Generator().manual_seed(0))


def normal(generator: torch.Generator, mean: float = 0.0, std: float = 1.0) -> Tensor:
    return mean + std * torch.randn(STATES, SAMPLES, 1, generator=generator)


def mixture(generator: torch.Generator, distance: float, share: float = 0.5) -> Tensor:
    """Two Gaussians of unit variance."""
    second = torch.rand(STATES, SAMPLES, 1, generator=generator) < share
    return normal(generator) + distance * second


ONE_PEAK: dict[str, Callable[[torch.Generator], Tensor]] = {
    "gaussian": normal,
    "wide gaussian": lambda g: normal(g, 1.0, 8.0),
    "skewed": lambda g: torch.empty(STATES, SAMPLES, 1).exponential_(generator=g),
    "heavy tails": lambda g: torch.empty(STATES, SAMPLES, 1).cauchy_(generator=g),
    "two that overlap in one peak": lambda g: mixture(g, 1.9),
}
TWO_PEAKS: dict[str, Callable[[torch.Generator], Tensor]] = {
    "far apart": lambda g: mixture(g, 6.0),
    "overlapping": lambda g: mixture(g, 4.0),
    "one of them small": lambda g: mixture(g, 6.0, share=0.15),
}


@pytest.mark.parametrize("name", ONE_PEAK)
def test_one_peak_is_hardly_ever_taken_for_two(name: str) -> None:
    assert measure(drawn(ONE_PEAK[name])).multimodal.mean() <= 0.02


@pytest.mark.parametrize("name", TWO_PEAKS)
def test_two_peaks_are_found(name: str) -> None:
    assert measure(drawn(TWO_PEAKS[name])).multimodal.mean() >= 0.95


def test_a_wide_gaussian_has_both_ways_but_one_peak_although_its_tanh_has_two() -> None:
    wide = drawn(lambda g: normal(g, 0.0, 4.0))
    found = measure(wide)
    assert found.both_ways.all()
    assert not found.multimodal.any()
    assert measure(wide.tanh()).multimodal.all()
    assert not measure(drawn(lambda g: normal(g, 2.0, 0.5))).both_ways.any()


def test_one_dimension_with_two_peaks_is_enough() -> None:
    one, two = drawn(normal), drawn(TWO_PEAKS["far apart"])
    assert measure(torch.cat([one, two], dim=2)).multimodal.all()
    assert not measure(torch.cat([one, one], dim=2)).multimodal.any()


def test_states_without_samples_count_for_nothing() -> None:
    actions = drawn(TWO_PEAKS["far apart"])
    actions[1:] = torch.nan
    everyone = np.ones(STATES, dtype=bool)
    summary = measure(actions).summary(everyone)
    assert (summary["states"], summary["multimodal"]) == (1, 1.0)
    assert measure(actions[1:]).summary(everyone[1:]) == {"states": 0}


@pytest.mark.parametrize("name", MIRRORS)
def test_mirrored_states_and_forces_lead_to_mirrored_states_and_the_same_reward(name: str) -> None:
    env = VectorEnv(tasks.make(name), 16, noise=False)
    env.restart(random_phase=False)
    sim, half = env.sim, 8
    qpos, qvel = torch.randn(2, half, 2, dtype=sim.dtype, generator=torch.Generator().manual_seed(1))
    everyone = torch.ones(16, dtype=torch.bool)
    sim.reset(everyone, torch.cat([qpos, -qpos]), torch.cat([qvel, -qvel]))
    for force in torch.rand(40, half, 1, generator=torch.Generator().manual_seed(2)) * 2 - 1:
        step = env.step(torch.cat([force, CARTPOLE.of_action(force)]))
        seen, image = step.terminal_observation.split(half)
        torch.testing.assert_close(CARTPOLE.of(seen), image, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(step.reward[:half], step.reward[half:], atol=1e-4, rtol=1e-4)


class Known:
    """A policy with `ways` equally likely peaks at ±2, whatever it sees."""

    name, noise_size, refits, generative = "known", 2, False, False

    def __init__(self, ways: int) -> None:
        self.ways = ways

    def act(self, observation: Tensor, noise: Tensor) -> SimpleNamespace:
        side = torch.where(noise[:, 1:] > 0, 1.0, -1.0) if self.ways == 2 else 1.0
        decoded = 2.0 * side + 0.5 * noise[:, :1]
        return SimpleNamespace(decoded=decoded, action=decoded.tanh())


def trained(ways: int, task: str = "CartpoleSwingup") -> Trained:
    config: Config = resolve({"task": task, "method": "gaussian" if ways == 1 else "fpo"})
    return Trained(Known(ways), config, 3, 10, "unknown", {"deterministic_mean": 1.0}, [])  # type: ignore[arg-type]


def test_every_state_is_visited_with_its_image_and_the_first_is_its_own() -> None:
    policies = [trained(1).policy, trained(2).policy]
    states = visit(tasks.make("CartpoleSwingup"), policies, CARTPOLE)
    seen, start = states.observation, states.start
    torch.testing.assert_close(CARTPOLE.of(seen[:1]), seen[:1])
    assert seen[0, 1] < -0.999  # hanging
    for group in (seen[start][1:], seen[~start]):
        first, image = group.chunk(2)
        torch.testing.assert_close(CARTPOLE.of(first), image)
    assert len(seen[~start]) == 2 * len(policies) * 8 * 4


def test_the_command_tells_a_policy_of_two_ways_from_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multimodality, "load", lambda path: trained(int(path.name)))
    ended = here(["1", "2", "--out", "o.json", "--figure", "f.png"], tmp_path, multimodality.main)
    assert ended.code == 0, ended.err
    result = json.loads((tmp_path / "o.json").read_text())
    one, two = (entry["actions"]["policy"] for entry in result["policies"])
    for group in ("middle", "start", "rollout"):
        assert (one[group]["multimodal"], two[group]["multimodal"]) == (0.0, 1.0)
        assert one[group]["mean_median"] == pytest.approx([2.0], abs=0.05)
        assert (one[group]["both_ways"], two[group]["both_ways"]) == (0.0, 1.0)
    assert result["versions"]["diptest"]
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    assert "100.0% of 33" in ended.out


def test_what_cannot_be_compared_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multimodality, "load", lambda path: trained(1, path.name))
    for arguments, text in (
        (["CartpoleSwingup", "HopperStand"], "runs of CartpoleSwingup and HopperStand: expected runs of one task"),
        (["HopperStand", "--mirrored"], "no mirror is known of HopperStand"),
        (["CartpoleSwingup", "num_envs=3"], "only settings of a refit"),
    ):
        ended = here(arguments, tmp_path, multimodality.main)
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert text in ended.err


def test_neighbours_are_the_recorded_actions_near_a_state() -> None:
    generator = torch.Generator().manual_seed(0)
    place = torch.tensor([[0.0, 0.0], [10.0, 10.0]]).repeat_interleave(NEIGHBOURS, dim=0)
    observation = place + 0.1 * torch.randn(place.shape, generator=generator)
    action = place[:, :1] - 5
    order = torch.randperm(len(place), generator=generator)
    data = (observation[order].view(4, -1, 2), action[order].view(4, -1, 1))
    found = from_neighbours(data, torch.tensor([[0.0, 0.0], [10.0, 10.0], [5.0, 5.0]]))
    assert (found[0] == -5).all()
    assert (found[1] == 5).all()
    assert found[2].isnan().all()


def test_real_checkpoints_are_read_with_what_their_decoders_were_fitted_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refit, "_VALIDATION_SAMPLES", 256)
    monkeypatch.setattr("gorl_robotics.export.export_checkpoint", lambda folder: folder)
    monkeypatch.setattr(VectorEnv, "episode_length", 20)  # of frozen evaluations
    assert here(settings(task="CartpoleSwingup", total_steps=5 * ITERATION, monitors=1), tmp_path).code == 0
    run = only_run(tmp_path)
    first, last = load(run / "checkpoints" / "stage-1.pt"), load(run)
    assert [path.name for path in first.recordings + last.recordings] == ["stage-1-rank-0.h5", "stage-2-rank-0.h5"]
    data = recorded(last)
    assert data is not None
    assert data[0].shape[1:] == (8, 5)
    names = [str(run / "checkpoints" / "stage-1.pt"), str(run)]
    ended = here([*names, "--mirrored", "refit.updates=2", "--out", "o.json"], tmp_path, multimodality.main)
    assert ended.code == 0, ended.err
    result = json.loads((tmp_path / "o.json").read_text())
    assert result["settings"] == {"refit.updates": 2}
    for entry in result["policies"]:
        assert list(entry["actions"]) == ["policy", "prior", "recorded", "clipped", "mirrored"]
    # A stage begins with z ~ N(0, I).
    begun = result["policies"][0]["actions"]
    assert begun["policy"]["start"]["std_median"] == pytest.approx(begun["prior"]["start"]["std_median"], rel=0.05)
    # The same run with a decoder that knows both ways goes on where the stage began.
    both = [names[0], "both", "refit.updates=2"]
    assert here(both, tmp_path, two_way_start.main).code == 0
    changed = load(tmp_path / "both" / "checkpoints" / "stage-1.pt").policy.state_dict()
    different = {name for name, value in first.policy.state_dict().items() if not torch.equal(changed[name], value)}
    assert {name.partition(".")[0] for name in different} == {"decoder"}
    assert here(["resume=both/checkpoints/stage-1.pt"], tmp_path).code == 0
    ended = here([str(run), "again"], tmp_path, two_way_start.main)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
