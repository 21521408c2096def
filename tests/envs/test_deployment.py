"""What an export says of a robot, and the model that it carries."""

from __future__ import annotations

import json
from pathlib import Path

import imageio.v2 as imageio
import mujoco
import numpy as np
import pytest
from fake_task import Slider, variant

import tasks
from envs.deployment import describe, model_files
from envs.dry_run import dry_run
from envs.task import Task
from gorl_robotics.errors import InputError

OBJ = "v 0 0 0\nv {0} 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n"
WITH_FILES = """
<mujoco>
  <compiler meshdir="meshes" texturedir="pictures"/>
  <asset>
    <mesh file="part.obj"/><mesh name="other" file="more/part.obj"/><mesh name="twice" file="part.obj" scale="2 2 2"/>
    <texture name="box" type="cube" fileup="p.png" filedown="p.png"/><texture name="flat" type="2d" file="p.png"/>
    <material name="painted" texture="box"/><hfield name="hills" file="h.png" size="1 1 1 1"/>
  </asset>
  <worldbody>
    <geom type="hfield" hfield="hills"/>
    <body><joint name="j"/><geom type="mesh" mesh="part" material="painted"/><geom type="mesh" mesh="other"/>
      <geom type="mesh" mesh="twice"/></body>
  </worldbody>
  <actuator><motor joint="j"/></actuator>
</mujoco>
"""


def arrays(model: mujoco.MjModel) -> dict[str, np.ndarray]:
    named = {name: getattr(model, name) for name in dir(model) if not name.startswith("_")}
    named.update({f"opt.{name}": getattr(model.opt, name) for name in dir(model.opt) if not name.startswith("_")})
    return {name: np.asarray(v) for name, v in named.items() if isinstance(v, np.ndarray | int | float)}


def compiled(folder: Path, task: Task) -> mujoco.MjModel:
    for name, content in model_files(task).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return mujoco.MjModel.from_xml_path(str(folder / "model.xml"))


@pytest.mark.parametrize("name", tasks.names())
def test_the_model_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    task = tasks.make(name)
    before, after = arrays(task.compile()), arrays(compiled(tmp_path, task))
    assert before.keys() == after.keys()
    assert [key for key in before if not np.array_equal(before[key], after[key])] == []


def test_meshes_textures_and_height_fields_come_along(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "meshes" / "more").mkdir(parents=True)
    (source / "pictures").mkdir()
    (source / "meshes" / "part.obj").write_text(OBJ.format(1))
    (source / "meshes" / "more" / "part.obj").write_text(OBJ.format(3))
    picture = np.arange(64, dtype=np.uint8).reshape(8, 8)
    imageio.imwrite(source / "pictures" / "p.png", np.stack([picture] * 3, axis=-1))
    imageio.imwrite(source / "meshes" / "h.png", picture)
    (source / "robot.xml").write_text(WITH_FILES)
    task = variant(Slider, model=lambda self: mujoco.MjSpec.from_file(str(source / "robot.xml")))
    before = task.compile()
    after = compiled(tmp_path / "export", task)
    assert len(list((tmp_path / "export").rglob("*.*"))) == 5
    for name in ("mesh_vert", "hfield_data", "tex_data", "geom_dataid", "body_mass", "geom_pos"):
        np.testing.assert_allclose(getattr(after, name), getattr(before, name), rtol=1e-9, atol=1e-9)
    (source / "meshes" / "part.obj").unlink()
    with pytest.raises(InputError, match=r"part\.obj"):
        model_files(task)


def test_the_description_is_plain_and_says_what_a_robot_needs() -> None:
    task = tasks.make("HopperStand")
    model = task.compile()
    said = describe(task, model, dry_run(task, model))
    assert json.loads(json.dumps(said, allow_nan=False)) == said
    assert said["timing"] == {"control_dt": 0.02, "physics_dt": 0.005, "physics_steps": 4}
    assert said["observation"]["terms"][2] == {
        "name": "touch",
        "size": 2,
        "start": 13,
        "stop": 15,
        "unit": "log(1 + N)",
    }
    waist = said["joints"][3]
    assert (waist["name"], waist["type"], waist["qpos"], waist["qvel"]) == ("waist", "hinge", [3, 4], [3, 4])
    assert waist["range"] == model.jnt_range[3].tolist()
    assert said["joints"][0]["range"] is None
    assert said["actuators"][0]["joint"] == "waist"
    assert said["actuators"][0]["gear"] == model.actuator_gear[0].tolist()
    assert said["action"]["ctrl_scale"] == [1.0] * 4


def test_the_description_names_what_a_task_remembers_and_draws() -> None:
    task = Slider()
    model = task.compile()
    said = describe(task, model, dry_run(task, model))
    assert said["state"][0] == {"name": "target", "shape": [1], "dtype": "float64"}
    assert said["draws"] == [
        {"name": "random.0", "kind": "normal", "shape": [1]},
        {"name": "random.1", "kind": "uniform", "shape": [1]},
    ]
    assert (said["action"]["ctrl_offset"], said["action"]["ctrl_scale"]) == ([1.0], [3.0])
    assert said["observation"]["terms"][0]["unit"] is None
