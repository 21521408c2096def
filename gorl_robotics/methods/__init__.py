"""The methods behind `method=`, one small file each; what a method is: `gorl_robotics.policy.Policy`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gorl_robotics.config import CPU_DEFAULTS, LARGE_ROBOT_DEFAULTS, SMALL_ROBOT, Config, resolve
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


def configure(given: Mapping[str, Any], actuators: int, on_cpu: bool, task: Mapping[str, Any]) -> Config:
    """All settings of a run: defaults, overridden by the robot's size, method, device, task and what is given.

    Args:
        given: by full names, as `config.parse_arguments` gives them.
        actuators: of the robot.
        on_cpu: whether it trains on a CPU.
        task: the task's own settings.

    Raises:
        InputError: there is no such method or setting, or a value cannot be.
    """
    size = LARGE_ROBOT_DEFAULTS if actuators > SMALL_ROBOT else {}
    method = find(given.get("method", Config().method)).defaults
    return resolve(given, size, method, CPU_DEFAULTS if on_cpu else {}, task)


def layers() -> dict[str, Mapping[str, Any]]:
    """Defaults that differ, by what they differ with."""
    more = {"cpu": CPU_DEFAULTS, f"over {SMALL_ROBOT} actuators": LARGE_ROBOT_DEFAULTS}
    return {**more, **{name: kind.defaults for name, kind in METHODS.items()}}


def make(config: Config, observation_size: int, action_size: int) -> Policy:
    """A new policy of the configured method and sizes."""
    return find(config.method).from_config(config, observation_size, action_size)
