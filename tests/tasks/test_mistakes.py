"""Whatever goes wrong in a user's task file: one line that begins with file and line, and exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest
from running import here, settings
from user_files import TASK, line_with, write

import tasks
from envs.dry_run import dry_run
from envs.fake_run import fake_run
from envs.task import Task
from envs.vector_env import VectorEnv

# The changed passage, what it becomes, a passage of the line that is named, and what is said of it.
MISTAKES: dict[str, tuple[str, str, str, str]] = {
    "model file": ('"robot.xml"', '"robt.xml"', "robt.xml", "did you mean"),
    "model does not compile": (
        "return spec",
        "spec.worldbody.add_body().add_freejoint(); return spec",
        "def model",
        "MyRobot: the model does not compile: Error: mass and inertia of moving bodies",
    ),
    "no model": ("return spec", "pass", "def model", "MyRobot.model: returned a NoneType, expected a mujoco.MjSpec"),
    "no actuators": (
        "return spec",
        "[spec.delete(a) for a in list(spec.actuators)]; return spec",
        "def model",
        "the model has no actuators",
    ),
    "no timing": ("timing = ", "tempo = ", "class MyRobot", "MyRobot states no time steps; expected timing = Timing("),
    "body": (
        'sim.body("base")',
        'sim.body("bse")',
        '"bse"',
        "MyRobot.reward: unknown body 'bse'; did you mean 'base'?",
    ),
    "sensor": (
        '"speed": sim.qvel}',
        '"speed": sim.sensordata[:, sim.sensor("giro")]}',
        '"giro"',
        "MyRobot.observe: unknown sensor 'giro'; did you mean 'gyro'?",
    ),
    "field": (
        "height = sim.xpos",
        "height = sim.xpoz",
        "xpoz",
        "unknown simulation field 'xpoz'; did you mean 'xpos'?",
    ),
    "term of one dimension": (
        "sim.qpos[:, 2:3]",
        "sim.qpos[:, 2]",
        "def observe",
        "MyRobot.observe: term 'height' has shape (2,) for 2 worlds, expected (2, size)",
    ),
    "term that is no tensor": ("sim.qpos[:, 2:3]", "1.0", "def observe", "term 'height' is a float, expected a tensor"),
    "term that is not finite": (
        "sim.qpos[:, 2:3]",
        "sim.qpos[:, 2:3] / 0.0",
        "def observe",
        "MyRobot.observe: term 'height' is inf in world 0",
    ),
    "no dict": (
        "return terms",
        "return sim.qvel",
        "def observe",
        "MyRobot.observe: returned a Tensor, expected a dict",
    ),
    "nothing observed": ("return terms", "pass", "def observe", "MyRobot.observe: returned nothing, expected a dict"),
    "shape of the reward": (
        "return height",
        "return height.unsqueeze(1)",
        "def reward",
        "MyRobot.reward: the reward has shape (2, 1) for 2 worlds, expected (2,)",
    ),
    "reward of all worlds": ("return height", "return height.mean()", "def reward", "has shape () for 2 worlds"),
    "no reward": ("return height", "pass", "def reward", "MyRobot.reward: the reward is nothing, expected a tensor"),
    "NaN reward": (
        "return height",
        "return torch.log(-height)",
        "def reward",
        "MyRobot.reward: the reward is nan in world 0 of the dry run",
    ),
    "flags": ("return fallen", "return fallen.float()", "def terminated", "expected a bool tensor, got torch.float32"),
    "state": ('return {"age": age}', "return {}", "def update", "MyRobot.update: returned state [], but"),
    "start": (
        "return InitialState(qpos, sim.zero_qvel()",
        "return InitialState(sim.zero_qvel(), qpos",
        "def initial_state",
        "MyRobot.initial_state: qpos has shape (2, 8) for 2 worlds, expected (2, 9)",
    ),
    "start that is none": (
        'return InitialState(qpos, sim.zero_qvel(), state={"age": qpos[:, 0] * 0})',
        "return qpos",
        "def initial_state",
        "MyRobot.initial_state: returned a Tensor, expected InitialState(qpos, qvel)",
    ),
    "a method that raises": ("return height", "return height[5]", "height[5]", "MyRobot.reward: IndexError: "),
    "sizes that do not fit": (
        "return height",
        "return height + torch.ones(3)",
        "torch.ones(3)",
        "MyRobot.reward: RuntimeError: The size of tensor a (2) must match",
    ),
    "a field written to": (
        "fallen = sim.qpos[:, 2] < 0.1",
        "fallen = sim.qpos[:, 2].sub_(0.1) < 0.0",
        "def terminated",
        "MyRobot.terminated: writes to sim.qpos in place; work on a copy",
    ),
    "a state written to": (
        'age = state["age"] + 0.0',
        'age = state["age"].add_(1.0) + 0.0',
        "def update",
        "MyRobot.update: writes to state 'age' in place",
    ),
    "a model that diverges": (
        "return spec",
        "spec.body('shin').first_joint().damping[:] = -1e9; return spec",
        "def model",
        "MyRobot.model: the simulation diverges within a control step of its start; shorten timing.physics",
    ),
    "only in many worlds": (
        "return fallen",
        "return fallen if sim.num_worlds == 2 else fallen[7000]",
        "7000",
        "MyRobot: IndexError: ",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_training_tells_the_place_of_a_mistake(mistake: str, tmp_path: Path) -> None:
    old, new, where, told = MISTAKES[mistake]
    name = write(tmp_path, old, new)
    ended = here(settings(task=name), tmp_path)
    assert ended.code == 2, ended.err
    assert ended.err.count("\n") == 1, ended.err
    assert ended.err.startswith(f"error: my_robot.py:{line_with(tmp_path, where)}: "), ended.err
    assert told in ended.err
    begun = mistake == "only in many worlds"  # found by the first evaluation, when the run is under way
    assert begun or not list(tmp_path.glob("runs/*/*")), "an empty run folder is left"


def test_the_task_without_mistakes_can_be_played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    env = VectorEnv(tasks.make(write(tmp_path)), 3, threads=1)
    assert env.layout.privileged == {"age": 1}
    assert faults(tmp_path) == ()


# --- what a CUDA graph cannot record -------------------------------------------------------------


UNRECORDED: dict[str, tuple[str, str, str, str]] = {
    "item": ("return height", "return height * height[0].item()", "reward", "looks at a value"),
    "if": ("return height", "return height if height.sum() > 0 else -height", "reward", "looks at a value"),
    "all": ("return fallen", "return fallen & bool(fallen.all())", "terminated", "looks at a value"),
    "boolean index": (
        "return height",
        "return height + height[height > 0].mean()",
        "reward",
        "makes a shape that depends on data",
    ),
    "nonzero": (
        "return height",
        "return height + len(height.nonzero())",
        "reward",
        "makes a shape that depends on data",
    ),
    "assignment": (
        "return height",
        "x = height.clone(); x[x > 0] = torch.zeros_like(x); return x",
        "reward",
        "writes to a boolean index",
    ),
    "device": ("return height", "return height + torch.ones(len(height))", "reward", "mixes tensors of the host"),
    "constant": (
        "return height",
        "return height + torch.tensor([1.0], device=sim.device)",
        "reward",
        "makes a tensor of host data; use sim.tensor",
    ),
    "list": ('"speed": sim.qvel}', '"speed": sim.qvel[:, [0, 2]]}', "observe", "indexes with a list"),
    "copy": ("return height", "return height.cpu()", "reward", "copies a tensor to the host"),
    "numpy": (
        "return height",
        "return torch.sqrt(torch.from_numpy(height.numpy()))",
        "reward",
        "copies a tensor to the",
    ),
    "own random numbers": (
        "age = state",
        "age = torch.rand(sim.num_worlds, device=sim.device) + state",
        "update",
        "draws random numbers of torch's own",
    ),
    "the start": (
        "qpos = sim.default_qpos() + 0.0",
        "qpos = sim.default_qpos(); qpos[:, 2] += 0.1 if random.uniform(1).max() > 0.5 else 0.0",
        "initial_state",
        "looks at a value",
    ),
}


def faults(folder: Path) -> tuple[str, ...]:
    task = tasks.make(f"{folder}/my_robot.py:MyRobot")
    env = VectorEnv(task, 3, threads=1)
    return fake_run(task, env.model, env.layout).faults


@pytest.mark.parametrize("kind", UNRECORDED)
def test_what_a_graph_cannot_record_is_found_without_a_gpu(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    old, new, method, told = UNRECORDED[kind]
    write(tmp_path, old, new)
    (fault,) = faults(tmp_path)
    line = line_with(tmp_path, new.split("; ")[-1 if kind == "the start" else 0].strip())
    assert fault.startswith(f"my_robot.py:{line}: MyRobot.{method}: {told}"), fault


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "return height",
            "return height + torch.ones(len(height), dtype=torch.float64, device=sim.device)",
            "MyRobot.reward: reward is (5,) float64 for 5 worlds in single precision, expected (5,) float32",
        ),
        (
            '"speed": sim.qvel}',
            '"speed": sim.qvel if sim.num_worlds == 5 else sim.qvel[:, 1:]}',
            "MyRobot.observe: speed is (5, 8) float32 for 5 worlds in single precision, expected (5, 7) float32",
        ),
        ("return height", "self.last = height; return height", "MyRobot.reward: keeps a tensor in self.last"),
    ],
)
def test_wrong_types_and_widths_and_hidden_memory_are_found(
    old: str, new: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, old, new)
    task = tasks.make("my_robot.py:MyRobot")
    model = task.compile()
    (fault,) = fake_run(task, model, dry_run(task, model)).faults
    assert told in fault
    assert fault.startswith("my_robot.py:")


@pytest.mark.parametrize("name", tasks.names())
def test_every_task_of_the_suite_can_be_recorded(name: str) -> None:
    task: Task = tasks.make(name)
    model = task.compile()
    run = fake_run(task, model, dry_run(task, model))
    assert run.faults == ()
    assert {item.method for item in run.returned} >= {"initial_state", "observe", "reward", "terminated"}
    assert all(item.expected_shape == item.shape and item.expected_dtype == item.dtype for item in run.returned)


def test_every_mistake_changes_the_file() -> None:
    assert all(old in TASK and old != new for old, new, *_ in (*MISTAKES.values(), *UNRECORDED.values()))
