"""Every setting: typed, documented, checked.

Defaults < robot's size < method < device < task < YAML file < command line.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gorl_robotics.errors import InputError
from gorl_robotics.settings import as_text, check_ranges, described, flat, read_yaml, setting, typed


@dataclass
class Networks:
    """Sizes of the networks."""

    policy: list[int] = setting([64, 64, 64], "hidden layers of the network that PPO trains to act")
    critic: list[int] = setting([256, 256, 256], "hidden layers of the critic")
    decoder: list[int] = setting([64, 64, 64, 64], "hidden layers of the decoder; gorl_* only")
    flow_steps: int = setting(10, "steps from latent or noise to action; not gaussian", low=1)
    tf32: bool = setting(False, "on a GPU multiply matrices in TF32: faster, and less exact")


@dataclass
class Ppo:
    """The fast time scale: PPO."""

    rollout_steps: int = setting(32, "control steps of every world in a rollout", low=1)
    epochs: int = setting(4, "passes over each rollout", low=1)
    minibatches: int = setting(16, "minibatches a pass is cut into", low=1)
    learning_rate: float = setting(1e-3, "of critic and policy; the policy's is lowered on large KL", low=0)
    target_kl: float = setting(
        0.01, "KL per minibatch that the policy's learning rate aims at; inf fixes the rate", low=0
    )
    anneal: float = setting(
        0.0, "share of the last stage, at its end, in which the policy's highest rate falls to 1e-5", low=0, high=1
    )
    clip: float = setting(0.2, "PPO's clip range of the probability ratio", low=0)
    discount: float = setting(0.995, "γ of discounted returns", low=0, high=1)
    gae_lambda: float = setting(0.95, "λ of generalised advantages", low=0, high=1)
    entropy: float = setting(
        0.005,
        "least weight of the Gaussian's entropy; of fpo the weight of noise in what its flow fits; not dppo",
        low=0,
    )
    least_std: float = setting(
        1.0, "while the mean σ is below, that weight grows, to ten times the least; gorl_* and gaussian only", low=0
    )
    novelty: float = setting(
        0.05, "bonus for new states, in units of reward: its first mean, of which a few % remain; 0 pays none", low=0
    )
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm", low=0)
    reward_scale: float = setting(0.1, "rewards are multiplied by this before learning", low=0)


@dataclass
class Stages:
    """The slow time scale: how training is divided; each stage ends with an evaluation and, for GoRL, a refit."""

    candidates: int = setting(
        16,
        "other policies that audition in the first stage, of all processes, each in at least 256 worlds; under 2: none",
        low=0,
    )
    audition: int = setting(
        110, "iterations before the audition and in it; there is none where these are too many for total_steps", low=1
    )
    fractions: list[float] = setting([0.3, 0.3, 0.4], "share of each stage of what steps are left; they sum to 1")
    first_regularisation: float = setting(
        1.25e-4,
        "weight of Σμ², and in the first stage of Σσ² too, times a/4 with a>4 actuators; gaussian in all",
        low=0,
    )
    later_regularisation: float = setting(
        2.5e-3, "weight of Σσ² in later stages; half of ppo.entropy keeps σ near 1; gorl_* only", low=0
    )


@dataclass
class Refit:
    """Fitting the decoder to recent rollouts; gorl_flow and gorl_diffusion only."""

    samples: int = setting(
        4_000_000, "most recent samples of a stage that it is fitted to, of all processes together", low=1
    )
    action_bound: float = setting(2.5, "pre-tanh actions are clipped to ± this first: tanh(2.5) = 0.987", low=0.1)
    updates: int = setting(3000, "gradient steps", low=1)
    batch: int = setting(8192, "samples in a gradient step, of all processes together", low=1)
    draws: int = setting(8, "noise and time draws for each sample", low=1)
    learning_rate: float = setting(1e-3, "at the start; it falls to zero along a cosine", low=0)
    validation: float = setting(0.1, "share of worlds, and at least one, kept for validation", low=0, high=0.5)


@dataclass
class Fpo:
    """What only FPO reads."""

    pairs: int = setting(8, "pairs of noise and time that estimate a sample's flow loss; fpo only", low=1)


@dataclass
class Dppo:
    """What only DPPO reads."""

    sigma: float = setting(0.2, "standard deviation of every denoising step; dppo only", low=1e-6)


@dataclass
class Storage:
    """Recording of rollouts to HDF5."""

    enabled: bool = setting(
        True, "record the samples a refit uses, and the run's last ones; else a refit's are kept in memory"
    )


@dataclass
class Config:
    """All settings of a run."""

    task: str = setting("", "what to train; `python -m tasks` lists them; or FILE.py:CLASS")
    method: str = setting("gorl_flow", "how to train: gorl_flow, gorl_diffusion, gaussian, fpo or dppo")
    num_envs: int = setting(4096, "worlds that are learnt from, in each process", low=1)
    total_steps: int = setting(100_000_000, "environment steps of the whole run, over all worlds", low=1)
    seed: int = setting(0, "of every random number", low=0, high=2**63 - 1)
    device: str = setting("auto", "auto, cuda, cuda:N or cpu; auto takes CUDA if there is one")
    threads: int = setting(0, "CPU threads of each process on a CPU; 0 shares out every core", low=0)
    monitors: int = setting(128, "further worlds of each process, which act without noise and are only watched", low=1)
    practice: float = setting(
        0.01, "probability per step of cutting short a world that does better than the mean", low=0, high=1
    )
    evaluation_worlds: int = setting(128, "worlds, each for one episode, of a frozen evaluation", low=1)
    evaluation_steps: int = setting(
        0,
        "environment steps, over all worlds, from one frozen evaluation within a stage, and checkpoint that stays, "
        "to the next; 0: none",
        low=0,
    )
    checkpoint_seconds: float = setting(30.0, "most that a killed run loses, in seconds of training", low=0)
    runs: str = setting("runs", "folder that run folders are made in")
    resume: str = setting("", "a run folder, or a checkpoint in one, to go on from")
    checkpoint: str = setting("", "a run folder, or a checkpoint in one, for test=true")
    test: bool = setting(False, "evaluate `checkpoint` instead of training")
    config: str = setting("", "a YAML file of settings")
    networks: Networks = field(default_factory=Networks)
    ppo: Ppo = field(default_factory=Ppo)
    stages: Stages = field(default_factory=Stages)
    refit: Refit = field(default_factory=Refit)
    fpo: Fpo = field(default_factory=Fpo)
    dppo: Dppo = field(default_factory=Dppo)
    storage: Storage = field(default_factory=Storage)

    @property
    def task_name(self) -> str:
        """The task in one word: of FILE.py:CLASS the class."""
        return self.task.rpartition(":")[2]


# There is more for a network to know; and with so many joints each as noisy as one of a few would be, nothing that
# they do together can be told from the noise: in later stages σ is drawn to 0.45, and may be less where that pays.
SMALL_ROBOT = 8  # actuators at most
LARGE_ROBOT_DEFAULTS: dict[str, Any] = {
    "networks.policy": [128, 128, 128],
    "networks.decoder": [128, 128, 128, 128],
    "ppo.entropy": 1e-3,
    "ppo.least_std": 0.0,
}

# What a person waits for on a CPU: minutes instead of a hundred million steps.
CPU_DEFAULTS: dict[str, Any] = {
    "num_envs": 256,
    "monitors": 16,
    "total_steps": 1_500_000,
    "evaluation_worlds": 64,
    "networks.critic": [128, 128, 128],
    "ppo.minibatches": 8,
    "stages.fractions": [0.4, 0.2, 0.4],
    "refit.samples": 250_000,
    "refit.updates": 400,
    "refit.batch": 2048,
}


# Settings that there were: runs that were saved with them go on. They changed how fast a run was, not what it learnt.
_FORMER = {"networks.fused"}
# What runs did before there was a setting for it: they go on as they began.
_ABSENT = {"ppo.novelty": 0.0, "stages.candidates": 0}


def parse_arguments(arguments: Sequence[str]) -> dict[str, Any]:
    """Turns `a.b=value` arguments into {"a.b": value}, a YAML file named by `config=` first.

    Raises:
        InputError: an argument without `=`, an unknown setting (with the nearest one), a value of the wrong type.
    """
    given: dict[str, Any] = {}
    for argument in arguments:
        name, separator, text = argument.partition("=")
        if not separator:
            raise InputError(f"{argument!r} is not a setting; expected NAME=VALUE such as num_envs=4096, or --help")
        given[name.strip()] = typed(Config, name.strip(), text.strip())
    if given.get("config") == "":
        raise InputError("config=FILE is missing; expected a YAML file of settings")
    if "config" in given:
        return {**_from_file(Path(given["config"])), **given}
    return given


def resolve(given: Mapping[str, Any], *layers: Mapping[str, Any]) -> Config:
    """The configuration: defaults, overridden by each layer in turn, then by what was `given`.

    Raises:
        InputError: a setting is unknown, of the wrong type or out of its range.
    """
    merged = OmegaConf.structured(Config)
    for layer in (*layers, given):
        for name, value in layer.items():
            value = typed(Config, name, value)
            try:
                OmegaConf.update(merged, name, value)
            except OmegaConfBaseException as error:
                raise InputError(f"{name}={value!r}: {str(error).splitlines()[0]}") from error
    try:
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:  # text with `${...}` or `???`, which means something to OmegaConf
        raise InputError(str(error).splitlines()[0]) from error
    assert isinstance(config, Config)
    _check(config)
    return config


def to_yaml(config: Config) -> str:
    """The whole configuration as YAML, as it is saved beside a run."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def from_yaml(text: str) -> Config:
    """Reads what `to_yaml` wrote, formerly too; InputError if a setting is unknown or out of range."""
    saved = read_yaml(text, "configuration")
    return resolve({**_ABSENT, **{name: value for name, value in saved.items() if name not in _FORMER}})


def config_values(config: Config) -> dict[str, Any]:
    """Every setting by its full name, for example {"ppo.clip": 0.2}."""
    return flat(dataclasses.asdict(config))


def help_text(layers: Mapping[str, Mapping[str, Any]]) -> str:
    """One line for each setting: name, default, where it differs the default of each named layer, and meaning."""
    lines = ["usage: python train.py task=NAME [SETTING=VALUE ...]", ""]
    for name, default, text in described(Config):
        shown = f"{name}={as_text(default)}"
        differs = [f"{layer} {as_text(values[name])}" for layer, values in layers.items() if name in values]
        shown += f" ({', '.join(differs)})" if differs else ""
        lines.append(f"  {shown:<52} {text}")
    return "\n".join(lines)


def _from_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text()
    except OSError as error:
        raise InputError(f"config={path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"config={path}: expected a YAML file, this is no text") from error
    return {name: typed(Config, name, value) for name, value in read_yaml(text, str(path)).items()}


def _check(config: Config) -> None:
    check_ranges(Config, config_values(config))
    fractions = config.stages.fractions
    whole = abs(sum(fractions) - 1) <= 1e-6  # also false of NaN
    if not fractions or min(fractions) <= 0 or not whole:
        raise InputError(f"stages.fractions={fractions}: expected positive shares that sum to 1")
    for name in ("policy", "critic", "decoder"):
        widths = getattr(config.networks, name)
        if not widths or min(widths) < 1:
            raise InputError(f"networks.{name}={widths}: expected widths of at least one hidden layer")
    samples = config.num_envs * config.ppo.rollout_steps
    if samples % config.ppo.minibatches:
        raise InputError(
            f"ppo.minibatches={config.ppo.minibatches}: expected a divisor of num_envs x ppo.rollout_steps = {samples}"
        )


def check_budget(config: Config, processes: int = 1, begun: int = 0) -> None:
    """Raises InputError if `total_steps` leaves a stage behind the `begun` first without a rollout of all processes."""
    samples = processes * config.num_envs * config.ppo.rollout_steps
    shortest = min(config.stages.fractions[begun:], default=math.inf)
    of_all = f"{processes} processes x " if processes > 1 else ""
    if shortest * config.total_steps < samples:
        raise InputError(
            f"total_steps={config.total_steps}: expected at least {math.ceil(samples / shortest)}, so that every stage "
            f"has a rollout of {of_all}num_envs x ppo.rollout_steps = {samples}"
        )
