"""One of two processes that learn from halves of the same data; what it ends with goes to FOLDER/rank-R.pt.

python -m torch.distributed.run --standalone --nproc-per-node=2 distributed_worker.py FOLDER DEVICE
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from fake_environment import FakeEnvironment, small_config
from learner_setup import Setup, weights
from torch import Tensor

import gorl_robotics.graphs
import gorl_robotics.refit
from gorl_robotics import distributed
from gorl_robotics.audition import Audition
from gorl_robotics.config import Config
from gorl_robotics.device import choose_device, prepare_device
from gorl_robotics.flow import FlowDecoder
from gorl_robotics.methods.gorl import GorlPolicy
from gorl_robotics.networks import Normaliser
from gorl_robotics.ppo import Learner
from gorl_robotics.refit import refit
from gorl_robotics.rollout import Collector, Rollout

PROCESSES, WORLDS = 2, 6
MINIBATCHES = 4
PIECES = 32  # of a shuffled rollout: every minibatch, the bonus's too, is made of whole ones
REFIT = small_config(refit__updates=30, refit__batch=50, refit__draws=2, refit__learning_rate=0.01).refit


def config(processes: int) -> Config:
    """Of one of so many processes that share the worlds."""
    return small_config(
        num_envs=PROCESSES * WORLDS // processes,
        ppo__rollout_steps=16,
        ppo__epochs=3,
        ppo__minibatches=MINIBATCHES,
        ppo__learning_rate=0.003,
        ppo__reward_scale=0.3,
    )


def joined() -> tuple[Setup, list[Rollout]]:
    """All worlds in one process: its learner, still without an update, and two rollouts to learn from."""
    setup = Setup(config(1), lifetimes=[2, 3, 4, 5] + [99] * (PROCESSES * WORLDS - 2))
    with torch.no_grad():  # a policy that depends on what it sees
        setup.policy.latent.network[-1].weight.normal_(0, 0.3, generator=setup.generator)
    collected = (setup.collector.collect() for _ in range(2))
    return setup, [every(each, torch.Tensor.clone) for each in collected]


def every(rollout: Rollout, change: Callable[[Tensor], Tensor]) -> Rollout:
    """A rollout of all its tensors changed."""
    named = {name: change(value) for name, value in vars(rollout).items() if name != "stored"}
    return Rollout(**named, stored={name: change(value) for name, value in rollout.stored.items()})


def half(rollout: Rollout, rank: int, device: torch.device) -> Rollout:
    """One process's worlds."""
    worlds = slice(rank * WORLDS, (rank + 1) * WORLDS)
    return every(rollout, lambda value: value[:, worlds].contiguous().to(device))


def shuffles(rank: int) -> Callable[..., Tensor]:
    """What process `rank` draws instead of torch.randperm, on any device the same."""
    generator, permute = torch.Generator().manual_seed(100 + rank), torch.randperm
    return lambda n, device=None, **_: permute(n, generator=generator).to(device)


def joined_shuffles() -> Callable[..., Tensor]:
    """The same for one process that has all worlds: its k-th piece is every process's k-th together."""
    each = [shuffles(rank) for rank in range(PROCESSES)]

    def permutation(n: int, **_: Any) -> Tensor:
        parts = []
        for rank, draw in enumerate(each):
            rows = draw(n // PROCESSES)
            parts.append(rows // WORLDS * PROCESSES * WORLDS + rank * WORLDS + rows % WORLDS)
        return torch.cat([part.view(PIECES, -1) for part in parts], dim=1).flatten()

    return permutation


def recorded(rank: int) -> tuple[Tensor, Tensor]:
    """Observations and actions that a refit is given; not as many on each process."""
    draw, steps = torch.Generator().manual_seed(7 + rank), 12 + 5 * rank
    observation = torch.randn(steps, WORLDS, 4, generator=draw) * 3 + rank
    return observation, observation[..., :2].sin() + 0.1 * torch.randn(steps, WORLDS, 2, generator=draw)


def decoder(seed: int) -> FlowDecoder:
    torch.manual_seed(seed)
    return FlowDecoder(4, 2, [16, 16], steps=4)


def learnt(device: torch.device) -> dict[str, Any]:
    """Two updates from this process's half, then a restart."""
    rank = distributed.rank()
    with distributed.alone():  # what both hold is made by each for itself
        whole, rollouts = joined()
    setup = Setup(config(PROCESSES), str(device))
    if rank == 0:
        setup.policy.load_state_dict(whole.policy.state_dict())
        for network, made in zip(setup.learner.networks, whole.learner.networks, strict=True):
            network.load_state_dict(made.state_dict())
    else:
        torch.nn.init.zeros_(setup.policy.latent.network[0].weight)  # to be overwritten
    distributed.broadcast(setup.policy, *setup.learner.networks)
    # On GPUs the second update is a captured one.
    warm_up = mock.patch.object(gorl_robotics.graphs, "WARM_UP_CALLS", 1)
    with warm_up, mock.patch.object(torch, "randperm", shuffles(rank)):
        for rollout in rollouts:
            setup.learner.update(half(rollout, rank, device))
    metrics = setup.learner.metrics().cpu()  # waits for the critic, which may be learning still
    distributed.average(metrics)
    found = {
        "policy": weights(setup.policy.latent),
        "critic": weights(setup.learner.critic),
        "novelty": weights(setup.learner.networks[1]),
        "rate": setup.learner.policy_rate.clone(),
        "metrics": metrics,
        "normaliser": dict(setup.policy.normaliser.state_dict()),
    }
    torch.manual_seed(rank)
    setup.learner.restart_policy(0.0)
    return found | {"restarted": weights(setup.policy.latent)}


def auditioned(rank: int, device: torch.device) -> dict[str, Any]:
    """Two candidates of process `rank`, how it ends, and what everyone has then and after another update."""
    settings = {"num_envs": 512, "stages__candidates": 4, "stages__audition": 2, "refit__samples": 1000}
    wanted = small_config(**settings, ppo__epochs=2)
    env, own = (FakeEnvironment(512, 3, device=str(device), seed=rank) for _ in range(2))
    steps = wanted.ppo.rollout_steps
    torch.manual_seed(0)

    def make() -> GorlPolicy:
        return GorlPolicy.from_config(wanted, 4, 2).to(device)

    policy, generator = make(), torch.Generator(device).manual_seed(1 + rank)
    learner = Learner(policy, 5, wanted, 512 * steps, device, generator)
    distributed.broadcast(*learner.networks)
    first = Collector(own, policy, steps, own.generator)
    for _ in range(4):  # on GPUs the third is the first captured one, with its collectives
        learner.update(first.collect())
    audition = Audition(make, policy, 5, wanted, device, generator)
    collector = Collector(env, audition.cast, steps, env.generator)
    for _ in range(4):
        audition.update(collector.collect())
    for k, candidate in enumerate(audition.learners):
        candidate.earned.fill_(0.1 * (2 * rank + k))
    learner.earned.fill_(0.15 * rank)
    found = {"candidates": [weights(each.policy.latent) for each in audition.learners]}
    said = audition.elect(policy, learner)
    found |= {"said": said, "policy": weights(policy.latent), "learner": copy.deepcopy(learner.state_dict())}
    learner.update(first.collect())
    learner.wait()
    return found | {"afterwards": weights(policy.latent)}


def few_validation_samples() -> AbstractContextManager[object]:
    return mock.patch.object(gorl_robotics.refit, "_VALIDATION_SAMPLES", 1000)


def refitted(device: torch.device) -> dict[str, Any]:
    rank = distributed.rank()
    fitted, generator = decoder(rank).to(device), torch.Generator(device).manual_seed(50 + rank)
    with few_validation_samples():
        result = refit(fitted, *(each.to(device) for each in recorded(rank)), REFIT, generator)
    return {"result": vars(result), "weights": weights(fitted), "normaliser": dict(fitted.normaliser.state_dict())}


def merged(device: torch.device) -> dict[str, Tensor]:
    """Moments of batches of different sizes, a thousand standard deviations away from zero."""
    normaliser = Normaliser(4).to(device)
    for batch in range(3):
        normaliser.update(recorded(distributed.rank())[0].to(device) + 3000 + batch)
    return dict(normaliser.state_dict())


def averaged(rank: int) -> list[Tensor]:
    """Means of parts of two buffers, in no order, of a tensor of its own, and of one that only follows in memory."""
    one, other = (torch.arange(6.0) + 10 * k + rank for k in (1, 2))
    given = [one[3:].view(3, 1), other[:2], one[:3], torch.tensor(float(rank)), other[3:5]]
    distributed.average(*given)
    return [*given, other[2:3], other[5:]]


def agreed() -> dict[str, Any]:
    rank = distributed.rank()
    return {
        "any": [distributed.any_process(rank == 1), distributed.any_process(False)],
        "total": distributed.total(rank + 5),
        "from_main": distributed.from_main(lambda: f"of {rank}"),
        "states": distributed.gather_states({"rank": rank, "tensor": torch.arange(rank + 1)}),
        "averaged": averaged(rank),
        "gathered": distributed.gather(torch.tensor([rank, 10 + rank])),
        "seed": distributed.own_seed(3),
        "threads": [distributed.threads(0), distributed.threads(7)],
        "cores": len(os.sched_getaffinity(0)),
    }


def main() -> None:
    folder, wanted = Path(sys.argv[1]), sys.argv[2]
    with distributed.processes():
        device = prepare_device(choose_device(wanted))
        rank = distributed.rank()
        found = {"learnt": learnt(device), "refitted": refitted(device), "merged": merged(device), "agreed": agreed()}
        torch.save(found | {"auditioned": auditioned(rank, device)}, folder / f"rank-{rank}.pt")


if __name__ == "__main__":
    main()
