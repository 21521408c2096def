"""`python -m tasks new`: a first task that is right as it stands, and what is trained from it."""

from __future__ import annotations

import ast
import json
import signal
import subprocess
import sys
from pathlib import Path

import mujoco
import pytest
from running import Ended, here, only_run, process, settings, signalled
from user_files import ROBOT

import tasks
import train
from assets import load
from envs.dry_run import dry_run
from envs.fake_run import fake_run
from gorl_robotics import export, playback
from tasks import __main__ as command
from tasks import check, files
from tasks.robot import Robot

# Two roots, joints of every kind, no names: what a model need not have is not asked for.
ODD = """
<mujoco>
  <option timestep="0.003"/>
  <worldbody>
    <body pos="0 0 1"><freejoint/><geom size=".1"/>
      <body pos="0 0 .3"><joint type="ball"/><geom size=".1"/>
        <body pos="0 0 .3"><joint type="hinge"/><geom size=".1"/>
          <body pos=".2 0 .3"><joint type="slide"/><geom size=".1"/><site name="s"/></body>
          <body pos="-.2 0 .3"><joint type="hinge" axis="1 0 0"/><geom size=".1"/></body>
        </body>
      </body>
    </body>
    <body pos="2 0 1"><freejoint name="ball"/><geom size=".1"/></body>
  </worldbody>
  <actuator><general site="s" gear="0 0 0 1 0 0" dyntype="filter" dynprm=".1"/></actuator>
  <sensor><touch site="s"/><jointpos joint="NAME"/><accelerometer name="root_height" site="s"/></sensor>
</mujoco>
""".replace('<jointpos joint="NAME"/>', "")


@pytest.fixture(autouse=True)
def _there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "path", list(sys.path))


def new(folder: Path, *arguments: str) -> Ended:
    return here(["new", *arguments], folder, command.main)


def terms_of(name: str) -> dict[str, int]:
    task = tasks.make(name)
    model = task.compile()
    layout = dry_run(task, model)
    assert fake_run(task, model, layout).faults == ()
    assert list(task.units) == list(layout.observation)
    return layout.observation


def test_from_a_model_to_an_exported_policy(tmp_path: Path) -> None:
    """New, check, train two iterations, play; from another folder than the robot's."""
    robots = tmp_path / "robots"
    robots.mkdir()
    (tmp_path / "robot.xml").write_text(ROBOT)
    ended = new(robots, "my_robot", "--model", "../robot.xml")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines() == [
        "wrote my_robot.py: 18 observations, 2 actions",
        "next: python -m tasks check my_robot.py:MyRobot",
        "then: python train.py task=my_robot.py:MyRobot",
    ]
    name = "robots/my_robot.py:MyRobot"
    check_passes(name, tmp_path)
    path = robots / "my_robot.py"
    path.write_text(path.read_text().replace("episode_length = 1000", "episode_length = 50"))
    files._imported.cache_clear()  # as a new process would
    two = settings(task=name, total_steps=1024, stages__fractions="[0.5,0.5]", refit__samples=512, evaluation_worlds=2)
    with signalled(1, signal.SIGTERM):
        ended = here(two, tmp_path)
    assert (ended.code, ended.err) == (0, "")
    folder = only_run(tmp_path)
    assert folder.parent.name == "MyRobot"
    assert f"task: {robots.resolve()}/my_robot.py:MyRobot" in (folder / "config.yaml").read_text()
    for arguments, cwd, main in (
        ([f"resume={folder}", "task=my_robot.py:MyRobot"], robots, train.main),
        (["test=true", f"checkpoint={folder}", f"task={name}"], tmp_path, train.main),
        ([str(folder)], robots, export.main),
        ([str(folder), "--episodes", "2"], robots, playback.main),
    ):
        ended = here(arguments, cwd, main)
        assert (ended.code, ended.err) == (0, ""), arguments
    assert ended.out.startswith("MyRobot, deterministic policy, 2 episodes in plain MuJoCo")
    metadata = json.loads((folder / "export" / "policy.json").read_text())
    assert metadata["task"] == "MyRobot"
    assert {term["name"]: term["unit"] for term in metadata["observation"]["terms"]}["hinges"] == "rad"


def check_passes(name: str, cwd: Path) -> None:
    """The command's verdicts, and the table of what each method returned."""
    ended = here(["check", name], cwd, command.main)
    assert (ended.code, ended.err) == (0, "")
    lines = {line[:34].strip(): line for line in ended.out.splitlines()}
    for title in check.CHECKS:
        assert " ok " in lines[title] or (title == "captured on CUDA" and "not run" in lines[title]), lines[title]
    assert "control steps/s in 256 worlds" in lines["plays"]
    returned = {" ".join(line.split()) for line in ended.out.splitlines()}
    assert {
        "initial_state qpos (N, 9) float32 (N, 9) float32",
        "observe gyro (N, 3) float32 (N, 3) float32",
        "reward reward (N,) float32 (N,) float32",
        "terminated terminated (N,) bool (N,) bool",
    } <= returned


def test_what_is_written_names_the_models_parts(tmp_path: Path) -> None:
    (tmp_path / "robot.xml").write_text(ROBOT)
    new(tmp_path, "my_robot", "--model", "robot.xml")
    text = (tmp_path / "my_robot.py").read_text()
    for line in (
        "#   bodies: base; leg; shin",
        "#   joints: root: free (m and quaternion); hip: hinge (rad, -1.05 to 1.05); extend: slide (m, -0.1 to 0.05)",
        "#   actuators: hip: action -1 to 1 is ctrl -1 to 1; extend: action -1 to 1 is ctrl -2 to 2",
        "#   sensors: gyro (gyro)",
        "    timing = Timing(control=0.02, physics=0.002)",
        '            "hinges": sim.qpos[:, 7:8],  # hip',
        'sim.tensor(sim.model.key("home").qpos)',
        'sim.body("base")',
    ):
        assert line in text, line
    assert terms_of("my_robot.py:MyRobot") == {
        "root_height": 1,
        "root_orientation": 4,
        "slides": 1,
        "hinges": 1,
        "root_velocity": 3,
        "root_turning": 3,
        "slide_velocities": 1,
        "hinge_velocities": 1,
        "gyro": 3,
    }
    task = tasks.make("my_robot.py:MyRobot")
    assert task.nconmax is not None
    assert task.njmax is not None
    assert task.njmax >= 30
    ruff = [sys.executable, "-m", "ruff", "format", "--check", "--line-length", "120", "my_robot.py"]
    assert subprocess.run(ruff, cwd=tmp_path, check=False).returncode == 0


def test_a_model_of_every_kind_of_joint_and_few_names(tmp_path: Path) -> None:
    (tmp_path / "odd.xml").write_text(ODD)
    assert new(tmp_path, "odd_one.py", "--model", "file:odd.xml").code == 0
    assert terms_of("odd_one.py:OddOne") == {
        "root_height": 1,
        "root_orientation": 4,
        "object_1_position": 3,
        "object_1_orientation": 4,
        "balls": 4,
        "slides": 1,
        "hinges": 2,
        "root_velocity": 3,
        "root_turning": 3,
        "object_1_velocity": 3,
        "object_1_turning": 3,
        "ball_velocities": 3,
        "slide_velocities": 1,
        "hinge_velocities": 2,
        "activation": 1,
        "sensor_0": 1,
        "root_height_sensor": 3,
    }
    timing = tasks.make("odd_one.py:OddOne").timing
    assert (timing.control, timing.physics, timing.physics_steps) == (0.021, 0.003, 7)


@pytest.mark.parametrize(
    ("name", "body"), [("hopper", "torso"), ("cheetah", "torso"), ("cartpole", "pole_1"), ("pendulum", "pole")]
)
def test_the_first_reward_is_about_the_root_or_the_last_link(name: str, body: str) -> None:
    robot = Robot(load(f"suite:{name}").compile())
    assert robot.body == f"the body {body}"
    observed = " ".join(term.expression for term in robot.terms())
    assert ("sim.qpos[:, 0:1]" in observed) == (name == "cartpole"), "how far a planar robot has come is not observed"


@pytest.mark.filterwarnings("ignore:compiler attribute")
def test_every_model_of_the_suite_gets_python_that_reads(tmp_path: Path) -> None:
    from tasks.new import Asset, source

    for name in ("walker", "humanoid_CMU", "quadruped", "stacker", "dog", "manipulator", "finger", "fish"):
        model = load(f"suite:{name}").compile()
        text = source("Robot", Asset(f"suite:{name}", f'"suite:{name}"'), Robot(model), (1, 1))
        ast.parse(text)
        assert max(map(len, text.splitlines())) <= 120, name
        names = [mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_ACTUATOR, i) for i in range(model.nu)]
        assert all(actuator in text for actuator in names)


def test_what_new_refuses(tmp_path: Path) -> None:
    (tmp_path / "robot.xml").write_text(ROBOT)
    (tmp_path / "taken.py").write_text("mine")
    (tmp_path / "still.xml").write_text("<mujoco><worldbody><body><joint/><geom size='1'/></body></worldbody></mujoco>")
    (tmp_path / "ghost.xml").write_text("<mujoco><worldbody><body><joint/></body></worldbody></mujoco>")
    for arguments, told in (
        (("taken", "--model", "robot.xml"), "taken.py exists already; nothing was written"),
        (("2fast", "--model", "robot.xml"), "'2fast' cannot be a Python file's name"),
        (("a/b", "--model", "robot.xml"), "'a/b' cannot be a Python file's name"),
        (("class", "--model", "robot.xml"), "'class' cannot be a Python file's name"),
        (("torch", "--model", "robot.xml"), "torch.py would hide the Python module 'torch'"),
        (("envs", "--model", "robot.xml"), "envs.py would hide the Python module 'envs'"),
        (("random", "--model", "robot.xml"), "random.py would hide the Python module 'random'"),
        (("one", "--model", "robt.xml"), "unknown model file 'robt.xml'; did you mean 'robot.xml'?"),
        (("one", "--model", "suite:hoper"), "unknown suite model 'hoper'; did you mean 'hopper'?"),
        (("one", "--model", "still.xml"), "file:still.xml: the model has no actuators"),
        (("one", "--model", "ghost.xml"), "file:ghost.xml: the model does not compile: "),
    ):
        ended = new(tmp_path, *arguments)
        assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
        assert told in ended.err
    assert (tmp_path / "taken.py").read_text() == "mine"
    assert not (tmp_path / "one.py").exists()


def test_the_process_itself_lists_and_helps(tmp_path: Path) -> None:
    ended = process(["-m", "tasks", "--help"], Path(tasks.__file__).parent.parent)
    assert ended.code == 0
    assert "check" in ended.out
    assert "new" in ended.out
    assert check.CHECKS.keys() >= {"plays", "leaves for ONNX"}
