"""An audition: other policies get as many iterations as the first one has had, side by side in shares of the worlds.

Which of two ways to earn something a policy takes is often decided early and by chance, and what is learnt later does
not leave it again; one of several is more likely to have found the better way. Each of them has few worlds and learns
less from them, so that one that earns more all the same has found something. Where none does, nothing has changed.
Each of several processes has candidates of its own, which learn from its worlds alone: nobody waits for another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gorl_robotics import distributed
from gorl_robotics.beside import Abreast, Beside
from gorl_robotics.config import Config
from gorl_robotics.later import Later
from gorl_robotics.policy import Policy, Sample
from gorl_robotics.ppo import Learner
from gorl_robotics.rollout import Rollout

_WORLDS = 256  # with fewer, a candidate would learn from too little at a time
_LARGEST_SHARE = 0.25  # of a run's steps
_BETTER = 0.05  # share by which a candidate must earn more: one that is about as good has been learnt from less


def candidates(config: Config, processes: int, held: int | None = None) -> int:
    """How many policies audition in each process; 0 where there is no audition.

    Args:
        config: settings.
        processes: how many there are.
        held: policies that audition already in the run that goes on, in all processes; None where it begins.
    """
    steps, worlds = steps_of(config, processes), config.num_envs
    first_stage = config.stages.fractions[0] * (config.total_steps - steps)
    # Whoever goes on must have the time to leave a refit its samples.
    if steps > _LARGEST_SHARE * config.total_steps or steps + config.refit.samples > first_stage:
        return 0
    wanted = config.stages.candidates
    most = max(1, (wanted if held is None else held) // processes)
    for count in range(min(most, worlds // _WORLDS), 0, -1):
        if worlds % count == 0 and worlds // count * config.ppo.rollout_steps % config.ppo.minibatches == 0:
            return count if wanted > 1 and count * processes > 1 else 0
    return 0


def steps_of(config: Config, processes: int) -> int:
    """Environment steps of an audition, over all worlds of all processes; as many come before it."""
    return config.stages.audition * processes * config.num_envs * config.ppo.rollout_steps


class Cast:
    """Policies of one method that act side by side in equal shares of the worlds; an `Actor`.

    Args:
        candidates: each acts in its share of the worlds that are learnt from, in order.
        first: acts in all worlds behind them, the monitors: it is still the one that would be used.
        num_envs: worlds that are learnt from.
        device: where the policies are.
    """

    def __init__(self, candidates: Sequence[Policy], first: Policy, num_envs: int, device: torch.device) -> None:
        self.noise_size, self.reads = first.noise_size, first.reads
        self._policies = [*candidates, first]
        self._learnt, self._share = num_envs, num_envs // len(candidates)
        self._abreast = Abreast(device, len(self._policies))

    @torch.no_grad()
    def act(self, observation: Tensor, noise: Tensor, generator: torch.Generator | None = None) -> Sample:
        """What each policy does in its own worlds, in the order of the worlds; see `Policy.act`."""
        parts = zip(self._policies, self._shared_out(observation), self._shared_out(noise), strict=True)
        samples = self._abreast([partial(policy.act, seen, own, generator) for policy, seen, own in parts])
        stored = {name: torch.cat([sample.stored[name] for sample in samples]) for name in samples[0].stored}
        latent, decoded, action = (
            torch.cat([getattr(sample, name) for sample in samples]) for name in ("latent", "decoded", "action")
        )
        return Sample(latent, decoded, action, stored)

    def _shared_out(self, tensor: Tensor) -> list[Tensor]:
        return [*tensor[: self._learnt].split(self._share), tensor[self._learnt :]]


class Audition:
    """Learns with several policies at once; to the training loop it is a `Learner`.

    Args:
        make: a new policy of the method, on the device, at each call.
        first: the policy that there is.
        critic_observation_size: width of what the critic sees.
        config: settings, of a run in which there is an audition.
        device: where everything lives.
        generator: of this process; seeds the candidates and their own generators.
        held: as in `candidates`.

    Attributes:
        cast: this process's candidates, and the first policy in the monitor worlds, as they act.
        learners: of each of them.
        generators: of each of them.
    """

    def __init__(
        self,
        make: Callable[[], Policy],
        first: Policy,
        critic_observation_size: int,
        config: Config,
        device: torch.device,
        generator: torch.Generator,
        held: int | None = None,
    ) -> None:
        count = candidates(config, distributed.size(), held)
        self._worlds = config.num_envs // count
        samples = self._worlds * config.ppo.rollout_steps
        # One for each: a generator must not be drawn from in two streams at once.
        self.generators = [_another(generator) for _ in range(count)]
        with distributed.alone(), torch.random.fork_rng(devices=[]):
            # New weights are drawn from torch's own generator, which is in the same state in every process.
            torch.default_generator.manual_seed(_seed(generator))
            policies = [make() for _ in range(count)]
            self.learners = [
                Learner(policy, critic_observation_size, config, samples, device, own)
                for policy, own in zip(policies, self.generators, strict=True)
            ]
        self.cast = Cast(policies, first, config.num_envs, device)
        self._abreast, self._aside = Abreast(device, count), Beside(device, 1)
        self._rollout: Rollout | None = None

    @property
    def metric_names(self) -> tuple[str, ...]:
        """As a `Learner`'s."""
        return self.learners[0].metric_names

    @property
    def policy_rate(self) -> Tensor:
        """Mean of the policies' present learning rates, a scalar tensor."""
        return torch.stack([learner.policy_rate for learner in self.learners]).mean()

    def update(self, rollout: Rollout) -> None:
        """One PPO update of each candidate from its own worlds' part of a rollout."""
        self._aside.join()
        if rollout is not self._rollout:
            self._rollout = rollout
            starts = range(0, rollout.reward.shape[1], self._worlds)
            self._parts = [rollout.of_worlds(start, start + self._worlds) for start in starts]
        with distributed.alone():
            pairs = zip(self.learners, self._parts, strict=True)
            self._abreast([partial(learner.update, part) for learner, part in pairs])

    def parts(self) -> list[Callable[[], object]]:
        """Those of one candidate, as in `Learner.parts`: the others' kernels are the same."""
        return self.learners[0].parts()

    def metrics_later(self, *others: Tensor) -> Later:
        """As a `Learner`'s, means over the candidates."""
        with self._aside.behind():
            means = torch.stack([learner.metrics() for learner in self.learners]).mean(dim=0)
            return Later.of(*others, means)

    def elect(self, policy: Policy, learner: Learner) -> str:
        """Gives a policy and its learner what the best candidate has, if that has earned more; says so in one line.

        In every process alike: what the first has earned is the mean over them, the candidates are all of theirs.
        """
        self._aside.join()
        # By the hosts: see the third rule in `distributed`.
        first, own = (earned_by(*each).cpu() for each in ([learner], self.learners))
        before, others = float(distributed.gather(first).mean()), distributed.gather(own).flatten().tolist()
        best = max(others)
        better = best > before + _BETTER * abs(before)
        if better:
            process, k = divmod(others.index(best), len(self.learners))
            leader = distributed.state_of(process, lambda: self._row(self.learners[k]))
            policy.load_state_dict(leader["policy"])
            learner.load_state_dict(leader["learner"])
        verdict = "the best of them goes on" if better else "the first policy goes on"
        ranked = ", ".join(f"{reward:.3f}" for reward in sorted(others, reverse=True))
        return f"{verdict}: the first had earned {before:.3f} a step, the other {len(others)} {ranked}"

    def state_dict(self) -> dict[str, object]:
        """What a resumed audition needs of this process, but for the state of its `generators`."""
        return {"candidates": [self._row(learner) for learner in self.learners]}

    def restore(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Goes on with what all processes' `state_dict` had, in order of rank, or with the best where it has fewer.

        Where it has more, the last ones stay new.
        """
        count = len(self.learners)
        rows = _best(rows, distributed.size() * count)[distributed.rank() * count :]
        for learner, one in zip(self.learners, rows, strict=False):
            learner.policy.load_state_dict(one["policy"])
            learner.load_state_dict(one["learner"])

    def _row(self, learner: Learner) -> dict[str, Any]:
        return {"policy": learner.policy.state_dict(), "learner": learner.state_dict()}


def rows_of(saved: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What a checkpoint has of every candidate, those of a process after those of the one before it."""
    auditions = [each.get("audition") for each in (saved, *saved.get("other_processes", []))]
    return [row for each in auditions if each for row in each["candidates"]]


def earned_by(*learners: Learner) -> Tensor:
    """What each of them has earned in this process's worlds, (learners,)."""
    for learner in learners:
        learner.wait()
    return torch.stack([learner.earned for learner in learners])


def _best(rows: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """The `count` of them that have earned most, as they follow one another."""
    earned = [float(row["learner"].get("earned", 0.0)) for row in rows]
    best = sorted(range(len(rows)), key=lambda k: -earned[k])[:count]
    return [rows[k] for k in sorted(best)]


def _another(generator: torch.Generator) -> torch.Generator:
    return torch.Generator(generator.device).manual_seed(_seed(generator))


def _seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (), generator=generator, device=generator.device))
