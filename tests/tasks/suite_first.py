"""The first half of the suite: what its models must be, where they depart from dm_control's, and poses of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import numpy as np
from dm_control.suite import acrobot, ball_in_cup, base, cheetah, finger, fish

STATES = 500
TOLERANCE = 1e-5

TURN_EDITS = [
    (
        '<option timestep="0.01" cone="elliptic" iterations="200">\n    <flag gravity="disable"/>',
        '<option timestep="0.005" iterations="2" ls_iterations="8" integrator="implicitfast">'
        '<flag gravity="disable" eulerdamp="disable"/>',
    ),
    ('size=".034" material="decoration"', 'size=".034" material="decoration" contype="0" conaffinity="0"'),
    ('size=".02" material="decoration"', 'size=".02" material="decoration" contype="0" conaffinity="0"'),
    (
        '<site name="target" type="sphere" size=".03" pos="0 0 .4" material="target"/>',
        '<body name="target" pos="0 0 .4" mocap="true">'
        '<site name="target" type="sphere" size=".03" material="target"/></body>',
    ),
]
FISH_TARGET = '<geom name="target" type="sphere" {}size=".04" material="target"/>'
EDITS = {
    "acrobot": [
        ('integrator="RK4"', 'iterations="2" ls_iterations="4"'),
        ('energy="enable"', 'eulerdamp="disable"'),
    ],
    "ball_in_cup": [
        (
            "<default>\n    <motor",
            '<option timestep=".002" iterations="1" ls_iterations="4"><flag eulerdamp="disable"/></option>'
            "<default><motor",
        ),
    ],
    "cheetah": [
        (
            '<option timestep="0.01"/>',
            '<option timestep="0.01" iterations="4" ls_iterations="8"><flag eulerdamp="disable"/></option>',
        ),
    ],
    "spin": [*TURN_EDITS, ('frictionloss=".1" damping=".5"', 'frictionloss=".1" damping=".03"')],
    "turn_easy": [*TURN_EDITS, ('type="sphere" size=".03"', 'type="sphere" size=".07"')],
    "turn_hard": TURN_EDITS,
    "fish": [
        (
            '<option timestep="0.004" density="5000">\n    <flag gravity="disable" constraint="disable"/>',
            '<option timestep="0.002" density="5000" iterations="2" ls_iterations="6">'
            '<flag gravity="disable" constraint="disable" contact="disable" eulerdamp="disable"/>',
        ),
        ('type="box" size=".002 .06 .03"', 'type="sphere" size=".03"'),
        (FISH_TARGET.format('pos="0 .4 .1" '), ""),
        (
            "</worldbody>",
            f'<body name="target" pos="0 .4 .1" mocap="true">{FISH_TARGET.format("")}</body></worldbody>',
        ),
    ],
}


class Pose(NamedTuple):
    """A configuration of one world; target is its mocap body's position."""

    qpos: np.ndarray
    qvel: np.ndarray
    target: np.ndarray | None = None


@dataclass(frozen=True)
class Facts:
    """What a task must be (tasks.md 1.2, 1.4, 1.5), and dm_control's version of it."""

    suite: ModuleType
    edits: str
    task: base.Task
    pose: Callable[[np.random.Generator], Pose]  # likely to be paid for now and then
    sizes: tuple[int, int, int]  # nq, nv, nu
    observation: dict[str, int]
    control: float
    physics: float
    mass: float
    terms: tuple[str, ...] = ()  # dm_control's terms in our order, where it is another


def acrobot_pose(random: np.random.Generator) -> Pose:
    """Any angles, or nearly upright."""
    if random.random() < 0.5:
        return Pose(random.normal(scale=0.2, size=2), random.normal(size=2))
    return Pose(random.uniform(-np.pi, np.pi, 2), random.normal(scale=4, size=2))


def ball_pose(random: np.random.Generator) -> Pose:
    """Ball in the cup or around it, slow or fast."""
    cup = random.uniform(-0.1, 0.1, 2)
    ball = cup + [0, 0.35] + random.uniform(-0.04, 0.04, 2) * random.choice([0.6, 1, 4])
    return Pose(np.concatenate([cup, ball]), random.normal(size=4) * random.choice([0.05, 1]))


def cheetah_pose(random: np.random.Generator) -> Pose:
    """Any joint angles, near the ground or in it, often moving forward."""
    low, high = np.deg2rad(np.array([[-30, -50, -230, -57, -70, -28], [60, 50, 50, 0.4, 50, 28]]))
    root = [random.uniform(-5, 5), random.uniform(-0.3, 0.2), random.uniform(-np.pi, np.pi)]
    velocity = random.normal(size=9) * 3 + random.uniform(-3, 12) * (np.arange(9) == 0)
    return Pose(np.concatenate([root, random.uniform(low, high)]), velocity)


def finger_pose(random: np.random.Generator) -> Pose:
    """Any joint angles; the hinge often fast, the target often near the tip."""
    qpos = random.uniform([-1.9, -1.9, -np.pi], [1.9, 1.9, np.pi])
    angle = -qpos[2] + random.choice([0.3, 3.0]) * random.normal()
    target = np.array([0.2 + 0.13 * np.sin(angle), 0.0, 0.4 + 0.13 * np.cos(angle)])
    return Pose(qpos, random.normal(size=3) * [3, 3, 15] + [0, 0, -12], target)


def fish_pose(random: np.random.Generator) -> Pose:
    """Any orientation, slow (faster than it can swim, the light fins diverge); the target often near the fish."""
    quaternion = random.normal(size=4)
    place = random.uniform(-0.3, 0.3, 3)
    qpos = np.concatenate([place, quaternion / np.linalg.norm(quaternion), random.uniform(-0.8, 0.8, 7)])
    return Pose(qpos, 0.1 * random.normal(size=13), place + random.choice([0.05, 0.3]) * random.normal(size=3))


ACROBOT = (acrobot_pose, (2, 2, 1), {"sine": 2, "cosine": 2, "velocity": 2}, 0.01, 0.01, 2.0)
FINGER_TERMS = {"joints": 2, "tip": 2, "velocity": 3, "touch": 2}
TURN = (finger_pose, (3, 3, 2), {**FINGER_TERMS, "target": 2, "distance": 1}, 0.02, 0.005, 3.979)
FISH_TERMS = {"upright": 1, "joints": 7, "to_target": 3, "velocity": 13}
FISH_ORDER = ("upright", "joint_angles", "target", "velocity")
STATE = {"position": 4, "velocity": 4}
FACTS = {
    "AcrobotSwingup": Facts(acrobot, "acrobot", acrobot.Balance(sparse=False), *ACROBOT),
    "AcrobotSwingupSparse": Facts(acrobot, "acrobot", acrobot.Balance(sparse=True), *ACROBOT),
    "BallInCup": Facts(
        ball_in_cup, "ball_in_cup", ball_in_cup.BallInCup(), ball_pose, (4, 4, 2), STATE, 0.02, 0.002, 0.1306
    ),
    "CheetahRun": Facts(
        cheetah,
        "cheetah",
        cheetah.Cheetah(),
        cheetah_pose,
        (9, 9, 6),
        {"position": 8, "velocity": 9},
        0.01,
        0.01,
        14.0,
    ),
    "FingerSpin": Facts(finger, "spin", finger.Spin(), finger_pose, (3, 3, 2), FINGER_TERMS, 0.02, 0.005, 3.979),
    "FingerTurnEasy": Facts(finger, "turn_easy", finger.Turn(target_radius=0.07), *TURN),
    "FingerTurnHard": Facts(finger, "turn_hard", finger.Turn(target_radius=0.03), *TURN),
    "FishSwim": Facts(fish, "fish", fish.Swim(), fish_pose, (14, 13, 5), FISH_TERMS, 0.04, 0.002, 0.3869, FISH_ORDER),
}
