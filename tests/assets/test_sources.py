"""Loading robots: what is found, and what a user is told when it is not."""

from __future__ import annotations

from pathlib import Path

import mujoco
import pytest

from assets import load
from envs.draws import Draws
from envs.fields import Fields
from envs.task import InitialState, State, Task, Timing
from gorl_robotics.errors import InputError

ARM = """
<mujoco model="arm">
  <worldbody>
    <body name="link"><joint name="elbow"/><geom size="0.1" mass="2"/></body>
  </worldbody>
  <actuator><motor name="elbow" joint="elbow"/></actuator>
</mujoco>
"""


def message(asset: str) -> str:
    """The one line that asking for `asset` gives."""
    with pytest.raises(InputError) as caught:
        load(asset)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("name", "actuators"), [("hopper", 4), ("cartpole", 1), ("humanoid", 21)])
def test_suite_models_compile(name: str, actuators: int) -> None:
    assert load(f"suite:{name}").compile().nu == actuators


def test_a_loaded_model_can_be_edited_and_is_loaded_anew_each_time() -> None:
    spec = load("suite:hopper")
    spec.option.iterations = 3
    assert spec.compile().opt.iterations == 3
    assert load("suite:hopper").compile().opt.iterations == 100


def test_a_file_may_be_absolute_relative_or_below_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "arm.xml").write_text(ARM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in (tmp_path / "arm.xml", "arm.xml", "./arm.xml", "~/arm.xml"):
        assert load(f"file:{path}").compile().body("link").mass == 2


def test_a_file_may_include_its_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "robots").mkdir()
    (tmp_path / "robots" / "actuator.xml").write_text(
        '<mujoco><actuator><motor name="elbow" joint="elbow" gear="7"/></actuator></mujoco>'
    )
    whole = '<actuator><motor name="elbow" joint="elbow"/></actuator>'
    (tmp_path / "robots" / "arm.xml").write_text(ARM.replace(whole, '<include file="actuator.xml"/>'))
    monkeypatch.chdir(tmp_path)
    assert load("file:robots/arm.xml").compile().actuator("elbow").gear[0] == 7


def test_misspelt_names_get_the_nearest_right_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "arm.xml").write_text(ARM)
    monkeypatch.chdir(tmp_path)
    assert message("suite:hoper") == "unknown suite model 'hoper'; did you mean 'hopper'?"
    assert message("suit:hopper") == "unknown asset source 'suit'; did you mean 'suite'?"
    assert message("file:arn.xml") == "unknown model file 'arn.xml'; did you mean 'arm.xml'?"
    assert message(f"file:{tmp_path}/amr.xml").endswith(f"did you mean '{tmp_path}/arm.xml'?")


def test_a_name_without_a_source_is_told_how_to_write_it() -> None:
    assert message("hopper") == (
        "asset 'hopper' has no source; expected SOURCE:NAME such as suite:hopper or file:hopper"
    )


@pytest.mark.parametrize("asset", ["suite:", "file:", "file:/no/such/folder/arm.xml", ":", ""])
def test_an_empty_name_or_folder_is_one_line_too(asset: str) -> None:
    assert message(asset)


def test_a_folder_is_no_model(tmp_path: Path) -> None:
    assert message(f"file:{tmp_path}").startswith(f"unknown model file '{tmp_path}'")


@pytest.mark.parametrize(
    "content",
    ["this is no XML\nat all", "<mujoco><worldbody>", "<html/>", "<mujoco><worldboddy/></mujoco>", ""],
)
def test_a_file_that_is_no_model(content: str, tmp_path: Path) -> None:
    path = tmp_path / "arm.xml"
    path.write_text(content)
    assert message(f"file:{path}").startswith(f"asset 'file:{path}' is not a model MuJoCo can read: ")


class Arm(Task):
    """A task around whatever file it is given."""

    name = "Arm"
    timing = Timing(control=0.02, physics=0.005)

    def __init__(self, path: Path) -> None:
        self._path = path

    def model(self) -> mujoco.MjSpec:
        return load(f"file:{self._path}")

    def initial_state(self, sim: Fields, random: Draws) -> InitialState:
        raise NotImplementedError

    def observe(self, sim: Fields, state: State) -> dict[str, object]:  # type: ignore[override]
        raise NotImplementedError

    def reward(self, sim: Fields, state: State, action: object) -> object:  # type: ignore[override]
        raise NotImplementedError


@pytest.mark.parametrize(
    ("broken", "instead", "told"),
    [
        ('mass="2"', 'mass="-2"', "Arm: the model does not compile: .*mass"),
        ('mass="2"', 'mass="0"', "Arm: the model does not compile: .*mass"),
        ('joint="elbow"/></act', 'joint="shoulder"/></act', "Arm: the model does not compile: .*shoulder"),
        ('<motor name="elbow" joint="elbow"/>', "", "Arm: the model has no actuators"),
    ],
)
def test_a_model_that_does_not_compile(broken: str, instead: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "arm.xml"
    path.write_text(ARM)
    assert Arm(path).compile().opt.timestep == 0.005
    assert broken in ARM
    path.write_text(ARM.replace(broken, instead))
    with pytest.raises(InputError, match=told) as caught:
        Arm(path).compile()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("timing", [Timing(0.02, 0.006), Timing(0.005, 0.02)])
def test_time_steps_that_do_not_divide(timing: Timing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "arm.xml"
    path.write_text(ARM)
    monkeypatch.setattr(Arm, "timing", timing)
    with pytest.raises(InputError, match=f"Arm: control step {timing.control} s is no multiple of physics step"):
        Arm(path).compile()
