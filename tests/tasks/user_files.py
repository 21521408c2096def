"""A robot of a user's own: its model, its task file, and the many ways to get that wrong."""

from __future__ import annotations

from pathlib import Path

ROBOT = """
<mujoco>
  <worldbody>
    <geom name="floor" type="plane" size="5 5 .1"/>
    <body name="base" pos="0 0 0.3">
      <freejoint name="root"/>
      <geom type="box" size=".2 .1 .05" mass="3"/>
      <site name="imu"/>
      <body name="leg" pos="0.15 0 -.05">
        <joint name="hip" type="hinge" axis="0 1 0" range="-60 60" damping=".5"/>
        <geom type="capsule" fromto="0 0 0 0 0 -.2" size=".03"/>
        <body name="shin" pos="0 0 -.2">
          <joint name="extend" type="slide" axis="0 0 1" range="-.1 .05" damping="2"/>
          <geom type="sphere" size=".03" mass=".2"/>
        </body>
      </body>
    </body>
  </worldbody>
  <actuator>
    <position name="hip" joint="hip" kp="20" ctrlrange="-1 1"/>
    <motor name="extend" joint="extend" gear="10" ctrlrange="-2 2"/>
  </actuator>
  <sensor><gyro name="gyro" site="imu"/></sensor>
  <keyframe><key name="home" qpos="0 0 .35 1 0 0 0 .1 0"/></keyframe>
</mujoco>
"""

# One statement a line, so that a mistake put in the place of one is on a line that is known.
TASK = """\
from pathlib import Path
import torch
from assets import load
from envs.task import InitialState, Task, Timing

class MyRobot(Task):
    timing = Timing(control=0.02, physics=0.005)
    nconmax, njmax = 12, 60
    units = {"height": "m", "speed": "m/s, rad/s"}

    def model(self):
        spec = load("file:" + str(Path(__file__).parent / "robot.xml"))
        return spec

    def initial_state(self, sim, random):
        qpos = sim.default_qpos() + 0.0
        return InitialState(qpos, sim.zero_qvel(), state={"age": qpos[:, 0] * 0})

    def observe(self, sim, state):
        terms = {"height": sim.qpos[:, 2:3], "speed": sim.qvel}
        return terms

    def reward(self, sim, state, action):
        height = sim.xpos[:, sim.body("base"), 2]
        return height

    def terminated(self, sim, state):
        fallen = sim.qpos[:, 2] < 0.1
        return fallen

    def update(self, sim, state, random):
        age = state["age"] + 0.0 * random.uniform()
        return {"age": age}

    def privileged(self, sim, state):
        return {"age": state["age"].unsqueeze(1)}
"""


def write(folder: Path, old: str = "", new: str = "", name: str = "my_robot.py") -> str:
    """Writes robot.xml and the task file, one passage changed, and returns FILE:CLASS relative to the folder."""
    assert old in TASK
    (folder / "robot.xml").write_text(ROBOT)
    (folder / name).write_text(TASK.replace(old, new, 1) if old else TASK)
    return f"{name}:MyRobot"


def line_with(folder: Path, text: str, name: str = "my_robot.py") -> int:
    """The number of the first line of the task file that holds `text`."""
    return next(i for i, line in enumerate((folder / name).read_text().splitlines(), 1) if text in line)
