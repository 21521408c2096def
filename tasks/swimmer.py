"""The six-link swimmer of the DM Control suite, with MuJoCo Playground's time step and solver settings."""

from __future__ import annotations

import math

import mujoco
import torch
from torch import Tensor

from envs.draws import Draws
from envs.fields import Fields
from envs.task import InitialState, State, Task, Timing
from tasks.registry import register
from tasks.rewards import tolerance
from tasks.suite import suite_model

LINKS = 6
LINK_LENGTH = 0.1  # m
TARGET_RADIUS = 0.1  # m
PLANE = 0.05  # m, height in which swimmer and target lie
_MOTION_SENSORS = {"velocimeter": mujoco.mjtSensor.mjSENS_VELOCIMETER, "gyro": mujoco.mjtSensor.mjSENS_GYRO}


@register("SwimmerSwimmer6")
class SwimmerSwimmer6(Task):
    """Swim to the target and stay with the nose in it.

    | term            | size | unit                                                                          |
    |-----------------|------|-------------------------------------------------------------------------------|
    | joints          | 5    | from the head to the tail (rad)                                               |
    | to_target       | 2    | from nose to target, as the head sees it (m)                                  |
    | body_velocities | 18   | head, then each segment, in its own frame: x, y (m/s), turning (rad/s)        |

    Departs from Playground: the first observation shows the episode's own target; derived quantities belong to the
    new state, where Playground's are one physics step late.
    """

    timing = Timing(control=0.03, physics=0.003)
    nconmax, njmax = 1, 10  # no contacts; five joints, each of which may be at its limit
    units = {"joints": "rad", "to_target": "m", "body_velocities": "m/s, rad/s"}

    def model(self) -> mujoco.MjSpec:
        """The suite's swimmer with its segments, and the target and its light on a mocap body, as in Playground."""
        spec = suite_model("swimmer", iterations=4, ls_iterations=8)
        _add_segments(spec)
        _move_target(spec)
        for geom in spec.geoms:
            geom.contype = geom.conaffinity = 0
        return spec

    def initial_state(self, sim: Fields, random: Draws) -> InitialState:
        """Any heading, joints anywhere in their ranges, at rest; the target within ±2 m, with chance 0.2 ±0.3 m."""
        ranges = sim.tensor(sim.model.jnt_range[3:])
        qpos = sim.default_qpos()
        qpos[:, 2] = math.pi * (2 * random.uniform() - 1)
        qpos[:, 3:] = ranges[:, 0] + (ranges[:, 1] - ranges[:, 0]) * random.uniform(LINKS - 1)
        reach = 2.0 - 1.7 * (random.uniform(1) < 0.2)
        place = reach * (2 * random.uniform(2) - 1)
        target = torch.cat([place, torch.full_like(place[:, :1], PLANE)], dim=1)
        return InitialState(qpos, sim.zero_qvel(), mocap_pos=target.unsqueeze(1))

    def observe(self, sim: Fields, state: State) -> dict[str, Tensor]:
        """The body's shape and velocities as it feels them itself; neither where it is nor where it faces."""
        links = ["head_vel", "head_gyro"]
        for i in range(LINKS - 1):
            links += [f"velocimeter_{i}", f"gyro_{i}"]
        readings = torch.cat([sim.sensordata[:, sim.sensor(name)] for name in links], dim=1).unflatten(1, (LINKS, 6))
        planar = torch.cat([readings[:, :, :2], readings[:, :, 5:]], dim=2)
        offset, frame = self.to_target(sim), sim.xmat[:, sim.body("head"), :, :2]
        return {
            "joints": sim.qpos[:, 3:],
            # Products and a sum instead of a matrix product, which a GPU may be set to round to TF32.
            "to_target": (offset.unsqueeze(2) * frame).sum(dim=1),
            "body_velocities": planar.flatten(1),
        }

    def to_target(self, sim: Fields) -> Tensor:
        """From nose to target in the world, in m, (N, 3); z is 0."""
        return sim.geom_xpos[:, sim.geom("target")] - sim.geom_xpos[:, sim.geom("nose")]

    def reward(self, sim: Fields, state: State, action: Tensor) -> Tensor:
        """1 while the nose is within the target's 10 cm, a tenth at 50 cm from its rim, and slowly less beyond."""
        distance = self.to_target(sim)[:, :2].norm(dim=1)
        return tolerance(distance, 0.0, TARGET_RADIUS, margin=5 * TARGET_RADIUS, shape="long_tail")


def _add_segments(spec: mujoco.MjSpec) -> None:
    """Hangs five links behind the head, each with a motor at its front end and motion sensors at its middle."""
    parent, inherited = spec.body("head"), spec.find_default("swimmer")
    for i in range(LINKS - 1):
        parent = parent.add_body(name=f"segment_{i}", pos=[0, LINK_LENGTH, 0])
        for name in ("visual", "inertial"):
            parent.add_geom(spec.find_default(name), name=f"{name}_{i}")
        parent.add_site(inherited, name=f"site_{i}")
        parent.add_joint(inherited, name=f"joint_{i}", range=[-360 / LINKS, 360 / LINKS])
        motor = spec.add_actuator(name=f"motor_{i}", target=f"joint_{i}")
        motor.trntype = mujoco.mjtTrn.mjTRN_JOINT
        for name, kind in _MOTION_SENSORS.items():
            spec.add_sensor(name=f"{name}_{i}", type=kind, objtype=mujoco.mjtObj.mjOBJ_SITE, objname=f"site_{i}")


def _move_target(spec: mujoco.MjSpec) -> None:
    """Puts the target and the light above it onto a mocap body, so that each world has its own."""
    spec.delete(spec.geom("target"))
    spec.delete(spec.light("target_light"))
    body = spec.worldbody.add_body(name="target", mocap=True, pos=[1, 1, PLANE])
    sphere = mujoco.mjtGeom.mjGEOM_SPHERE
    body.add_geom(name="target", type=sphere, size=[TARGET_RADIUS, 0, 0], material="target")
    body.add_light(name="target_light", diffuse=[1, 1, 1], pos=[0, 0, 1.45])
