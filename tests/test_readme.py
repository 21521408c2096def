"""What the README promises to a newcomer works as it is written there."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

from envs.vector_env import VectorEnv
from tasks import registry

ROOT = Path(__file__).parent.parent
ROBOT = """
<mujoco>
  <worldbody>
    <body pos="0 0 0.4">
      <joint name="swing" type="hinge" axis="0 1 0"/>
      <geom type="capsule" fromto="0 0 0 0 0 .3" size=".03"/>
      <site name="tip" pos="0 0 .3"/>
    </body>
  </worldbody>
  <actuator><motor joint="swing" gear="5" ctrlrange="-1 1" ctrllimited="true"/></actuator>
</mujoco>
"""


def test_the_robot_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(# tasks/my_robot.py.*?)```", (ROOT / "README.md").read_text(), re.S)
    (tmp_path / "my_robot.xml").write_text(ROBOT)
    (tmp_path / "my_robot.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    registry.names()  # loads all tasks: what is registered after the next line is forgotten again
    monkeypatch.setattr(registry, "_TASKS", dict(registry._TASKS))
    spec = importlib.util.spec_from_file_location("my_robot", tmp_path / "my_robot.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "my_robot", module)
    spec.loader.exec_module(module)
    env = VectorEnv(registry.make("MyRobot"), 3)
    assert env.layout.observation == {"joints": 1, "speed": 1}
    upright = env.step(torch.zeros(3, 1)).reward.clone()
    assert (upright > 0.9).all()
    swinging = torch.stack([env.step(torch.zeros(3, 1)).reward.clone() for _ in range(150)])
    assert (swinging.min(dim=0).values < 0.3).all()  # the tip has been below


def test_the_example_policy_is_whole() -> None:
    from gorl_robotics import player

    player.load(ROOT / "examples" / "hopper_stand")
