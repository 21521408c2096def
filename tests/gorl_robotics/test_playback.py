"""Plain MuJoCo with an export equals the environment that trained it; what playback reports, and refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from exporting import Chaser, export_to, random_policy
from torch import Tensor

import tasks
from envs.vector_env import VectorEnv
from gorl_robotics import playback
from gorl_robotics.errors import InputError
from gorl_robotics.methods.gorl import GorlPolicy
from gorl_robotics.player import Exported, Player, load

HOPPER = Path(__file__).parents[2] / "examples" / "hopper_stand"  # from before task.onnx said whose it is
EPISODES = 40


@pytest.fixture(scope="module")
def env() -> VectorEnv:
    return VectorEnv(Chaser(), EPISODES, seed=1, threads=1)


@pytest.fixture(scope="module")
def policy(env: VectorEnv) -> GorlPolicy:
    return random_policy(env)


@pytest.fixture(scope="module")
def folder(env: VectorEnv, policy: GorlPolicy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    returns = torch.full((EPISODES,), float("nan"))
    returns[:20] = torch.arange(20.0)
    export_to(run / "export", env, policy, **{"return": returns})
    return run / "export"


@pytest.fixture
def exported(folder: Path) -> Exported:
    return load(folder)


def player(exported: Exported, episodes: int = EPISODES, **options: bool) -> Player:
    return Player(exported, np.arange(episodes), np.random.default_rng(0), **options)


# By chance alone these sparse tasks pay nothing in a hundred steps.
UNPAID = {"AcrobotSwingupSparse", "BallInCup", "CartpoleSwingupSparse", "FingerSpin", "PendulumSwingup"}


def close(left: np.ndarray, right: Tensor) -> None:
    np.testing.assert_allclose(left, right.numpy(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", tasks.names())
def test_playback_equals_the_environment_step_by_step(name: str, tmp_path: Path) -> None:
    task = tasks.make(name)
    task.randomised = ()  # type: ignore[misc]  # an export plays the nominal model, without noise
    env = VectorEnv(task, 32, seed=4, threads=1, noise=False)
    policy = random_policy(env)
    export_to(tmp_path, env, policy)
    played = player(load(tmp_path), 32)
    env._draws = SameDraws(0, 32, env.layout.update_draws)
    no_noise = torch.zeros(32, env.action_size)
    close(played.observation, env.observation)
    for _ in range(120):
        going = played.running.copy()
        wanted = policy.act(env.observation, no_noise).action
        played.step()
        close(played.action[going], wanted[going])
        # Contacts magnify the last bit of an action tenfold every few steps: each step starts from the same one.
        step = env.step(torch.from_numpy(played.action))
        close(played.observation[going], step.terminal_observation[going])
        close(played.reward[going], step.reward[going])
        assert (played.running == going & ~step.terminated.numpy()).all()
    assert np.abs(played.action).max() > 0.1
    assert played.returns.max() > 0 or name in UNPAID


class SameDraws:
    """Draws for an environment that are those of a player whose generator has the same seed."""

    def __init__(self, seed: int, worlds: int, draws: Sequence[tuple[str, tuple[int, ...]]]) -> None:
        self._random, self._worlds = np.random.default_rng(seed), worlds
        for kind, size in draws:  # a player draws once before its first step
            getattr(self, kind)(*size)

    def uniform(self, *size: int) -> Tensor:
        return torch.from_numpy(self._random.random((self._worlds, *size), np.float32)).double()

    def normal(self, *size: int) -> Tensor:
        return torch.from_numpy(self._random.standard_normal((self._worlds, *size), np.float32)).double()


def test_a_task_with_state_draws_and_an_end_plays_by_itself(env: VectorEnv, policy: GorlPolicy, folder: Path) -> None:
    """Two whole loops side by side, each acting on its own observations from first to last step."""
    played = player(load(folder))
    env.restart(random_phase=False)
    env._draws = SameDraws(0, EPISODES, env.layout.update_draws)
    ended = torch.zeros(EPISODES, dtype=torch.bool)
    returns = torch.zeros(EPISODES)
    for k in range(Chaser.episode_length):
        going = ~ended.numpy()
        assert (played.running == going).all()
        action = policy.act(env.observation, torch.zeros(EPISODES, 1)).action
        step = env.step(action)
        played.step()
        close(played.action[going], action[going])
        close(played.observation[going], step.terminal_observation[going])
        close(played.reward[going], step.reward[going])
        returns += step.reward.where(~ended, 0.0)
        ended |= step.terminated | step.truncated
        if k == 100:
            assert 0 < ended.sum() < EPISODES
    assert not played.running.any()
    np.testing.assert_allclose(played.returns, returns.numpy(), atol=1e-3)


def test_noise_moves_the_stochastic_policy(exported: Exported) -> None:
    calm, noisy = player(exported, 5), player(exported, 5, stochastic=True)
    calm.step()
    noisy.step()
    assert (np.abs(calm.action - noisy.action) > 1e-3).any()


def test_a_diverged_episode_ends_unpaid_and_harms_no_other(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where MuJoCo writes its log
    whole, broken = player(exported, 3), player(exported, 3)
    broken.data[1].qvel[:] = np.inf
    for _ in range(5):
        whole.step()
        broken.step()
    assert broken.running.tolist() == [True, False, True]
    assert broken.returns[1] == 0.0
    assert broken.returns[[0, 2]] == pytest.approx(whole.returns[[0, 2]])


def test_starts_are_the_first_rows_or_a_seeded_choice(exported: Exported) -> None:
    first = playback.play(exported, 6)
    assert first == playback.play(exported, 6)
    chosen = playback.play(exported, 6, seed=5)
    assert chosen == playback.play(exported, 6, seed=5) != first
    assert playback.play(exported, EPISODES, stochastic=True)["return_mean"] != first["return_mean"]
    for episodes in (0, EPISODES + 1):
        with pytest.raises(InputError, match="holds 40 initial states"):
            playback.play(exported, episodes)
    with pytest.raises(InputError, match="seed=-1"):
        playback.play(exported, 1, seed=-1)


def test_the_summary_is_of_the_returns() -> None:
    returns = np.array([4.0, 0.0, 2.0, 10.0])
    said = playback.summary(returns)
    assert said["return_p10"] == pytest.approx(0.6)
    assert (said["episodes"], said["return_mean"], said["return_min"]) == (4, 4.0, 0.0)
    assert said["return_std"] == pytest.approx(np.std(returns, ddof=1))
    pairs = playback.paired(np.array([5.0, 3.0, np.nan, 11.0]), returns)
    assert (pairs["paired_episodes"], pairs["difference_mean"]) == (3, pytest.approx(5 / 3))
    assert pairs["difference_standard_error"] == pytest.approx(np.std([1, 3, 1], ddof=1) / np.sqrt(3))
    assert playback.paired(np.array([1.0, np.nan]), np.zeros(2)) == {}


ALONE = """
import sys
from gorl_robotics import playback
sys.argv = ["playback", *sys.argv[1:]]
playback.main()
loaded = {name.partition(".")[0] for name in sys.modules}
assert not loaded & {"torch", "warp", "mujoco_warp", "onnx", "envs", "tasks", "imageio_ffmpeg"}, loaded
"""


def test_the_command_prints_one_object_and_needs_neither_torch_nor_warp(folder: Path) -> None:
    command = [sys.executable, "-c", ALONE, str(folder.parent), "--episodes", "10", "--json"]
    said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert (said["task"], said["episodes"], said["stochastic"]) == ("Chaser", 10, False)
    assert said["training_return_mean"] == 4.5
    for name in ("return_mean", "return_std", "return_p10", "difference_mean", "difference_standard_error"):
        assert type(said[name]) is float


def test_the_text_says_returns_and_the_difference(exported: Exported) -> None:
    text = playback._text(playback.play(exported, 4))
    for word in ("Chaser", "4 episodes", "10th percentile", "training - playback"):
        assert word in text
    assert "training" not in playback._text(playback.play(exported, 4, stochastic=True))


def test_a_video_shows_the_first_episode(exported: Exported, tmp_path: Path) -> None:
    exported.metadata["episode_length"] = 12
    video = tmp_path / "out.mp4"
    playback.play(exported, 2, video=video)
    frames = np.array(imageio.mimread(video, memtest=False))
    assert frames.shape == (12, 480, 640, 3)
    assert np.abs(frames[0].astype(int) - frames[-1]).max() > 20
    assert imageio.get_reader(video).get_meta_data()["fps"] == 50
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    with pytest.raises(InputError, match=r"\.mp4"):
        playback.play(exported, 2, video=tmp_path / "out.gif")


def test_a_failing_renderer_is_told_in_one_line_and_leaves_no_file(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mujoco

    def fail(*_: object) -> None:
        raise RuntimeError("no display")

    monkeypatch.setattr(mujoco, "Renderer", fail)
    with pytest.raises(InputError, match=r"cannot render here \(no display\)"):
        playback.play(exported, 1, video=tmp_path / "out.mp4")
    assert list(tmp_path.iterdir()) == []


def test_a_video_that_cannot_be_written_is_told_in_one_line(
    exported: Exported, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=r"out.mp4' cannot be written: File name too long$"):
        playback.play(exported, 1, video=tmp_path / ("x" * 300 + "out.mp4"))
    assert capfd.readouterr() == ("", "")


def edit_json(folder: Path, **values: object) -> None:
    path = folder / "policy.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: shutil.rmtree(f), "not a folder"),
        (lambda f: (f / "policy.json").unlink(), "holds no export"),
        (lambda f: (f / "task.onnx").unlink(), "task.onnx missing"),
        (lambda f: edit_json(f, schema_version=2), "schema_version 2"),
        (lambda f: edit_json(f, episode_length=7), "not the one of this policy.onnx"),
        (lambda f: (f / "policy.json").write_text("{"), "not the metadata"),
        (lambda f: (f / "policy.onnx").write_bytes(b"\0" * 99), "not a readable ONNX model"),
        (lambda f: (f / "initial_states.npz").write_bytes(b"PK"), "holds no initial states"),
        (lambda f: (f / "model.xml").write_text("<mujoco><oops/></mujoco>"), "does not compile"),
        (lambda f: (f / "model.xml").write_text("<mujoco/>"), "1 positions, model.xml 0"),
        (lambda f: shutil.copy(HOPPER / "task.onnx", f), "task.onnx is not the one of this export"),
    ],
)
def test_what_cannot_be_played_is_told_in_one_line(
    folder: Path, tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    damage(tmp_path / "copy")
    with pytest.raises(InputError) as told:
        load(playback.find(tmp_path / "copy"))
    assert words in str(told.value)
    assert "\n" not in str(told.value)


def test_the_command_ends_with_code_2_on_bad_input(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gorl_robotics.playback", str(tmp_path / "nothing")]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
