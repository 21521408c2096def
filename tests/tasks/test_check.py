"""`python -m tasks check`: what each check passes, and what it refuses."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from running import Ended, here
from user_files import write

import tasks
from envs import onnx_trace, random_play, rehearsal
from envs.dry_run import dry_run
from envs.native_simulation import NativeSimulation
from envs.task import Task
from envs.vector_env import VectorEnv
from gorl_robotics.errors import InputError
from tasks import __main__ as command
from tasks import check

# pytest would format thousands of the exporter's trace records.
logging.getLogger("torch.__trace").propagate = False


@pytest.fixture(autouse=True)
def _there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def made(folder: Path, old: str = "", new: str = "") -> Task:
    return tasks.make(write(folder, old, new))


def run(folder: Path, *arguments: str) -> Ended:
    return here(["check", *arguments], folder, command.main)


# --- the command -------------------------------------------------------------------------------


def test_every_failure_is_a_line_and_the_other_checks_are_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engines = "MuJoCo Warp agrees with MuJoCo"
    monkeypatch.setitem(check.CHECKS, engines, lambda subject: "not asked in this test")
    write(tmp_path, "return height", "return height / height.max()")
    text = (tmp_path / "my_robot.py").read_text()
    text = text.replace("return fallen", "return fallen & bool(fallen.all())").replace("12, 60", "12, 3")
    (tmp_path / "my_robot.py").write_text(text)
    ended = run(tmp_path, "my_robot.py:MyRobot")
    assert ended.code == 2
    assert ended.err.count("error: ") == 4, ended.err
    graph, worlds, onnx, capacity = ended.err.splitlines()
    assert graph.startswith("error: my_robot.py:29: MyRobot.terminated: looks at a value")
    assert worlds.startswith("error: my_robot.py:23: MyRobot.reward: a world's numbers depend on the other worlds")
    assert onnx.startswith("error: my_robot.py:29: MyRobot: torch cannot trace it to ONNX")
    assert capacity.startswith("error: my_robot.py:6: MyRobot: at most ")
    assert "but njmax is 3; set nconmax, njmax = " in capacity
    assert ended.out.count("failed") == 4
    assert "not asked in this test" in ended.out


def test_a_task_whose_methods_fail_is_checked_no_further(tmp_path: Path) -> None:
    ended = run(tmp_path, write(tmp_path, "return terms", "return sim.qvel"))
    assert ended.code == 2
    assert ended.err == (
        "error: my_robot.py:19: MyRobot.observe: returned a Tensor, expected a dict of tensors by name\n"
    )
    assert ended.out.count("not run") == len(check.CHECKS) - 2


def test_names_that_cannot_be_checked(tmp_path: Path) -> None:
    for name in ("HoperStand", "my_robt.py:MyRobot"):
        ended = run(tmp_path, name)
        assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
        assert "unknown task" in ended.err


# --- worlds ------------------------------------------------------------------------------------


def env_of(task: Task, worlds: int = 16) -> VectorEnv:
    return VectorEnv(task, worlds, threads=1)


def test_numbers_that_are_not_finite_later_on_are_found(tmp_path: Path) -> None:
    env = env_of(made(tmp_path, "return height", "return height / (sim.qpos[:, 2] > 0.29)"))
    with pytest.raises(InputError, match=r"my_robot.py:23: MyRobot.reward: is not finite after random actions"):
        rehearsal.play(env, 60)


def test_a_reset_that_touches_other_worlds_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = env_of(made(tmp_path))
    rehearsal.play(env, 5)
    rehearsal.masked_reset(env)
    place = NativeSimulation.place

    def everyone(self: Any, mask: torch.Tensor, *start: Any) -> None:
        place(self, torch.ones_like(mask), *start)

    rehearsal.play(env, 5)
    monkeypatch.setattr(NativeSimulation, "place", everyone)
    with pytest.raises(InputError, match=r"MyRobot.initial_state: a masked reset changes .*qpos"):
        rehearsal.masked_reset(env)


def test_a_reset_is_at_its_start_whatever_noise_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    env = env_of(tasks.make("AntVelocity"))
    rehearsal.play(env, 5)
    rehearsal.masked_reset(env)
    begin = env._begin

    def elsewhere(mask: torch.Tensor, start: Any, *seen: torch.Tensor) -> None:
        begin(mask, start, *seen)
        env.buffers.critic_observation[mask, :1] += 1

    monkeypatch.setattr(env, "_begin", elsewhere)
    with pytest.raises(InputError, match="after a reset observation is not what the start says"):
        rehearsal.masked_reset(env)


@pytest.mark.parametrize(
    ("old", "new", "method"),
    [
        ("return terms", 'return {**terms, "rank": terms["height"] - terms["height"].mean()}', "observe"),
        ("return height", "return height.softmax(0)", "reward"),
        ("return fallen", "return fallen | (sim.qpos[:, 7] > sim.qpos[:, 7].median())", "terminated"),
        ('return {"age": age}', 'return {"age": age + sim.qpos[:, 7].cumsum(0)}', "update"),
    ],
)
def test_worlds_that_look_at_their_neighbours_are_found(old: str, new: str, method: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"my_robot.py:\d+: MyRobot.{method}: a world's numbers depend on the other"):
        rehearsal.separate_worlds(env_of(made(tmp_path, old, new)))


# --- ONNX --------------------------------------------------------------------------------------


def test_a_function_without_onnx_is_found(tmp_path: Path) -> None:
    task = made(tmp_path, "return height", "return torch.special.bessel_j0(height)")
    model = task.compile()
    with pytest.raises(InputError, match="MyRobot: torch cannot trace it to ONNX") as caught:
        onnx_trace.trace(task, model, dry_run(task, model))
    assert "\n" not in str(caught.value)


# --- engines -----------------------------------------------------------------------------------


class Falsified(NativeSimulation):
    """The native simulation with gravity a hundredth off, as if it were another engine."""

    def __init__(self, model: Any, *arguments: Any) -> None:
        model.opt.gravity[2] *= 1.01
        super().__init__(model, *arguments)
        model.opt.gravity[2] /= 1.01


def test_one_engine_agrees_with_itself_and_not_with_a_falsified_one(tmp_path: Path) -> None:
    task = made(tmp_path)
    model = task.compile()
    layout = dry_run(task, model)
    for kind, low, high in ((NativeSimulation, 0.0, 1e-9), (Falsified, 1e-3, 1.0)):
        other = kind(model, 32, layout.fields, task.timing.physics_steps, 1)
        result = random_play.agreement(task, model, layout, other)
        assert low <= result.median <= high
        assert (result.apart > 0.5) is (kind is Falsified)


def test_engines_that_disagree_fail_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from envs import warp_simulation

    def falsified(model: Any, worlds: int, fields: Any, steps: int, *_: Any) -> Falsified:
        return Falsified(model, worlds, fields, steps, 1)

    monkeypatch.setattr(warp_simulation, "WarpSimulation", falsified)
    outcome = check._outcome("engines", check._engines, check.Subject(write(tmp_path)))
    assert outcome.verdict == "failed"
    assert "MyRobot.model: one control step from 128 states is" in outcome.lines[0]


def test_a_model_that_warp_cannot_simulate_is_told(tmp_path: Path) -> None:
    change = "import mujoco; spec.option.solver = mujoco.mjtSolver.mjSOL_PGS; return spec"
    outcome = check._outcome("engines", check._engines, check.Subject(write(tmp_path, "return spec", change)))
    assert outcome.verdict == "failed"
    assert "MuJoCo Warp cannot simulate the model: NotImplementedError: " in outcome.lines[0]


# --- capacities --------------------------------------------------------------------------------


def test_peaks_are_those_that_mujoco_counts() -> None:
    task = tasks.make("HopperStand")
    model = task.compile()
    peaks = random_play.measure_peaks(task, model, dry_run(task, model), 8, 100)
    assert 4 <= peaks.contacts <= 6
    assert 16 <= peaks.rows <= 28
    assert peaks.settings == (2 * peaks.contacts, 2 * peaks.rows)


@pytest.mark.parametrize(
    ("own", "verdict", "told"),
    [
        ("12, 60", "ok", "nconmax, njmax = 12, 60"),
        ("None, None", "caution", "set nconmax, njmax = "),
        ("4, 60", "caution", "leaves little room in 4, 60"),
        ("12, 5", "failed", "but njmax is 5"),
    ],
)
def test_room_for_contacts(own: str, verdict: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "measure_peaks", lambda *_: random_play.Peaks(4, 20))
    outcome = check._outcome("room", check._capacity, check.Subject(write(tmp_path, "12, 60", own)))
    assert outcome.verdict == verdict
    assert told in outcome.lines[0]


def test_a_robot_that_falls_apart_is_told(tmp_path: Path) -> None:
    change = "spec.body('shin').first_joint().damping[:] = -4; return spec"
    task = made(tmp_path, "return spec", change)
    model = task.compile()
    with pytest.raises(InputError, match=r"worlds became non-finite under random actions; shorten timing.physics"):
        random_play.measure_peaks(task, model, dry_run(task, model), 4, 300)


@pytest.mark.gpu
def test_the_environment_step_is_captured() -> None:
    outcome = check._outcome("cuda", check._cuda, check.Subject("HopperStand"))
    assert outcome.verdict == "ok", outcome.lines
