"""Where samples of a trained policy's pre-tanh actions come from: itself, its decoder, and what that was fitted to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tasks
from benchmarks.symmetry import Mirror
from envs.dry_run import dry_run
from gorl_robotics import checkpoint, methods
from gorl_robotics.config import Config, from_yaml, parse_arguments
from gorl_robotics.decoder import Decoder
from gorl_robotics.errors import InputError
from gorl_robotics.methods.gorl import GorlPolicy
from gorl_robotics.policy import Policy
from gorl_robotics.recording import read_rollouts
from gorl_robotics.refit import refit

NEIGHBOURS = 256  # recorded samples that stand for a state
RADIUS = 0.25  # standard deviations of the recorded observations; states without that many so near are left out
_TOGETHER = 64  # states sampled at once


@dataclass(frozen=True)
class Trained:
    """A policy from a checkpoint."""

    policy: Policy
    config: Config
    stage: int  # stages completed
    steps: int
    commit: str  # of the code that trained it, as its recordings say
    evaluation: dict[str, Any]
    recordings: list[Path]  # of one stage: what the decoder was fitted to, of other methods the run's last samples

    @property
    def label(self) -> str:
        """Method, seed and stage."""
        return f"{self.config.method} s{self.config.seed}, after stage {self.stage}"


def load(run: Path) -> Trained:
    """The policy of a run folder's newest checkpoint, or of the checkpoint that `run` is.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    path = checkpoint.find(run)
    saved = checkpoint.load(path)
    config = from_yaml(saved["config"])
    task = tasks.make(config.task)
    model = task.compile()
    policy = methods.make(config, dry_run(task, model).observation_size, model.nu)
    policy.restore(saved)
    refits = len(config.stages.fractions) - 1
    stage = min(saved["stage"], refits) if policy.refits else saved["stage"]
    files = sorted((path.resolve().parent.parent / "rollouts").glob(f"stage-{stage}-rank-*.h5"))
    return Trained(
        policy=policy.requires_grad_(False),
        config=config,
        stage=saved["stage"],
        steps=saved["steps"],
        commit=_commit(files),
        evaluation=saved["evaluation"]["summary"],
        recordings=files,
    )


def recorded(trained: Trained) -> tuple[Tensor, Tensor] | None:
    """Observations (T, N, obs) and pre-tanh actions (T, N, a) of the recording; None where there is none."""
    parts = []
    for path in trained.recordings:
        with read_rollouts(path) as recording:
            parts.append(recording.read(("observation", "action")))
    if not parts:
        return None
    steps = min(len(part["action"]) for part in parts)
    observation, action = (
        torch.cat([torch.from_numpy(part[name][:steps]) for part in parts], dim=1) for name in ("observation", "action")
    )
    return observation, action


def from_policy(policy: Policy, states: Tensor, samples: int, generator: torch.Generator) -> Tensor:
    """What the policy does when it acts with noise: raw observations (S, obs) -> (S, samples, a)."""

    def act(observation: Tensor) -> Tensor:
        noise = torch.randn(len(observation), policy.noise_size, generator=generator)
        return policy.act(observation, noise).decoded

    return _sampled(act, states, samples)


def from_prior(decoder: Decoder, states: Tensor, samples: int, generator: torch.Generator) -> Tensor:
    """What the decoder makes of z ~ N(0, I), which is what a stage begins with: (S, obs) -> (S, samples, a)."""

    def decode(observation: Tensor) -> Tensor:
        return decoder(observation, torch.randn(len(observation), decoder.action_size, generator=generator))

    with torch.no_grad():
        return _sampled(decode, states, samples)


def from_neighbours(data: tuple[Tensor, Tensor], states: Tensor) -> Tensor:
    """The recorded actions of the samples nearest to each state, (S, NEIGHBOURS, a); NaN where they are too far."""
    observation, action = (part.flatten(0, 1) for part in data)
    scale = observation.std(dim=0).clamp(min=1e-6)
    count = min(NEIGHBOURS, len(action))
    found = []
    for some in states.split(_TOGETHER):
        distance, index = torch.cdist(some / scale, observation / scale).topk(count, largest=False)
        near = (distance[:, -1] <= RADIUS).view(-1, 1, 1)
        found.append(action[index].where(near, torch.nan))
    return torch.cat(found)


def refit_settings(arguments: Sequence[str]) -> dict[str, Any]:
    """Settings of a refit by name; InputError if others are among them."""
    given = parse_arguments(arguments)
    for name in given:
        if not name.startswith("refit."):
            raise InputError(f"{name}={given[name]}: only settings of a refit (refit.*) can be given here")
    return given


def fitted_to_both(
    policy: GorlPolicy, data: tuple[Tensor, Tensor], config: Config, mirror: Mirror, generator: torch.Generator
) -> Decoder:
    """A decoder of the same kind, fitted with the run's own settings to its recording and the mirror image of it."""
    observation, action = data
    networks = config.networks
    decoder = policy.decoder_kind(observation.shape[2], action.shape[2], networks.decoder, networks.flow_steps)
    both = (
        torch.cat([observation, mirror.of(observation)], dim=1),
        torch.cat([action, mirror.of_action(action)], dim=1),
    )
    refit(decoder, *both, config.refit, generator)
    return decoder


def _sampled(act: Callable[[Tensor], Tensor], states: Tensor, samples: int) -> Tensor:
    parts = [act(some.repeat_interleave(samples, dim=0)) for some in states.split(_TOGETHER)]
    return torch.cat(parts).unflatten(0, (len(states), samples))


def _commit(files: list[Path]) -> str:
    if not files:
        return "unknown"
    with read_rollouts(files[0]) as recording:
        return str(recording.provenance.get("commit", "unknown"))
