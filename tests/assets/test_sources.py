"""Loading robots: what is found, and what a user is told when it is not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
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


# --- packages -----------------------------------------------------------------------------------


def test_gymnasiums_ant_is_gymnasiums() -> None:
    import gymnasium.envs.mujoco

    folder = Path(gymnasium.envs.mujoco.__file__).parent / "assets"
    assert load("gymnasium:ant").compile().nq == 15
    assert load("gymnasium:ant").to_xml() == mujoco.MjSpec.from_file(str(folder / "ant.xml")).to_xml()
    assert message("gymnasium:aunt") == "unknown gymnasium model 'aunt'; did you mean 'ant'?"


@pytest.mark.parametrize(("source", "package"), [("suite", "dm-control"), ("gymnasium", "gymnasium")])
def test_a_package_that_is_missing_is_named(source: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert message(f"{source}:ant") == f"asset '{source}:ant' needs the package {package}: pip install {package}"


MENAGERIE = """
import os, pathlib

class MenagerieError(Exception): pass

class Cache:
    dir = pathlib.Path("/cache/of/menagerie")

class Robot:
    entry_names = ("arm", "scene")
    def xml(self, entry=None):
        if "MENAGERIE_ROOT" not in os.environ:
            raise MenagerieError("https://…/unit_arm.tar.xz:\\n<urlopen error no network>")
        return pathlib.Path(os.environ["MENAGERIE_ROOT"]) / "unit_arm" / f"{entry or 'scene'}.xml"

def names():
    return ["unit_arm", "unit_leg"]

def get(name):
    return Robot()
"""


@pytest.fixture
def menagerie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package with the interface of mujoco-menagerie 2026.10 and no network; a folder that may become its root."""
    (tmp_path / "mujoco_menagerie.py").write_text(MENAGERIE)
    (tmp_path / "root" / "unit_arm").mkdir(parents=True)
    (tmp_path / "root" / "unit_arm" / "arm.xml").write_text(ARM)
    (tmp_path / "root" / "unit_arm" / "scene.xml").write_text(
        '<mujoco><include file="arm.xml"/><worldbody><geom type="plane" size="1 1 1"/></worldbody></mujoco>'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mujoco_menagerie", raising=False)
    yield tmp_path / "root"
    sys.modules.pop("mujoco_menagerie", None)


def test_menageries_robot_is_its_scene_or_one_of_its_files(menagerie: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MENAGERIE_ROOT", str(menagerie))
    assert load("menagerie:unit_arm").compile().ngeom == 2
    assert load("menagerie:unit_arm/arm").compile().ngeom == 1


def test_menageries_names_are_checked_before_anything_is_fetched(menagerie: Path) -> None:
    assert message("menagerie:unit_arn") == "unknown menagerie model 'unit_arn'; did you mean 'unit_arm'?"
    assert message("menagerie:unit_arm/scen").endswith("'scen'; did you mean 'scene'?")


def test_without_a_network_menagerie_says_where_its_cache_is(menagerie: Path) -> None:
    told = message("menagerie:unit_arm")
    for words in ("no network", "mujoco-menagerie prefetch unit_arm", "/cache/of/menagerie", "MENAGERIE_ROOT"):
        assert words in told


def test_without_its_package_menagerie_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mujoco_menagerie", None)
    assert message("menagerie:unitree_go1") == (
        "asset 'menagerie:unitree_go1' needs the package mujoco-menagerie: pip install mujoco-menagerie"
    )
