"""A task in a few worlds of the real environment: are its numbers finite, its resets masked, its worlds apart?"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from envs.simulation import STATE_FIELDS
from envs.task_module import TaskModule
from envs.user_code import blaming, fault
from envs.vector_env import VectorEnv

_GROUPS = (2, 9, 2, 3)  # sizes in which worlds are computed apart
_METHODS = {
    "observation": "observe",
    "initial_observation": "observe",
    "reward": "reward",
    "terminated": "terminated",
}
_MIXED = 1e-5  # what the order of a sum may change in single precision, of 1 or of the number itself


def play(env: VectorEnv, steps: int, seed: int = 0) -> float:
    """Steps random actions and checks every observation and reward; returns control steps per second over all worlds.

    Raises:
        InputError: a term or the reward is not finite (the line names it), or the task raises.
        SimulationError: worlds became non-finite, or contacts or constraints overflowed.
    """
    generator = torch.Generator(env.device).manual_seed(seed)
    bad_terms = torch.zeros(env.critic_observation_size, dtype=torch.bool, device=env.device)
    bad_reward = torch.zeros((), dtype=torch.bool, device=env.device)
    bad_terms |= ~env.buffers.critic_observation.isfinite().all(dim=0)
    begin = 0.0
    for i in range(steps + 1):
        if i == 1:  # the first step warms up
            begin = time.monotonic()
        action = 2 * torch.rand(env.num_worlds, env.action_size, generator=generator, device=env.device) - 1
        with blaming(env.task):
            step = env.step(action)
        bad_terms |= ~step.terminal_critic_observation.isfinite().all(dim=0)
        bad_terms |= ~step.critic_observation.isfinite().all(dim=0)
        bad_reward |= ~step.reward.isfinite().all()
    env.check()  # waits for the device, too
    seconds = time.monotonic() - begin
    _refuse(env, bad_terms.tolist(), bool(bad_reward))
    return steps * env.num_worlds / seconds


def masked_reset(env: VectorEnv) -> None:
    """Resets every second world, and checks that it stands at its start and that no other has changed.

    Raises:
        InputError: another world was touched, or the state of a reset one is not its start's.
    """
    mask = torch.arange(env.num_worlds, device=env.device) % 2 == 0
    before, start = _everything(env), env.starts.rows(torch.arange(env.num_worlds, device=env.device))
    env._begin(mask, start, env.buffers.observation, env.buffers.critic_observation)
    after = _everything(env)
    touched = [name for name, value in after.items() if not _same(value[~mask], before[name][~mask])]
    width = start.critic_observation.shape[1]
    after["observation"] = after["critic_observation"][:, :width]  # which is without noise
    given = {"qpos": start.qpos, "qvel": start.qvel, "observation": start.critic_observation}
    given.update({f"state {name}": value for name, value in start.state.items()})
    missed = [name for name, value in given.items() if not _same(after[name][mask], value[mask])]
    if touched:
        raise fault(
            env.task, "initial_state", f"a masked reset changes {', '.join(touched)} of worlds outside the mask"
        )
    if missed:
        raise fault(env.task, "initial_state", f"after a reset {', '.join(missed)} is not what the start says")


def separate_worlds(env: VectorEnv) -> None:
    """Checks that what a world observes and is paid is the same without its neighbours.

    Raises:
        InputError: it is not; the line names the method.
    """
    module = TaskModule(env.task, env.model, env.layout)
    whole = module.examples(sum(_GROUPS))
    with torch.no_grad(), blaming(env.task):
        together = module(*whole.values())
        groups = [module(*group) for group in zip(*(value.split(_GROUPS) for value in whole.values()), strict=True)]
    for i, name in enumerate(module.output_names):
        apart = torch.cat([group[i] for group in groups])
        same = apart.shape == together[i].shape and torch.allclose(
            apart.double(), together[i].double(), rtol=_MIXED, atol=_MIXED, equal_nan=True
        )
        if not same:
            raise fault(
                env.task,
                _METHODS.get(name, "update"),
                "a world's numbers depend on the other worlds; the first axis is the worlds', so give mean, max or "
                "norm the axis to work along, for example .mean(dim=1)",
            )


def _refuse(env: VectorEnv, bad_terms: list[bool], bad_reward: bool) -> None:
    if bad_reward:
        raise fault(env.task, "reward", "is not finite after random actions; clamp what is divided by or logged")
    start = 0
    for method, terms in (("observe", env.layout.observation), ("privileged", env.layout.privileged)):
        for name, size in terms.items():
            if any(bad_terms[start : start + size]):
                raise fault(env.task, method, f"term {name!r} is not finite after random actions; clamp or mask it")
            start += size


def _everything(env: VectorEnv) -> dict[str, Tensor]:
    named = {name: getattr(env.sim, name) for name in STATE_FIELDS}
    named.update({f"state {name}": value for name, value in env.state.items()})
    named.update(observation=env.observation, critic_observation=env.buffers.critic_observation)
    return {name: value.clone() for name, value in named.items()}


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one.double(), other.double(), rtol=0.0, atol=0.0, equal_nan=True)
