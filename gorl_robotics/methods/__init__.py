"""The methods behind `method=`, one small file each; what a method is: `gorl_robotics.policy.Policy`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gorl_robotics.config import Config
from gorl_robotics.errors import unknown
from gorl_robotics.methods.dppo import Dppo
from gorl_robotics.methods.fpo import Fpo
from gorl_robotics.methods.gaussian import Gaussian
from gorl_robotics.methods.gorl import GorlDiffusion, GorlPolicy
from gorl_robotics.policy import Policy

METHODS: dict[str, type[Policy]] = {kind.name: kind for kind in (GorlPolicy, GorlDiffusion, Gaussian, Fpo, Dppo)}


def find(name: str) -> type[Policy]:
    """The method of that name; InputError with the nearest one if there is none."""
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


def layers() -> dict[str, Mapping[str, Any]]:
    """Every method's own settings by its name."""
    return {name: kind.defaults for name, kind in METHODS.items()}


def make(config: Config, observation_size: int, action_size: int) -> Policy:
    """A new policy of the configured method and sizes."""
    return find(config.method).from_config(config, observation_size, action_size)
