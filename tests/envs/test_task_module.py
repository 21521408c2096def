"""A task as one function of tensors: the same numbers as the environment's own step."""

from __future__ import annotations

import pytest
import torch
from fake_task import Slider, actions, variant
from torch import Tensor

import tasks
from envs.dry_run import dry_run
from envs.task import Task
from envs.task_module import TaskModule
from envs.vector_env import VectorEnv


class Scripted:
    """Draws that remember what they gave."""

    def __init__(self, worlds: int) -> None:
        self._worlds, self._generator = worlds, torch.Generator().manual_seed(1)
        self.given: list[Tensor] = []

    def uniform(self, *size: int) -> Tensor:
        return self._keep(torch.rand(self._worlds, *size, generator=self._generator, dtype=torch.float64))

    def normal(self, *size: int) -> Tensor:
        return self._keep(torch.randn(self._worlds, *size, generator=self._generator, dtype=torch.float64))

    def _keep(self, value: Tensor) -> Tensor:
        self.given.append(value)
        return value


def every_task() -> list[Task]:
    return [*map(tasks.make, tasks.names()), variant(Slider, lifetime=25)]


@pytest.mark.parametrize("task", every_task(), ids=lambda task: task.name)
def test_it_equals_the_environment(task: Task) -> None:
    env = VectorEnv(task, 8, seed=2, threads=1, noise=False)
    env.restart(random_phase=False)
    module = TaskModule(task, env.model, env.layout)
    env._draws = scripted = Scripted(8)
    seen = dict(zip(module.input_names, module.examples(8).values(), strict=True))
    for action in actions(env, 30):
        before = {f"state.{name}": value.clone() for name, value in env.state.items()}
        scripted.given.clear()
        env.apply(action)
        env.physics()
        fields = {name: getattr(env.sim, name).clone() for name in env.layout.fields}
        step = env.finish()
        random = {f"random.{i}": value for i, value in enumerate(scripted.given)}
        given = {**fields, **before, "action": action, **random}
        values = module(*(given[name].to(seen[name].dtype) for name in module.input_names))
        out = dict(zip(module.output_names, values, strict=True))
        torch.testing.assert_close(out["observation"], step.terminal_observation, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(out["reward"], step.reward, atol=1e-5, rtol=1e-5)
        assert torch.equal(out["terminated"], step.terminated)
        going = ~step.terminated
        for name, value in env.state.items():
            torch.testing.assert_close(out[f"next_state.{name}"][going], value[going].float(), atol=1e-5, rtol=1e-5)


def test_names_are_those_of_fields_state_and_draws() -> None:
    task = Slider()
    model = task.compile()
    module = TaskModule(task, model, dry_run(task, model))
    assert module.input_names[-5:] == ("state.target", "state.age", "action", "random.0", "random.1")
    assert set(module.input_names[:-5]) == {"sensordata", "qvel", "qpos"}
    assert module.output_names[-2:] == ("next_state.target", "next_state.age")


def test_the_initial_observation_is_of_the_state_given() -> None:
    task = Slider()
    model = task.compile()
    module = TaskModule(task, model, dry_run(task, model))
    examples = module.examples(5)
    observation, initial, *_ = module(*examples.values())
    assert torch.equal(initial[:, 2:], examples["state.target"])
    assert not torch.equal(observation[:, 2:], initial[:, 2:])


def test_examples_are_different_moving_worlds_in_single_precision() -> None:
    task = tasks.make("HopperStand")
    model = task.compile()
    examples = TaskModule(task, model, dry_run(task, model)).examples(6)
    assert {value.dtype for value in examples.values()} == {torch.float32}
    for value in examples.values():
        assert value.isfinite().all()
        assert (value.flatten(1).std(dim=0) > 0).any()
