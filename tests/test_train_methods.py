"""The whole program with each method: it trains, goes on exactly, is tested, exported and played."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from running import (
    SAMPLES,
    TINY,
    Ended,
    curve,
    evaluations,
    here,
    no_export,
    only_run,
    rows,
    same_policy,
    settings,
    signalled,
)

from gorl_robotics import methods, playback
from gorl_robotics.config import config_values, from_yaml
from gorl_robotics.recording import read_rollouts

STAGE_ENDS = (4, 8)  # iterations
SHORT: dict[str, Any] = {
    "total_steps": STAGE_ENDS[-1] * SAMPLES,
    "stages__fractions": "[0.5,0.5]",
    "refit__samples": 3 * SAMPLES,
    "refit__updates": 10,
    "evaluation_worlds": 2,
    "fpo__pairs": 3,
}
OTHERS = sorted(set(methods.METHODS) - {"gorl_flow"})


@pytest.fixture(scope="module", params=OTHERS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Ended]:
    cwd = tmp_path_factory.mktemp(request.param)
    ended = here(settings(method=request.param, **SHORT), cwd)
    assert (ended.code, ended.err) == (0, "")
    return request.param, only_run(cwd), ended


def test_a_run_leaves_its_curve_recordings_and_export(trained: tuple[str, Path, Ended]) -> None:
    name, folder, ended = trained
    kind = methods.find(name)
    learnt = [row for row in rows(folder) if row["loss/value"]]
    assert [int(row["iteration"]) for row in learnt] == list(range(1, STAGE_ENDS[-1] + 1))
    assert [int(row["iteration"]) for row in evaluations(folder)] == list(STAGE_ENDS)
    values = config_values(from_yaml((folder / "config.yaml").read_text()))
    for setting, value in kind.defaults.items():
        assert values[setting] == TINY.get(setting, value)
    gaussian = name not in ("fpo", "dppo")
    for row in learnt:
        assert float(row["policy/kl"]) > -1e-3
        assert (row["policy/std"] != "") == (row["policy/entropy"] != "") == gaussian
    assert f"CartpoleBalance · {name} · " in ended.out
    assert ("latent std" in ended.out) is gaussian
    assert ended.out.count("refit to ") == kind.refits
    recordings = {path.name for path in (folder / "rollouts").iterdir()}
    assert recordings == {f"stage-{k}-rank-0.h5" for k in ((1, 2) if kind.refits else (2,))}
    with read_rollouts(folder / "rollouts" / "stage-2-rank-0.h5") as recording:
        assert recording.steps * recording.num_worlds == 3 * SAMPLES
        assert recording.provenance["method"] == name
        moved = abs(recording.read(["action"])["action"] - recording.read(["latent"])["latent"]).max()
    assert (moved > 0) == (name != "gaussian")
    said = json.loads((folder / "export" / "policy.json").read_text())["policy"]
    assert (said["method"], said["noise_size"]) == (name, 4 if name == "dppo" else 1)  # one motor, three steps


def test_it_goes_on_exactly(trained: tuple[str, Path, Ended], tmp_path: Path) -> None:
    """From a copy of the first stage's checkpoint to the last iteration; what follows changes nothing any more."""
    with signalled(STAGE_ENDS[-1], signal.SIGINT):
        ended = here([f"resume={trained[1]}/checkpoints/stage-1.pt"], tmp_path)
    assert (ended.code, ended.err) == (0, "")
    assert curve(only_run(tmp_path)) == curve(trained[1])[:-1]
    assert same_policy(only_run(tmp_path), trained[1])


def test_it_is_tested_and_played(trained: tuple[str, Path, Ended], tmp_path: Path) -> None:
    folder, last = trained[1], evaluations(trained[1])[-1]
    ended = here(["test=true", f"checkpoint={folder}"], tmp_path)
    for kind in ("deterministic", "stochastic"):
        (found,) = re.findall(rf"{kind} +return +([\d.]+)", ended.out)
        assert float(found) == pytest.approx(float(last[f"evaluation/{kind}_mean"]), abs=0.006)
    still = played(folder)
    assert abs(still["difference_mean"]) < 0.01 * still["return_mean"]
    moved = played(folder, "--stochastic")
    assert moved["return_mean"] != still["return_mean"]


def played(folder: Path, *options: str) -> dict[str, Any]:
    ended = here([str(folder), "--episodes", "2", "--json", *options], folder, playback.main)
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


def test_gaussian_learns_as_gorl_does_before_its_first_refit(tmp_path: Path) -> None:
    found = []
    for name in ("gaussian", "gorl_flow"):
        (tmp_path / name).mkdir()
        with signalled(STAGE_ENDS[0] + 1, signal.SIGINT):
            assert here(settings(method=name, **SHORT), tmp_path / name).code == 0
        found.append(curve(only_run(tmp_path / name)))
    assert len(found[0]) == len(found[1]) == STAGE_ENDS[0] + 1 + 1  # an evaluation behind the first stage
    assert found[0][:-1] == found[1][:-1]
    assert found[0][-1] != found[1][-1]


def test_an_unknown_method_is_answered_with_the_nearest(tmp_path: Path) -> None:
    ended = here(settings(method="gausian"), tmp_path)
    assert (ended.code, ended.err) == (2, "error: unknown method 'gausian'; did you mean 'gaussian'?\n")
    assert not list(tmp_path.iterdir())


def test_help_shows_each_methods_own_settings(tmp_path: Path) -> None:
    out = here(["--help"], tmp_path).out
    assert re.search(r"ppo\.clip=0\.2 \(fpo 0\.05, dppo 0\.2\) ", out)
    assert re.search(r"ppo\.learning_rate=0\.001 \(fpo 0\.0003, dppo 0\.0003\) ", out)


def test_the_policys_rate_falls_at_the_end_of_the_last_stage(tmp_path: Path) -> None:
    with no_export():
        ended = here(settings(**SHORT, ppo__anneal=0.5, ppo__target_kl="inf", ppo__learning_rate=1e-3), tmp_path)
    assert (ended.code, ended.err) == (0, "")
    rates = [float(row["policy/learning_rate"]) for row in rows(only_run(tmp_path)) if row["loss/value"]]
    assert rates == pytest.approx([1e-3] * 6 + [0.5e-3, 1e-5], rel=1e-5)
