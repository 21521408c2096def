"""What leaves for a robot or another simulator besides the networks: metadata, and the model's files."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mujoco

from envs.controls import action_range
from envs.dry_run import Layout
from envs.task import Task
from gorl_robotics.errors import InputError

_ASSETS = "assets"  # folder beside model.xml
_QPOS_SIZE = {"free": 7, "ball": 4, "slide": 1, "hinge": 1}
_QVEL_SIZE = {"free": 6, "ball": 3, "slide": 1, "hinge": 1}


def describe(task: Task, model: mujoco.MjModel, layout: Layout) -> dict[str, Any]:
    """Metadata of a task and its robot: plain, typed values that JSON keeps without loss; SI units."""
    timing = task.timing
    return {
        "task": task.name,
        "episode_length": task.episode_length,
        "timing": {
            "control_dt": timing.control,
            "physics_dt": timing.physics,
            "physics_steps": timing.physics_steps,
        },
        "observation": {"size": layout.observation_size, "terms": _terms(task, layout)},
        "action": _action(model),
        "actuators": [_actuator(model, i) for i in range(model.nu)],
        "joints": [_joint(model, i) for i in range(model.njnt)],
        "state": [
            {"name": name, "shape": list(shape), "dtype": str(dtype).removeprefix("torch.")}
            for name, (shape, dtype) in layout.state.items()
        ],
        "draws": [
            {"name": f"random.{i}", "kind": kind, "shape": list(size)}
            for i, (kind, size) in enumerate(layout.update_draws)
        ],
    }


def model_files(task: Task) -> dict[str, bytes]:
    """`model.xml`, which compiles to the task's model again, and the asset files it names; by path."""
    spec = task.model()
    spec.option.timestep = task.timing.physics
    assets = _take_assets(spec)
    spec.compile()
    with _all_digits():
        return {"model.xml": spec.to_xml().encode(), **assets}


def _terms(task: Task, layout: Layout) -> list[dict[str, Any]]:
    terms, start = [], 0
    for name, size in layout.observation.items():
        unit = task.units.get(name)
        terms.append({"name": name, "size": size, "start": start, "stop": start + size, "unit": unit})
        start += size
    return terms


def _action(model: mujoco.MjModel) -> dict[str, Any]:
    low, high = action_range(model)
    return {
        "size": int(model.nu),
        "low": -1.0,
        "high": 1.0,
        "names": [_name(model, mujoco.mjtObj.mjOBJ_ACTUATOR, i) for i in range(model.nu)],
        "ctrl_offset": ((low + high) / 2).tolist(),
        "ctrl_scale": ((high - low) / 2).tolist(),
        "ctrl_low": low.tolist(),
        "ctrl_high": high.tolist(),
    }


def _actuator(model: mujoco.MjModel, i: int) -> dict[str, Any]:
    transmission = _word(mujoco.mjtTrn(model.actuator_trntype[i]))
    jointed = transmission in ("joint", "jointinparent")
    target = _name(model, mujoco.mjtObj.mjOBJ_JOINT, model.actuator_trnid[i, 0]) if jointed else None
    return {
        "name": _name(model, mujoco.mjtObj.mjOBJ_ACTUATOR, i),
        "transmission": transmission,
        "joint": target,
        "gear": model.actuator_gear[i].tolist(),
        "gaintype": _word(mujoco.mjtGain(model.actuator_gaintype[i])),
        "gainprm": model.actuator_gainprm[i].tolist(),
        "biastype": _word(mujoco.mjtBias(model.actuator_biastype[i])),
        "biasprm": model.actuator_biasprm[i].tolist(),
        "forcerange": model.actuator_forcerange[i].tolist() if model.actuator_forcelimited[i] else None,
    }


def _joint(model: mujoco.MjModel, i: int) -> dict[str, Any]:
    kind = _word(mujoco.mjtJoint(model.jnt_type[i]))
    qpos, qvel = int(model.jnt_qposadr[i]), int(model.jnt_dofadr[i])
    return {
        "name": _name(model, mujoco.mjtObj.mjOBJ_JOINT, i),
        "type": kind,
        "range": model.jnt_range[i].tolist() if model.jnt_limited[i] else None,
        "default_position": model.qpos0[qpos : qpos + _QPOS_SIZE[kind]].tolist(),
        "qpos": [qpos, qpos + _QPOS_SIZE[kind]],
        "qvel": [qvel, qvel + _QVEL_SIZE[kind]],
    }


def _name(model: mujoco.MjModel, kind: mujoco.mjtObj, i: int) -> str | None:
    return mujoco.mj_id2name(model, kind, int(i))


def _word(member: Any) -> str:
    """The word that MJCF has for a member of one of MuJoCo's enumerations: mjJNT_HINGE is hinge."""
    return str(member.name).partition("_")[2].lower()


def _take_assets(spec: mujoco.MjSpec) -> dict[str, bytes]:
    """Reads the files that `spec` names and makes it name them by where they lie beside `model.xml`."""
    found: dict[str, bytes] = {}
    for folder, holders in (
        (spec.meshdir, [*spec.meshes, *spec.skins]),
        (spec.texturedir, spec.textures),
        (spec.meshdir, spec.hfields),
    ):
        for holder in holders:
            if holder.file:
                holder.file = _take(spec, folder, holder.file, found)
            if cube := list(getattr(holder, "cubefiles", [])):
                holder.cubefiles = [file and _take(spec, folder, file, found) for file in cube]
    if found:
        spec.meshdir = spec.texturedir = ""
        spec.assets = found
    return found


def _take(spec: mujoco.MjSpec, folder: str, file: str, found: dict[str, bytes]) -> str:
    home = Path(spec.modelfiledir)
    paths = [home / folder / file, home / file, Path(folder) / file, Path(file)]
    content = next((path.read_bytes() for path in paths if path.is_file()), None)
    content = spec.assets.get(file) if content is None else content
    if content is None:
        raise InputError(f"asset file {file!r} of the model is not in {home / folder}")
    # Two folders may hold files of one name, from which assets take theirs; a file that two share is stored once.
    name, count = f"{_ASSETS}/{Path(file).name}", 1
    while found.get(name, content) != content:
        count += 1
        name = f"{_ASSETS}/{count}/{Path(file).name}"
    found[name] = content
    return name


@contextmanager
def _all_digits() -> Iterator[None]:
    """MuJoCo writes XML with six digits; with seventeen the model that is read back is the same bit for bit.

    The switch is there for MuJoCo's own tests and no public interface. Should it vanish, six digits must do.
    """
    library = ctypes.CDLL(str(next(Path(mujoco.__file__).parent.glob("libmujoco*"))))
    try:
        read, write = library._mjPRIVATE__get_xml_precision, library._mjPRIVATE__set_xml_precision
    except AttributeError:
        yield
        return
    before = read()
    write(17)
    try:
        yield
    finally:
        write(before)
