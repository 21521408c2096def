"""What a task remembers from step to step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from fake_task import Slider, actions, same, variant

from envs.draws import Draws
from envs.fields import Fields
from envs.task import InitialState, State, Task
from envs.vector_env import VectorEnv


def lagging(update: Callable[[Fields, State, Draws], State]) -> Task:
    """A slider that remembers where it is and was."""

    def initial_state(self: Task, sim: Fields, random: Draws) -> InitialState:
        start = Slider.initial_state(self, sim, random)
        return InitialState(start.qpos, start.qvel, state={"now": start.qpos, "before": start.qpos.squeeze(1)})

    return variant(
        Slider,
        initial_state=initial_state,
        update=lambda self, *arguments: update(*arguments),
        observe=lambda self, sim, state: {"now": state["now"], "before": state["before"].unsqueeze(1)},
        reward=lambda self, sim, state, action: action[:, 0],
        terminated=Task.terminated,
        privileged=Task.privileged,
    )


def test_an_entry_of_state_may_become_what_another_was() -> None:
    env = VectorEnv(lagging(lambda sim, state, random: {"now": sim.qpos.clone(), "before": state["now"][:, 0]}), 4)
    env.restart(random_phase=False)
    for action in actions(env, 5):
        was = env.sim.qpos.clone()
        step = env.step(action)
        assert same(env.state["now"], env.sim.qpos)
        assert same(env.state["before"], was[:, 0])
        assert not same(env.state["before"], env.sim.qpos[:, 0])
        assert same(step.terminal_observation, torch.cat([env.sim.qpos, was], dim=1).float())


def test_entries_of_state_may_change_places() -> None:
    env = VectorEnv(
        lagging(lambda sim, state, random: {"now": state["before"][:, None], "before": state["now"][:, 0]}), 4
    )
    env.restart(random_phase=False)
    env.state["before"].add_(1.0)
    now, before = env.state["now"].clone(), env.state["before"].clone()
    env.step(torch.zeros(4, 1))
    assert same(env.state["now"][:, 0], before)
    assert same(env.state["before"], now[:, 0])


def test_a_task_may_write_into_the_state_it_is_given() -> None:
    def update(sim: Fields, state: State, random: Draws) -> State:
        state["before"], state["now"] = state["now"][:, 0], sim.qpos.clone()
        return state

    env = VectorEnv(lagging(update), 4)
    env.restart(random_phase=False)
    buffers = dict(env.state)
    for action in actions(env, 3):
        was = env.sim.qpos.clone()
        env.step(action)
        assert all(env.state[name] is buffer for name, buffer in buffers.items())  # what a captured graph reads
        assert same(env.state["now"], env.sim.qpos)
        assert same(env.state["before"], was[:, 0])
