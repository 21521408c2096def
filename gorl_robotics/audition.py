"""An audition: other policies get as many iterations as the first one has had, side by side in shares of the worlds.

Which of two ways to earn something a policy takes is often decided early and by chance, and what is learnt later does
not leave it again; one of several is more likely to have found the better way. Each of them has few worlds and learns
less from them, so that one that earns more all the same has found something. Where none does, nothing has changed.
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


def candidates(config: Config, processes: int) -> int:
    """How many policies audition in a run; 0 where there is no audition."""
    steps, worlds = steps_of(config, processes), config.num_envs
    first_stage = config.stages.fractions[0] * (config.total_steps - steps)
    # Whoever goes on must have the time to leave a refit its samples.
    if steps > _LARGEST_SHARE * config.total_steps or steps + config.refit.samples > first_stage:
        return 0
    for count in range(min(config.stages.candidates, worlds // _WORLDS), 1, -1):
        if worlds % count == 0 and worlds // count * config.ppo.rollout_steps % config.ppo.minibatches == 0:
            return count
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
        generator: seeds the candidates' own.

    Attributes:
        cast: the candidates, and the first policy in the monitor worlds, as they act.
        learners: of each of them.
        generators: of each of them, in this process.
    """

    def __init__(
        self,
        make: Callable[[], Policy],
        first: Policy,
        critic_observation_size: int,
        config: Config,
        device: torch.device,
        generator: torch.Generator,
    ) -> None:
        count = candidates(config, distributed.size())
        policies = [make() for _ in range(count)]
        self.cast = Cast(policies, first, config.num_envs, device)
        self._worlds = config.num_envs // count
        samples = self._worlds * config.ppo.rollout_steps
        # One for each: a generator must not be drawn from in two streams at once.
        self.generators = [_another(generator) for _ in policies]
        self.learners = [
            Learner(policy, critic_observation_size, config, samples, device, own)
            for policy, own in zip(policies, self.generators, strict=True)
        ]
        distributed.broadcast(*policies, *(network for learner in self.learners for network in learner.networks))
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
        pairs = zip(self.learners, self._parts, strict=True)
        if distributed.size() == 1:
            self._abreast([partial(learner.update, part) for learner, part in pairs])
            return
        for learner, part in pairs:
            learner.update(part)
            learner.wait()  # collectives must follow one another in the same order everywhere

    def parts(self) -> list[Callable[[], object]]:
        """Those of one candidate, as in `Learner.parts`: the others' kernels are the same."""
        return self.learners[0].parts()

    def metrics_later(self, *others: Tensor) -> Later:
        """As a `Learner`'s, means over the candidates."""
        with self._aside.behind():
            means = torch.stack([learner.metrics() for learner in self.learners]).mean(dim=0)
            return Later.of(*others, means)

    def elect(self, policy: Policy, learner: Learner) -> str:
        """Gives a policy and its learner what the best candidate has, if that has earned more; says so in one line."""
        self._aside.join()
        earned = earned_by(learner, *self.learners).cpu()
        distributed.average(earned)  # by the hosts: see the third rule there
        before, *others = earned.tolist()
        best = max(others)
        better = best > before + _BETTER * abs(before)
        if better:
            leader = self.learners[others.index(best)]
            policy.load_state_dict(leader.policy.state_dict())
            learner.load_state_dict(leader.state_dict())
        verdict = "the best of them goes on" if better else "the first policy goes on"
        ranked = ", ".join(f"{reward:.3f}" for reward in sorted(others, reverse=True))
        return f"{verdict}: the first had earned {before:.3f} a step, the other {len(others)} {ranked}"

    def state_dict(self) -> dict[str, object]:
        """What a resumed audition needs and every process has; `generators` and what was earned are each one's own."""
        rows = [{"policy": each.policy.state_dict(), "learner": each.state_dict()} for each in self.learners]
        return {"candidates": rows}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restores `state_dict`."""
        for learner, one in zip(self.learners, saved["candidates"], strict=True):
            learner.policy.load_state_dict(one["policy"])
            learner.load_state_dict(one["learner"])


def earned_by(*learners: Learner) -> Tensor:
    """What each of them has earned in this process's worlds, (learners,)."""
    for learner in learners:
        learner.wait()
    return torch.stack([learner.earned for learner in learners])


def _another(generator: torch.Generator) -> torch.Generator:
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    return torch.Generator(generator.device).manual_seed(int(seed))
