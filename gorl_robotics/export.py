"""Writes a policy, its task and its robot as a folder that plays without torch: ONNX, metadata, MJCF.

`python -m gorl_robotics.export RUN` exports the newest checkpoint of a run folder, or the one that RUN names.
"""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import torch
from torch import Tensor, nn

from gorl_robotics import __version__, checkpoint, config, methods, player, run_folder
from gorl_robotics.command_line import Parser
from gorl_robotics.errors import InputError, run_main
from gorl_robotics.onnx_graph import TOLERANCE, Graph, check, difference, write
from gorl_robotics.policy import Policy

GOLDEN_PAIRS = 32


class _Exported(nn.Module):
    """From raw observations, and noise where it is given, to controls in actuator units."""

    offset: Tensor
    scale: Tensor

    def __init__(self, policy: Policy, offset: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.policy = policy
        self.register_buffer("offset", offset)
        self.register_buffer("scale", scale)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.offset + self.scale * self.policy(*inputs)


def export(
    folder: Path,
    policy: Policy,
    task: Graph,
    *,
    description: Mapping[str, Any],
    model_files: Mapping[str, bytes],
    starts: Mapping[str, Tensor],
    observations: Tensor,
    provenance: Mapping[str, Any],
) -> None:
    """Writes the export to `folder` as a whole; what stood there is replaced only by a complete, checked one.

    Args:
        folder: where to; conventionally `export` in a run folder.
        policy: on any device; not changed.
        task: observation, reward, termination and update, see `envs.task_module.TaskModule`.
        description: the task's and robot's metadata, see `envs.deployment.describe`.
        model_files: `model.xml` and its assets by path.
        starts: initial states by name, see `VectorEnv.initial_states`; `return` is what the deterministic policy
            returned in the training simulation from that row, NaN where unknown.
        observations: (N, obs), N at least 32, as the policy meets them; the golden pairs are made from them.
        provenance: seed, commit, total steps, returns, whatever says where the policy came from.

    Raises:
        ExportError: onnxruntime and torch differ by more than 1e-5, and by more than rounding explains.
        InputError: the files cannot be played.
        OSError: the disk is full or not writable.
    """
    metadata = _metadata(policy, description, provenance)
    with _replaced(folder) as temporary:
        for name, content in model_files.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_bytes(content)
        rows = {name: value.cpu().numpy() for name, value in starts.items()}
        np.savez(temporary / "initial_states.npz", **rows)  # type: ignore[arg-type]
        (temporary / "policy.json").write_text(metadata + "\n")
        observation, action = _write_policies(temporary, policy, description["action"], observations, metadata)
        np.savez(temporary / "golden.npz", observation=observation, action=action)
        check(temporary / "task.onnx", task, write(temporary / "task.onnx", task, metadata))
        player.load(temporary)


def _write_policies(
    folder: Path, policy: Policy, action: Mapping[str, Any], observations: Tensor, metadata: str
) -> tuple[np.ndarray, np.ndarray]:
    """Writes and checks both policies; the golden observations and controls."""
    still = copy.deepcopy(policy).cpu().float().requires_grad_(False)
    offset, scale = torch.tensor(action["ctrl_offset"]), torch.tensor(action["ctrl_scale"])
    rows = torch.linspace(0, len(observations) - 1, GOLDEN_PAIRS).long()
    obs = observations.detach().cpu().float()[rows]
    noise = torch.randn(GOLDEN_PAIRS, policy.noise_size, generator=torch.Generator().manual_seed(0))
    exported = _Exported(still, offset, scale)
    graphs = {
        "policy.onnx": Graph(exported, {"obs": obs}, ("actions",)),
        "policy_stochastic.onnx": Graph(exported, {"obs": obs, "noise": noise}, ("actions",)),
    }
    expected = {}
    for name, graph in graphs.items():
        expected[name] = write(folder / name, graph, metadata)
        check(folder / name, graph, expected[name], scale.numpy(), _tolerance(graph, expected[name], scale.numpy()))
    return obs.numpy(), expected["policy.onnx"]["actions"]


def _tolerance(graph: Graph, expected: Mapping[str, np.ndarray], scale: np.ndarray) -> float:
    """What onnxruntime may differ by: 1e-5 or, where rounding alone makes more of a steep policy, a few times that."""
    exact = copy.deepcopy(graph.module).double()
    with torch.no_grad():
        actions = exact(*(example.double() for example in graph.examples.values())).numpy()
    return max(TOLERANCE, 4 * difference(actions, expected["actions"], scale))


def _metadata(policy: Policy, description: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    """The JSON text; Python's floats are written so that they read back exactly."""
    content = {
        "schema_version": player.SCHEMA_VERSION,
        **description,
        "policy": policy.description(),
        "versions": {"gorl_robotics": __version__, "torch": torch.__version__, "mujoco": mujoco.__version__},
        "provenance": provenance,
    }
    return json.dumps(_plain(content), indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: such a number is not known, or no limit, and becomes null."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """Yields a new folder beside `folder` that takes its place on success and vanishes on an error.

    Raises:
        InputError: what stands there is no export.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / "policy.json").exists():
        raise InputError(f"{folder} is there already and no export (it has no policy.json); move it away")
    temporary, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{word}") for word in ("tmp", "old"))
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise


def export_checkpoint(run: Path) -> Path:
    """Exports a run folder's newest checkpoint, or the one that `run` names, into that run; returns the folder.

    That is `export` of the newest one, `export-stage-1` of `stage-1.pt`: an earlier policy replaces no later one.
    The initial states are those of the checkpoint's last evaluation, and new ones where it is from before the first.

    Raises:
        InputError: there is no checkpoint, or it cannot be exported; see `export`.
    """
    import tasks
    from envs.deployment import describe, model_files
    from envs.dry_run import dry_run
    from envs.task_module import TaskModule
    from envs.vector_env import VectorEnv

    path = checkpoint.find(run)
    saved = checkpoint.load(path)
    settings = config.from_yaml(saved["config"])
    task = tasks.make(settings.task)
    model = task.compile()
    layout = dry_run(task, model)
    policy = methods.make(settings, layout.observation_size, model.nu)
    policy.restore(saved)
    if saved["evaluation"] is None:
        starts, returns = VectorEnv(task, 2 * settings.evaluation_worlds, noise=False).initial_states(), None
    else:
        starts, returns = _evaluated(saved, len(settings.stages.fractions))
    module = TaskModule(task, model, layout)
    of = "" if path.name == checkpoint.LATEST else f"-{path.stem}"
    folder = checkpoint.run_of(path) / f"export{of}"
    export(
        folder,
        policy,
        Graph(module, module.examples(), module.output_names),
        description=describe(task, model, layout),
        model_files=model_files(task),
        starts=starts,
        observations=saved["observations"],
        provenance={
            "seed": settings.seed,
            "commit": run_folder.provenance()["commit"],
            "total_steps": saved["steps"],
            "returns": returns,
        },
    )
    return folder


def _evaluated(saved: Mapping[str, Any], stages: int) -> tuple[dict[str, Tensor], dict[str, float] | None]:
    """Initial states of a checkpoint's last evaluation; its returns if it was this very policy that was evaluated."""
    evaluation = saved["evaluation"]
    # A refit changes the policy after its evaluation, at the same step, between stages; there is none behind the last.
    if evaluation["steps"] == saved["steps"] and saved["stage"] in (stages, evaluation.get("stage")):
        return evaluation["initial_states"], evaluation["summary"]
    return {name: value for name, value in evaluation["initial_states"].items() if name != "return"}, None


def main() -> None:
    """The command line."""
    parser = Parser(prog="python -m gorl_robotics.export", description="Exports a trained policy.")
    parser.add_argument("run", type=Path, help="a run folder, or a checkpoint in one")
    print(export_checkpoint(parser.parse_args().run))


if __name__ == "__main__":
    run_main(main)
