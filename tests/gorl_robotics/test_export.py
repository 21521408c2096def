"""What an export holds, and that it is whole or absent."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from exporting import Chaser, export_to, random_policy
from torch import Tensor, nn

import tasks
from envs.vector_env import VectorEnv
from gorl_robotics import checkpoint, export, onnx_graph
from gorl_robotics.config import Config, to_yaml
from gorl_robotics.errors import InputError
from gorl_robotics.export import _tolerance
from gorl_robotics.methods.gorl import GorlPolicy
from gorl_robotics.onnx_graph import ExportError, Graph

LOW, HIGH = -0.5, 1.3  # of the chaser's servo


@pytest.fixture(scope="module")
def env() -> VectorEnv:
    return VectorEnv(Chaser(), 48, seed=1, threads=1)


@pytest.fixture(scope="module")
def policy(env: VectorEnv) -> GorlPolicy:
    return random_policy(env)


@pytest.fixture(scope="module")
def folder(env: VectorEnv, policy: GorlPolicy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "export"
    export_to(folder, env, policy)
    return folder


def run(path: Path, **named: torch.Tensor) -> np.ndarray:
    (actions,) = onnxruntime.InferenceSession(path).run(
        ["actions"], {name: value.numpy() for name, value in named.items()}
    )
    return actions


def control(action: torch.Tensor) -> np.ndarray:
    return ((HIGH + LOW) / 2 + (HIGH - LOW) / 2 * action.detach()).numpy()


@pytest.mark.parametrize("batch", [1, 7])
def test_the_policies_equal_torch(folder: Path, policy: GorlPolicy, batch: int) -> None:
    torch.manual_seed(1)  # an action that is not at its limit
    obs, noise = 3 * torch.randn(batch, 7), torch.randn(batch, 1)
    still, moved = (control(policy.act(obs, z).action) for z in (torch.zeros(batch, 1), noise))
    np.testing.assert_allclose(run(folder / "policy.onnx", obs=obs), still, atol=1e-5)
    np.testing.assert_allclose(run(folder / "policy_stochastic.onnx", obs=obs, noise=noise), moved, atol=1e-5)
    silent = run(folder / "policy_stochastic.onnx", obs=obs, noise=torch.zeros(batch, 1))
    np.testing.assert_allclose(silent, still, atol=1e-5)
    assert np.abs(moved - still).max() > 0.01


def test_the_golden_pairs_are_the_policy(folder: Path, env: VectorEnv) -> None:
    golden = np.load(folder / "golden.npz")
    assert len(np.unique(golden["observation"], axis=0)) == 32
    assert set(golden["observation"][:, 0]) <= set(env.observation[:, 0].tolist())
    np.testing.assert_allclose(
        run(folder / "policy.onnx", obs=torch.from_numpy(golden["observation"])), golden["action"], atol=1e-5
    )


def test_the_metadata_is_typed_and_rides_in_the_policy_too(folder: Path) -> None:
    said = json.loads((folder / "policy.json").read_text())
    properties = {p.key: p.value for p in onnx.load(folder / "policy.onnx").metadata_props}
    assert json.loads(properties["gorl"]) == said
    assert type(said["schema_version"]) is int
    assert said["policy"] == {
        "method": "gorl_flow",
        "noise_size": 1,
        "latent_size": 1,
        "generative": True,
        "flow_steps": 2,
    }
    assert said["provenance"] == {
        "seed": 7,
        "commit": "abc",
        "total_steps": 10**12,
        "returns": {"mean": 1 / 3, "p10": None},
    }
    assert set(said["versions"]) == {"gorl_robotics", "torch", "mujoco"}
    terms = [(term["name"], term["start"], term["stop"]) for term in said["observation"]["terms"]]
    assert terms == [("joint", 0, 2), ("distance", 2, 5), ("wander", 5, 7)]


def test_the_files_list_what_a_player_needs_and_no_more(folder: Path) -> None:
    session = onnxruntime.InferenceSession(folder / "task.onnx")
    inputs = {item.name: item.type for item in session.get_inputs()}
    assert {"qpos", "xmat", "mocap_pos", "site_xpos", "random.0", "random.1"} <= set(inputs)
    assert "qfrc_actuator" not in inputs  # only the critic sees it
    assert (inputs["state.left"], inputs["state.odd"]) == ("tensor(int64)", "tensor(bool)")
    assert str(Path(__file__).parents[2]).encode() not in (folder / "task.onnx").read_bytes()
    starts = np.load(folder / "initial_states.npz")
    assert starts["mocap_pos"].shape == (48, 1, 3)
    assert {"qpos", "qvel", "observation", "mocap_quat", "state.wander", "state.left"} <= set(starts.files)


def test_a_decoder_that_was_never_fitted_is_skipped(env: VectorEnv, tmp_path: Path) -> None:
    export_to(tmp_path / "export", env, random_policy(env, generative=False))
    sizes = [(tmp_path / "export" / name).stat().st_size for name in ("policy.onnx", "policy_stochastic.onnx")]
    assert max(sizes) < 20_000
    assert json.loads((tmp_path / "export" / "policy.json").read_text())["policy"]["generative"] is False


def test_an_export_that_differs_from_torch_is_not_written(
    env: VectorEnv, policy: GorlPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_damaged(model: onnx.ModelProto, path: Path) -> None:
        weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        weights.raw_data = (np.frombuffer(weights.raw_data, np.float32) * np.float32(1.01)).tobytes()
        path.write_bytes(model.SerializeToString())

    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "policy.json").touch()
    monkeypatch.setattr(onnx_graph.onnx, "save", save_damaged)
    with pytest.raises(ExportError, match=r"policy\.onnx: 'actions'.*differs"):
        export_to(folder, env, policy)
    assert [path.name for path in tmp_path.rglob("*")] == ["export", "policy.json"]


def test_a_task_that_cannot_be_traced_is_told_with_its_line(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            (x,) = inputs
            return x + 1 if x.sum() > 0 else x

    graph = onnx_graph.Graph(Branching(), {"x": torch.ones(3, 2)}, ("y",))
    with pytest.raises(ExportError, match=r"task\.onnx: torch cannot trace at .*test_export\.py:\d+ ") as told:
        onnx_graph.write(tmp_path / "task.onnx", graph)
    assert "\n" not in str(told.value)
    assert list(tmp_path.iterdir()) == []


def test_an_old_export_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    for name in ("policy.json", "stale"):
        (folder / name).touch()
    with export._replaced(folder) as temporary:
        (temporary / "new").touch()
        assert (folder / "stale").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["export", "new"]


def test_what_is_no_export_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "photos.txt").touch()
    with pytest.raises(InputError, match="no export"), export._replaced(tmp_path / "export"):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["export", "photos.txt"]


def saved_run(folder: Path, *, final: bool, evaluated_in: int | None = None) -> Path:
    config = Config(task="CartpoleBalance", seed=3)
    env = VectorEnv(tasks.make(config.task), 40, threads=1)
    policy = GorlPolicy.from_config(config, env.observation_size, env.action_size)
    evaluation = {
        "steps": 500,
        "summary": {"deterministic_mean": 12.5},
        "initial_states": {**env.initial_states(), "return": torch.arange(40.0)},
        **({} if evaluated_in is None else {"stage": evaluated_in}),  # formerly not saved
    }
    checkpoint.save(
        folder / "checkpoints" / checkpoint.LATEST,
        {
            "config": to_yaml(config),
            "policy": policy.state_dict(),
            "generative": False,
            "steps": 500,
            "stage": len(config.stages.fractions) if final else 1,
            "observations": env.observation,
            "evaluation": evaluation,
        },
    )
    return folder


@pytest.mark.parametrize(
    ("final", "evaluated_in", "same"),
    [(True, None, True), (True, 2, True), (False, None, False), (False, 0, False), (False, 1, True)],
)
def test_a_run_folder_is_exported_with_the_returns_of_the_very_policy(
    tmp_path: Path, final: bool, evaluated_in: int | None, same: bool
) -> None:
    folder = export.export_checkpoint(saved_run(tmp_path / "run", final=final, evaluated_in=evaluated_in))
    assert folder == tmp_path / "run" / "export"
    said = json.loads((folder / "policy.json").read_text())
    # Where another stage follows, a refit has changed the policy since an evaluation in the one before.
    assert said["provenance"]["returns"] == ({"deterministic_mean": 12.5} if same else None)
    assert (said["task"], said["provenance"]["total_steps"]) == ("CartpoleBalance", 500)
    assert ("return" in np.load(folder / "initial_states.npz")) == same


def test_an_earlier_checkpoints_export_leaves_the_last_ones(tmp_path: Path) -> None:
    run = saved_run(tmp_path / "run", final=True)
    earlier = run / "checkpoints" / "stage-1.pt"
    shutil.copy(run / "checkpoints" / checkpoint.LATEST, earlier)
    assert export.export_checkpoint(earlier) == run / "export-stage-1"
    assert not (run / "export").exists()


def test_a_copy_outside_a_run_folder_is_not_exported_beside_whatever_is_there(tmp_path: Path) -> None:
    run = saved_run(tmp_path / "run", final=True)
    (tmp_path / "backups").mkdir()
    shutil.copy(run / "checkpoints" / checkpoint.LATEST, tmp_path / "backups")
    with pytest.raises(InputError, match="in no run folder"):
        export.export_checkpoint(tmp_path / "backups" / checkpoint.LATEST)
    assert not (tmp_path / "export").exists()


def test_no_run_no_export(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        export.export_checkpoint(tmp_path / "nothing")


@pytest.mark.parametrize(("shift", "low", "high"), [(0.0, 1e-5, 1e-5), (1e3, 3e-5, 1e-3)])
def test_what_rounding_alone_changes_is_allowed(shift: float, low: float, high: float) -> None:
    class Rounded(torch.nn.Module):
        def forward(self, obs: torch.Tensor) -> torch.Tensor:
            return (obs + shift) - shift

    obs = torch.linspace(-1, 1, 64).view(32, 2)
    expected = {"actions": Rounded()(obs).numpy()}
    allowed = _tolerance(Graph(Rounded(), {"obs": obs}, ("actions",)), expected, np.ones(2))
    assert low <= allowed <= high
