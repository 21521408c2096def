"""The second half of the suite: what its models must be, dm_control's own versions, and poses of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mujoco
import numpy as np
from dm_control.suite import base, cartpole, humanoid, pendulum, point_mass, reacher, swimmer, walker
from test_suite_against_dm_control import CARTPOLE_OPTIONS, cartpole_physics, cartpole_pose

STATES = 500
TOLERANCE = 1e-5
PI = math.pi
NO_EULERDAMP = int(mujoco.mjtDisableBit.mjDSBL_EULERDAMP)
NO_CONTACT = int(mujoco.mjtDisableBit.mjDSBL_CONTACT)
FEWER = {"disableflags": (0, NO_EULERDAMP)}
FEWER_WITHOUT_CONTACT = {"disableflags": (NO_CONTACT, NO_CONTACT | NO_EULERDAMP)}

Pose = tuple[np.ndarray, np.ndarray, np.ndarray | None]  # qpos, qvel, target (3,)


@dataclass(frozen=True)
class Robot:
    """What a model must be, and dm_control's version of it."""

    observation: dict[str, int]
    sizes: tuple[int, int, int]  # nq, nv, nu
    timing: tuple[float, float]
    mass: float
    options: dict[str, tuple[float, float]]  # option: dm_control's value, ours
    physics: Callable[[], Any]
    pose: Callable[[np.random.Generator], Pose]
    view: Callable[[Any, dict[str, np.ndarray]], dict[str, np.ndarray]] = field(default=lambda physics, terms: terms)


def iterations(solver: int, line_search: int) -> dict[str, tuple[float, float]]:
    return {"iterations": (100, solver), "ls_iterations": (50, line_search)}


def physics_of(domain: Any, *arguments: int) -> Callable[[], Any]:
    return lambda: domain.Physics.from_xml_string(*domain.get_model_and_assets(*arguments))


def walker_pose(random: np.random.Generator) -> Pose:
    """A third anything; the others nearly upright near the ground, moving forward at up to running speed."""
    low, high = np.deg2rad([[-20, -150, -45] * 2, [100, 0, 45] * 2])
    joints, velocity = random.uniform(low, high), random.normal(size=9) * 2
    root = [random.uniform(-0.8, 0.3), random.uniform(-5, 5), random.uniform(-PI, PI)]
    if random.random() < 2 / 3:
        joints, root[2] = np.clip(random.normal(0, 0.2, 6), low, high), random.normal(0, 0.3)
        root[0] = random.uniform(-0.4, 0.1)
        velocity[1] = random.uniform(-1, 10)
    return np.concatenate([root, joints]), velocity, None


HUMANOID_RANGES = humanoid.Physics.from_xml_string(*humanoid.get_model_and_assets()).model.jnt_range[1:].copy()


def humanoid_pose(random: np.random.Generator) -> Pose:
    """A third anything; the others nearly upright with the head about where it should be, still, walking or running."""
    low, high = HUMANOID_RANGES.T
    joints, turn = random.uniform(low, high), random.normal(size=4)
    place, velocity = random.uniform([-5, -5, 0.1], [5, 5, 1.6]), random.normal(size=27) * 2
    if random.random() < 2 / 3:
        joints = np.clip(random.normal(0, 0.1, 21), low, high)
        turn, place[2] = np.array([1, 0, 0, 0]) + 0.1 * random.normal(size=4), random.uniform(1.0, 1.5)
        velocity = 0.3 * random.normal(size=27)
        velocity[:2] *= random.choice([1, 5, 20])
    return np.concatenate([place, turn / np.linalg.norm(turn), joints]), velocity, None


def reacher_pose(random: np.random.Generator) -> Pose:
    """Any arm; the target half of the time near the finger."""
    qpos = random.uniform([-PI, -2.79], [PI, 2.79])
    radius, angle = random.uniform(0.05, 0.2), random.uniform(0, 2 * PI)
    target = np.array([radius * np.sin(angle), radius * np.cos(angle), 0.01])
    if random.random() < 0.5:
        angles = np.cumsum(qpos)
        target[:2] = 0.12 * np.array([np.cos(angles).sum(), np.sin(angles).sum()]) + random.normal(0, 0.025, 2)
    return qpos, random.normal(size=2), target


def pendulum_pose(random: np.random.Generator) -> Pose:
    """Any angle, half of the time near upright."""
    reach = PI if random.random() < 0.5 else math.radians(16)
    return random.uniform(-reach, reach, 1), random.normal(size=1) * 3, None


def point_mass_pose(random: np.random.Generator) -> Pose:
    """Anywhere, half of the time near the target."""
    reach = 0.29 if random.random() < 0.5 else 0.03
    return random.uniform(-reach, reach, 2), random.normal(size=2) * 0.1, None


def swimmer_pose(random: np.random.Generator) -> Pose:
    """Any shape, place and heading, not too fast for the time step; half of the targets near the head."""
    root, joints = random.uniform([-1, -1, -PI], [1, 1, PI]), random.uniform(-PI / 3, PI / 3, 5)
    place = random.uniform(-2, 2, 2) if random.random() < 0.5 else root[:2] + random.uniform(-0.2, 0.2, 2)
    return np.concatenate([root, joints]), random.normal(size=8) * 0.2, np.array([*place, 0.05])


def sparse_cartpole_pose(random: np.random.Generator) -> Pose:
    """Half anything, half around the rewarded region."""
    qpos, qvel = cartpole_pose(random)
    if random.random() < 0.5:
        qpos = random.uniform([-0.4, -0.15], [0.4, 0.15])
    return qpos, qvel, None


def upright_for_height(physics: walker.Physics, terms: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {**terms, "height": physics.torso_upright()}


def sine_first(physics: pendulum.Physics, terms: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {**terms, "orientation": terms["orientation"][::-1]}


WALKER = Robot(
    {"orientations": 14, "torso_upright": 1, "velocity": 9},
    (9, 9, 6),
    (0.025, 0.0025),
    28.540,
    iterations(2, 5) | FEWER,
    physics_of(walker),
    walker_pose,
    upright_for_height,
)
HUMANOID = Robot(
    {"joint_angles": 21, "head_height": 1, "extremities": 12, "torso_vertical": 3, "com_velocity": 3, "velocity": 27},
    (28, 27, 21),
    (0.025, 0.005),
    40.844,
    iterations(4, 8) | FEWER,
    physics_of(humanoid),
    humanoid_pose,
)
REACHER = Robot(
    {"position": 2, "to_target": 2, "velocity": 2},
    (2, 2, 2),
    (0.02, 0.005),
    0.605,
    iterations(1, 6) | FEWER_WITHOUT_CONTACT | {"timestep": (0.02, 0.005)},
    physics_of(reacher),
    reacher_pose,
)
PENDULUM = Robot(
    {"orientation": 2, "velocity": 1},
    (1, 1, 1),
    (0.02, 0.01),
    1.0,
    iterations(4, 8)
    | FEWER_WITHOUT_CONTACT
    | {"timestep": (0.02, 0.01), "enableflags": (int(mujoco.mjtEnableBit.mjENBL_ENERGY), 0)},
    physics_of(pendulum),
    pendulum_pose,
    sine_first,
)
POINT_MASS = Robot(
    {"position": 2, "velocity": 2},
    (2, 2, 2),
    (0.02, 0.02),
    0.3,
    iterations(1, 4) | FEWER_WITHOUT_CONTACT,
    physics_of(point_mass),
    point_mass_pose,
)
SWIMMER = Robot(
    {"joints": 5, "to_target": 2, "body_velocities": 18},
    (8, 8, 5),
    (0.03, 0.003),
    4.249,
    iterations(4, 8) | FEWER_WITHOUT_CONTACT | {"timestep": (0.002, 0.003)},
    physics_of(swimmer, 6),
    swimmer_pose,
)
CARTPOLE = Robot(
    {"cart": 1, "pole": 2, "velocity": 2},
    (2, 2, 1),
    (0.01, 0.01),
    1.1,
    dict(CARTPOLE_OPTIONS),
    cartpole_physics,
    sparse_cartpole_pose,
)

TASKS: dict[str, tuple[Robot, base.Task]] = {
    "WalkerStand": (WALKER, walker.PlanarWalker(move_speed=0)),
    "WalkerWalk": (WALKER, walker.PlanarWalker(move_speed=1)),
    "WalkerRun": (WALKER, walker.PlanarWalker(move_speed=8)),
    "HumanoidStand": (HUMANOID, humanoid.Humanoid(move_speed=0, pure_state=False)),
    "HumanoidWalk": (HUMANOID, humanoid.Humanoid(move_speed=1, pure_state=False)),
    "HumanoidRun": (HUMANOID, humanoid.Humanoid(move_speed=10, pure_state=False)),
    "ReacherEasy": (REACHER, reacher.Reacher(target_size=0.05)),
    "ReacherHard": (REACHER, reacher.Reacher(target_size=0.015)),
    "PendulumSwingup": (PENDULUM, pendulum.SwingUp()),
    "PointMass": (POINT_MASS, point_mass.PointMass(randomize_gains=False)),
    "SwimmerSwimmer6": (SWIMMER, swimmer.Swimmer()),
    "CartpoleBalanceSparse": (CARTPOLE, cartpole.Balance(swing_up=False, sparse=True)),
    "CartpoleSwingupSparse": (CARTPOLE, cartpole.Balance(swing_up=True, sparse=True)),
}
GEARS = {
    "WalkerStand": [100, 50, 20] * 2,
    "HumanoidStand": [40, 40, 40, *[40, 40, 120, 80, 20, 20] * 2, *[20, 20, 40] * 2],
    "ReacherEasy": [0.05] * 2,
    "PendulumSwingup": [1],
    "PointMass": [0.1] * 2,
    "SwimmerSwimmer6": [5e-4] * 5,
}
TARGETS = [name for name, (robot, _) in TASKS.items() if robot in (REACHER, SWIMMER)]
