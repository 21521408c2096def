"""A task in a file of a user's own, or in an installed package: found by name, and every failure one line."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pytest
from user_files import line_with, write

import tasks
from envs.dry_run import dry_run
from envs.gymnasium_env import GymnasiumVectorEnv
from gorl_robotics.errors import InputError
from tasks import __main__ as listing
from tasks import files, registry


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test in a folder of its own, which leaves no trace on the import path or among the registered tasks."""
    tasks.names()  # so that those that are always there are loaded
    monkeypatch.setattr(registry, "_TASKS", dict(registry._TASKS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


def refused(name: str) -> str:
    with pytest.raises(InputError) as caught:
        tasks.make(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_class_in_a_file_is_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = write(tmp_path)
    task = tasks.make(name)
    assert (task.name, type(task).__name__) == ("MyRobot", "MyRobot")
    assert dry_run(task, task.compile()).observation == {"height": 1, "speed": 8}
    assert type(tasks.make(f"{tmp_path}/{name}")) is type(task), "one file, one class"
    assert "MyRobot" not in tasks.names()
    env = GymnasiumVectorEnv(tasks.make(name), 2)
    assert env.single_observation_space.shape == (9,)
    monkeypatch.chdir("/")
    assert tasks.make(f"{tmp_path}/{name}").compile().nu == 2


def test_a_task_that_is_there_already_may_be_named_by_its_file() -> None:
    file = Path(tasks.__path__[0]) / "hopper.py"
    assert type(tasks.make(f"{file}:HopperStand")) is type(tasks.make("HopperStand"))
    assert refused(f"{file}:HoperStand").endswith("did you mean 'HopperStand'?")


def test_a_name_means_the_same_from_any_folder(tmp_path: Path) -> None:
    name = write(tmp_path)
    assert tasks.absolute(name) == f"{tmp_path.resolve()}/my_robot.py:MyRobot"
    assert tasks.absolute("HopperStand") == "HopperStand"
    assert tasks.absolute("NoSuchTask") == "NoSuchTask"
    with pytest.raises(InputError, match=r"unknown task file 'my_robt.py'; did you mean 'my_robot.py'"):
        tasks.absolute("my_robt.py:MyRobot")


def test_a_project_that_was_moved_finds_its_file_by_name(tmp_path: Path) -> None:
    write(tmp_path, name="moved_robot.py")
    assert tasks.make("/no/such/folder/moved_robot.py:MyRobot").name == "MyRobot"
    assert "unknown task file '/no/such/folder/other.py'" in refused("/no/such/folder/other.py:MyRobot")


def test_a_registered_name_in_a_file_and_a_neighbour_are_kept(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_it.py").write_text("LENGTH = 7\n")
    text = "from neighbour_of_it import LENGTH\nfrom tasks import register\nfrom tasks.hopper import HopperStand\n"
    (tmp_path / "kept.py").write_text(
        f"{text}class Plain(HopperStand):\n    episode_length = LENGTH\n"
        "@register('KeptName')\nclass Named(HopperStand):\n    pass\n"
    )
    assert (tasks.make("kept.py:Plain").name, tasks.make("kept.py:Plain").episode_length) == ("Plain", 7)
    assert tasks.make("kept.py:Named").name == "KeptName"


def test_files_and_classes_that_do_not_exist(tmp_path: Path) -> None:
    write(tmp_path, name="only_robot.py")
    assert refused("only_robt.py:MyRobot") == "unknown task file 'only_robt.py'; did you mean 'only_robot.py'?"
    assert refused("only_robot.py:MyRobt") == "only_robot.py: unknown task class 'MyRobt'; did you mean 'MyRobot'?"
    assert refused("only_robot.py") == (
        "task 'only_robot.py' names no class; expected FILE.py:CLASS such as only_robot.py:MyRobot"
    )
    assert "is not a subclass of envs.task.Task" in refused("only_robot.py:Timing")
    assert "is not a subclass of envs.task.Task" in refused("only_robot.py:torch")
    assert "unknown task file 'robot.xml'" in refused("robot.xml:MyRobot")


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("syntax", "x = 1\ndef broken(:\n    pass\n", "syntax.py:2: SyntaxError: "),
        ("missing", "import torch\nimport no_such_module\n", "missing.py:2: ModuleNotFoundError: No module named"),
        ("raises", "def f():\n    return 1 / 0\nf()\n", "raises.py:2: ZeroDivisionError: division by zero"),
        ("deeper", "import json\njson.loads('{')\n", "deeper.py:2: JSONDecodeError: "),
    ],
)
def test_a_file_that_raises_is_told_by_its_line(name: str, text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").write_text(text)
    assert refused(f"{name}.py:MyRobot").startswith(told)
    assert refused(f"{name}.py:MyRobot").startswith(told), "the second time too"


def test_a_class_that_is_no_whole_task(tmp_path: Path) -> None:
    write(tmp_path, "    def reward(", "    def rewards(", name="half.py")
    assert refused("half.py:MyRobot").startswith(
        f"half.py:{line_with(tmp_path, 'class My', 'half.py')}: MyRobot lacks reward"
    )
    write(tmp_path, "    def model(self):", "    def __init__(self, x): ...\n    def model(self):", name="needy.py")
    line = line_with(tmp_path, "__init__", "needy.py")
    assert refused("needy.py:MyRobot").startswith(f"needy.py:{line}: MyRobot() cannot be made: TypeError")


# --- installed packages ------------------------------------------------------------------------


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that offers one good task and some that are not."""
    package = tmp_path / "robot_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    write(package, name="good.py")
    (package / "bad.py").write_text("x = 1\nraise ValueError('no licence')\n")
    monkeypatch.syspath_prepend(tmp_path)
    offered = {"Packaged": "good:MyRobot", "Bad": "bad:MyRobot", "Gone": "gone:MyRobot", "NoTask": "good:TASK"}
    points = [
        EntryPoint(name, f"robot_package.{value}", files.GROUP)._for(SimpleNamespace(name="robot-package"))  # type: ignore[attr-defined]
        for name, value in {**offered, "HopperStand": "good:MyRobot"}.items()
    ]
    monkeypatch.setattr(files, "entry_points", lambda group: points if group == files.GROUP else [])


@pytest.mark.usefixtures("packaged")
def test_a_package_offers_tasks() -> None:
    assert {"Packaged", "Bad", "HopperStand", "CheetahRun"} <= set(tasks.names())
    task = tasks.make("Packaged")
    assert task.name == "Packaged"
    assert task.compile().nu == 2
    assert type(tasks.make("HopperStand")).__module__ == "tasks.hopper", "its own tasks come first"
    assert "did you mean 'Packaged'" in refused("Packagd")


@pytest.mark.usefixtures("packaged")
def test_a_broken_package_is_told_and_leaves_the_others_alone() -> None:
    bad = refused("Bad")
    assert "robot_package/bad.py:2: task 'Bad' of the package robot-package (robot_package.bad:MyRobot)" in bad
    assert "ValueError: no licence" in bad
    assert "No module named 'robot_package.gone'" in refused("Gone")
    assert "has no attribute 'TASK'" in refused("NoTask")
    assert tasks.make("CheetahRun").name == "CheetahRun"


@pytest.mark.usefixtures("packaged")
def test_the_list_shows_broken_tasks_as_such(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(tasks, "names", lambda: ["Bad", "CartpoleBalance", "Packaged"])
    listing.show()
    bad, cartpole, packaged = capsys.readouterr().out.splitlines()[-3:]
    assert "no licence" in bad
    assert "1" in cartpole.split()
    assert packaged.split()[0] == "Packaged"
