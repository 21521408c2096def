"""Plays an exported policy in plain MuJoCo: numpy, mujoco and onnxruntime, no torch."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import onnxruntime

from gorl_robotics.errors import InputError

SCHEMA_VERSION = 1  # of policy.json
_FILES = ("policy.json", "policy.onnx", "policy_stochastic.onnx", "task.onnx", "initial_states.npz", "model.xml")


class OnnxFunction:
    """An ONNX file as a function of named arrays, batch first.

    Raises:
        InputError: the file is no ONNX model.
    """

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # small networks: more threads only wait for each other
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own exceptions have no other base in common
            raise InputError(f"{path} is not a readable ONNX model: it is damaged or of another kind") from error
        self.inputs: dict[str, tuple[int, ...]] = {i.name: tuple(i.shape[1:]) for i in self._session.get_inputs()}
        self.outputs: list[str] = [o.name for o in self._session.get_outputs()]
        self.properties: dict[str, str] = self._session.get_modelmeta().custom_metadata_map

    def __call__(self, named: Mapping[str, np.ndarray], outputs: list[str] | None = None) -> dict[str, np.ndarray]:
        """Feeds those arrays that the file lists as inputs; returns the `outputs`, by default all."""
        outputs = self.outputs if outputs is None else outputs
        return dict(zip(outputs, self._session.run(outputs, {n: named[n] for n in self.inputs}), strict=True))


@dataclass(frozen=True)
class Exported:
    """An export folder in memory."""

    metadata: dict[str, Any]  # policy.json
    model: mujoco.MjModel
    policy: OnnxFunction
    stochastic: OnnxFunction
    task: OnnxFunction
    starts: dict[str, np.ndarray]


def load(folder: Path) -> Exported:
    """Reads an export folder.

    Raises:
        InputError: a file is missing, damaged or of another version.
    """
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{str(folder)!r} is not a whole export: {', '.join(missing)} missing; export the run again")
    metadata = _read_metadata(folder / "policy.json")
    exported = Exported(
        metadata=metadata,
        model=_read_model(folder / "model.xml"),
        policy=OnnxFunction(folder / "policy.onnx"),
        stochastic=OnnxFunction(folder / "policy_stochastic.onnx"),
        task=OnnxFunction(folder / "task.onnx"),
        starts=_read_starts(folder / "initial_states.npz"),
    )
    own = exported.policy.properties.get("gorl")
    if own is None or json.loads(own) != metadata:
        raise InputError(f"{str(folder)!r}: policy.json is not the one of this policy.onnx; export the run again")
    columns = exported.starts["qpos"].shape[1]
    if columns != exported.model.nq:
        raise InputError(f"{str(folder)!r}: initial_states.npz has {columns} positions, model.xml {exported.model.nq}")
    _check_task(folder, exported)
    return exported


class Player:
    """Episodes of an export, played together: one MjData each, one call of each network for all.

    Args:
        exported: policy, task and model.
        rows: which of the exported starts begin an episode each.
        random: of the policy's noise and of what the task draws.
        stochastic: give the policy noise.
    """

    def __init__(
        self, exported: Exported, rows: np.ndarray, random: np.random.Generator, stochastic: bool = False
    ) -> None:
        self._exported, self._random, self._stochastic = exported, random, stochastic
        self.model, self.metadata, self.episodes = exported.model, exported.metadata, len(rows)
        # An episode that diverges ends; MuJoCo would silently start it anew.
        self.model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET
        starts = {name: values[rows] for name, values in exported.starts.items()}
        self.data = [self._placed(starts, i) for i in range(self.episodes)]
        self.state = {
            f"state.{s['name']}": starts[f"state.{s['name']}"].astype(_portable(s["dtype"]))
            for s in self.metadata["state"]
        }
        self._views = {
            name: [getattr(data, name).reshape(shape) for data in self.data]
            for name, shape in exported.task.inputs.items()
            if name != "action" and not name.startswith(("state.", "random."))
        }
        action = self.metadata["action"]
        self._offset, self._scale = np.array(action["ctrl_offset"]), np.array(action["ctrl_scale"])
        self.control = np.zeros((self.episodes, action["size"]), np.float32)
        self.action = np.zeros_like(self.control)
        self.reward = np.zeros(self.episodes)
        self.returns = np.zeros(self.episodes)
        self.running = np.ones(self.episodes, dtype=bool)
        self.steps = 0
        self.observation = exported.task(self._inputs(), ["initial_observation"])["initial_observation"]

    def step(self) -> None:
        """One control step of every episode that is still running."""
        self._act()
        for i in np.flatnonzero(self.running):
            data = self.data[i]
            data.ctrl[:] = self.control[i]
            mujoco.mj_step(self.model, data, self.metadata["timing"]["physics_steps"])
            # As in training: positions and velocities of the new state, touch of the last physics step.
            mujoco.mj_step1(self.model, data)
        result = self._exported.task(self._inputs())
        finite = np.array([np.isfinite(d.qpos).all() and np.isfinite(d.qvel).all() for d in self.data])
        self.reward = np.where(self.running & finite, result["reward"], 0.0).astype(np.float64)
        self.returns += self.reward
        self.state = {name: result[f"next_{name}"] for name in self.state}
        self.observation = result["observation"]
        self.steps += 1
        self.running &= finite & ~result["terminated"]
        if self.steps >= self.metadata["episode_length"]:
            self.running[:] = False

    def _act(self) -> None:
        named = {"obs": self.observation}
        policy = self._exported.policy
        if self._stochastic:
            policy = self._exported.stochastic
            size = (self.episodes, *policy.inputs["noise"])
            named["noise"] = self._random.standard_normal(size, np.float32)
        self.control = policy(named)["actions"]
        self.action = ((self.control - self._offset) / self._scale).clip(-1.0, 1.0).astype(np.float32)

    def _inputs(self) -> dict[str, np.ndarray]:
        """What task.onnx may ask for, the random numbers drawn anew."""
        named = {name: np.stack(views).astype(np.float32) for name, views in self._views.items()}
        named.update(self.state, action=self.action)
        for draw in self.metadata["draws"]:
            size = (self.episodes, *draw["shape"])
            draws = self._random.random if draw["kind"] == "uniform" else self._random.standard_normal
            named[draw["name"]] = draws(size, np.float32)
        return named

    def _placed(self, starts: Mapping[str, np.ndarray], i: int) -> mujoco.MjData:
        data = mujoco.MjData(self.model)
        for name in ("qpos", "qvel", "mocap_pos", "mocap_quat"):
            if name in starts:
                getattr(data, name)[:] = starts[name][i]
        mujoco.mj_forward(self.model, data)
        data.qacc_warmstart.fill(0.0)  # training starts an episode without one
        return data


def _check_task(folder: Path, exported: Exported) -> None:
    """InputError if task.onnx is that of another export, as far as it says, or reads what this model has not."""
    own, data = exported.task.properties.get("gorl"), mujoco.MjData(exported.model)
    fits = own is None or json.loads(own) == exported.metadata  # exports from before do not say
    for name, shape in exported.task.inputs.items():
        field = getattr(data, name, None)
        fits &= not isinstance(field, np.ndarray) or field.size == math.prod(shape)
    if not fits:
        raise InputError(f"{str(folder)!r}: task.onnx is not the one of this export; export the run again")


def _portable(dtype: str) -> str:
    return "float32" if dtype.startswith("float") else dtype


def _read_metadata(path: Path) -> dict[str, Any]:
    try:
        metadata = json.loads(path.read_text())
        version = metadata["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not the metadata of an export: {' '.join(str(error).split())}") from error
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path} has schema_version {version}, this version of gorl_robotics reads {SCHEMA_VERSION}; "
            "export the run again"
        )
    return metadata


def _read_model(path: Path) -> mujoco.MjModel:
    try:
        return mujoco.MjModel.from_xml_path(str(path))
    except ValueError as error:
        raise InputError(f"{path} does not compile: {' '.join(str(error).split())}") from error


def _read_starts(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as stored:
            starts = {name: stored[name] for name in stored.files}
        rows = {len(starts[name]) for name in ("qpos", "qvel")}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} holds no initial states: it is damaged or of another kind") from error
    if len(rows) != 1 or 0 in rows:
        raise InputError(f"{path} holds no initial states: qpos and qvel have {sorted(rows)} rows")
    return starts
