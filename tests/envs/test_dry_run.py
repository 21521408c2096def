"""What a dry run finds out about a task, and the one line it gives for each mistake in one."""

from __future__ import annotations

from typing import Any

import mujoco
import pytest
import torch
from fake_task import Slider, variant

import tasks
from envs.dry_run import Layout, concatenate, dry_run
from envs.task import InitialState, Task, Timing
from gorl_robotics.errors import InputError


def layout(task: Task) -> Layout:
    return dry_run(task, task.compile())


def test_finds_fields_terms_state_and_draws() -> None:
    found = layout(Slider())
    assert set(found.fields) == {"sensordata", "qvel", "qpos"}
    assert list(found.observation.items()) == [("position", 1), ("velocity", 1), ("target", 1)]
    assert found.privileged == {"age": 1}
    assert (found.observation_size, found.critic_observation_size) == (3, 4)
    assert {name: shape for name, (shape, _) in found.state.items()} == {"target": (1,), "age": ()}
    assert found.update_draws == (("normal", (1,)), ("uniform", (1,)))


@pytest.mark.parametrize(
    ("method", "field"),
    [
        ("observe", "geom_xpos"),
        ("reward", "site_xpos"),
        ("terminated", "xmat"),
        ("privileged", "cvel"),
        ("update", "act"),
    ],
)
def test_finds_a_field_that_only_one_method_reads(method: str, field: str) -> None:
    def reads(self: Task, sim: Any, *rest: Any) -> Any:
        getattr(sim, field)
        return getattr(Slider, method)(self, sim, *rest)

    assert set(layout(variant(Slider, **{method: reads})).fields) == {"sensordata", "qvel", "qpos", field}


def test_a_field_that_only_the_start_reads_is_not_bound() -> None:
    def reads(self: Task, sim: Any, random: Any) -> InitialState:
        _ = sim.cvel
        return Slider.initial_state(self, sim, random)

    assert "cvel" not in layout(variant(Slider, initial_state=reads)).fields


def test_finds_what_the_hopper_reads() -> None:
    found = layout(tasks.make("HopperStand"))
    assert set(found.fields) == {"qpos", "qvel", "sensordata", "xipos"}
    assert found.observation == {"position": 6, "velocity": 7, "touch": 2}
    assert found.state == {}


def start(**changes: Any) -> Any:
    def initial_state(self: Task, sim: Any, random: Any) -> InitialState:
        given = Slider.initial_state(self, sim, random)
        return InitialState(**{**vars(given), **changes})

    return initial_state


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "qpos": (
        {"initial_state": start(qpos=torch.zeros(2, 2))},
        r"Slider.initial_state: qpos .*\(2, 2\).*\(2, 1\)",
    ),
    "qvel": (
        {"initial_state": start(qvel=torch.zeros(1))},
        r"Slider.initial_state: qvel .*expected \(2, 1\)",
    ),
    "mocap": (
        {"initial_state": start(mocap_pos=torch.zeros(2, 1, 3))},
        r"Slider.initial_state: mocap_pos .*\(2, 1, 3\).*\(2, 0, 3\)",
    ),
    "state at the start": (
        {"initial_state": start(state={"target": torch.zeros(3, 1), "age": torch.zeros(2)})},
        "Slider.initial_state: state 'target' has shape",
    ),
    "flat term": (
        {"observe": lambda self, sim, state: {"speed": sim.qvel[:, 0]}},
        r"observe: term 'speed' .*\(2, size\)",
    ),
    "term of one world": (
        {"observe": lambda self, sim, state: {"speed": sim.qvel[:1]}},
        "observe: term 'speed'",
    ),
    "no terms": ({"observe": lambda self, sim, state: {}}, "Slider.observe: returned no terms"),
    "privileged": (
        {"privileged": lambda self, sim, state: {"age": state["age"]}},
        "Slider.privileged: term 'age'",
    ),
    "privileged under a name of the observation": (
        {"privileged": lambda self, sim, state: {"age": state["age"][:, None], "target": sim.qpos.repeat(1, 2)}},
        r"Slider.privileged: term 'target' has the name of a term of observe; expected another name",
    ),
    "reward": (
        {"reward": lambda self, sim, state, action: action},
        r"Slider.reward: .*\(2, 1\).*expected \(2,\)",
    ),
    "flags": ({"terminated": lambda self, sim, state: sim.qpos > 0}, r"Slider.terminated: .*expected \(2,\)"),
    "kind of flags": (
        {"terminated": lambda self, sim, state: sim.qpos[:, 0]},
        "terminated: expected a bool tensor",
    ),
    "forgotten state": (
        {"update": lambda self, sim, state, random: {"age": state["age"]}},
        r"Slider.update: returned state \['age'\], but initial_state gave \['age', 'target'\]",
    ),
    "grown state": (
        {"update": lambda self, sim, state, random: {**state, "age": state["target"]}},
        "Slider.update: state 'age' has shape",
    ),
    "body": (
        {"reward": lambda self, sim, *_: sim.xpos[:, sim.body("slidr"), 0]},
        "body 'slidr'; did you mean 'slider'",
    ),
    "site": ({"reward": lambda self, sim, *_: sim.site("top")}, "site 'top'; did you mean 'tip'"),
    "geom": ({"reward": lambda self, sim, *_: sim.geom("blok")}, "geom 'blok'; did you mean 'block'"),
    "joint": (
        {"reward": lambda self, sim, *_: sim.joint_qpos("Slide")},
        "joint 'Slide'; did you mean 'slide'",
    ),
    "sensor": ({"reward": lambda self, sim, *_: sim.sensor("wher")}, "sensor 'wher'; did you mean 'where'"),
    "field": ({"reward": lambda self, sim, *_: sim.qpoz}, "simulation field 'qpoz'; did you mean 'qpos'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_that_names_the_place(mistake: str) -> None:
    attributes, message = MISTAKES[mistake]
    with pytest.raises(InputError, match=message) as error:
        layout(variant(Slider, **attributes))
    assert "\n" not in str(error.value)


def test_a_model_that_cannot_be_used_is_refused_by_name() -> None:
    plain = "<mujoco><worldbody><body><joint/><geom size='1'/></body></worldbody></mujoco>"
    with pytest.raises(InputError, match="Slider: the model has no actuators"):
        variant(Slider, model=lambda self: mujoco.MjSpec.from_string(plain)).compile()
    bodiless = "<mujoco><worldbody><body><joint/></body></worldbody></mujoco>"
    with pytest.raises(InputError, match="Slider: the model does not compile") as error:
        variant(Slider, model=lambda self: mujoco.MjSpec.from_string(bodiless)).compile()
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"control step 0.02 s is no multiple of physics step 0.003 s"):
        variant(Slider, timing=Timing(control=0.02, physics=0.003)).compile()
    assert Slider().compile().opt.timestep == 0.005


def test_terms_are_joined_in_order_as_32_bit_floats() -> None:
    joined = concatenate({"b": torch.ones(2, 1, dtype=torch.float64), "a": torch.zeros(2, 2)})
    assert joined.dtype == torch.float32
    assert joined.tolist() == [[1.0, 0.0, 0.0]] * 2
