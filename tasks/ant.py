"""The four-legged ant of gymnasium's MuJoCo environments."""

from __future__ import annotations

import mujoco
from torch import Tensor

from assets import load
from envs.draws import Draws
from envs.fields import Fields
from envs.task import InitialState, State, Task, Timing
from tasks.registry import register

HEALTHY_HEIGHT = (0.2, 1.0)  # m, of the torso
START_NOISE = 0.1  # m, rad and their rates
CONTROL_COST, CONTACT_COST = 0.5, 5e-4


def ant_model() -> mujoco.MjSpec:
    """Gymnasium's ant with an inertial measurement unit in its torso, whose presence makes MuJoCo compute cfrc_ext."""
    spec = load("gymnasium:ant")
    spec.body("torso").add_site(name="imu")
    for name, kind in (
        ("acceleration", mujoco.mjtSensor.mjSENS_ACCELEROMETER),
        ("angular_velocity", mujoco.mjtSensor.mjSENS_GYRO),
        ("linear_velocity", mujoco.mjtSensor.mjSENS_VELOCIMETER),
    ):
        spec.add_sensor(name=name, type=kind, objtype=mujoco.mjtObj.mjOBJ_SITE, objname="imu")
    return spec


def ant_start(sim: Fields, random: Draws) -> tuple[Tensor, Tensor]:
    """Gymnasium's starts: positions (N, nq) uniform around the model's pose, velocities (N, nv) normal around rest."""
    qpos = sim.default_qpos() + START_NOISE * (2 * random.uniform(sim.model.nq) - 1)
    quaternion = qpos[:, 3:7]
    qpos[:, 3:7] = quaternion / quaternion.norm(dim=1, keepdim=True)
    return qpos, START_NOISE * random.normal(sim.model.nv)


def healthy(sim: Fields) -> Tensor:
    """Whether the torso is at a height that says the ant stands, (N,) bool."""
    height = sim.qpos[:, 2]
    return (height >= HEALTHY_HEIGHT[0]) & (height <= HEALTHY_HEIGHT[1])


@register("Ant")
class Ant(Task):
    """Walk forward, along x, as fast as possible: gymnasium's Ant-v5.

    | term     | size | unit                                                                              |
    |----------|------|-----------------------------------------------------------------------------------|
    | position | 13   | torso z (m) and quaternion, hip and ankle of the four legs (rad)                  |
    | velocity | 14   | torso, linear in the world (m/s) and angular in the torso (rad/s), joints (rad/s) |
    | contact  | 78   | torque (N m) and force (N) from outside on each body but the world, within ±1     |

    Departs from Ant-v5: a start's quaternion has length 1; the position behind the forward velocity is that of the
    new state, where gymnasium's is that of the Runge-Kutta integrator's last stage; contact forces are those at the
    beginning of the last physics step, where gymnasium's are of its last stage, and a start has them already.
    """

    timing = Timing(control=0.05, physics=0.01)
    nconmax, njmax = 20, 80  # 5 contacts and 24 rows is the most a world was seen to have
    units = {"position": "m, 1, rad", "velocity": "m/s, rad/s", "contact": "N m, N"}

    def model(self) -> mujoco.MjSpec:
        """Gymnasium's ant and an inertial measurement unit."""
        return ant_model()

    def initial_state(self, sim: Fields, random: Draws) -> InitialState:
        """Near the model's pose, nearly at rest. Remembers where along x the torso is."""
        qpos, qvel = ant_start(sim, random)
        return InitialState(qpos, qvel, state={"x": qpos[:, 0]})

    def observe(self, sim: Fields, state: State) -> dict[str, Tensor]:
        """Everything but x and y, which the dynamics do not depend on."""
        return {"position": sim.qpos[:, 2:], "velocity": sim.qvel, "contact": self.contact(sim)[:, 1:].flatten(1)}

    def reward(self, sim: Fields, state: State, action: Tensor) -> Tensor:
        """Forward velocity in m/s, and 1 for being healthy, less costs of control and contact."""
        forward = (self.x(sim) - state["x"]) / self.timing.control
        control = CONTROL_COST * action.square().sum(dim=1)
        contact = CONTACT_COST * self.contact(sim).square().sum(dim=(1, 2))
        return forward + healthy(sim) - control - contact

    def terminated(self, sim: Fields, state: State) -> Tensor:
        """Torso too low or too high."""
        return ~healthy(sim)

    def update(self, sim: Fields, state: State, random: Draws) -> State:
        """Where the torso is becomes where it was."""
        return {"x": self.x(sim)}

    def x(self, sim: Fields) -> Tensor:
        """The torso along x in m, (N,)."""
        return sim.xpos[:, sim.body("torso"), 0]

    def contact(self, sim: Fields) -> Tensor:
        """Torques and forces from outside on every body, each within ±1, (N, nbody, 6)."""
        return sim.cfrc_ext.clamp(-1.0, 1.0)
