"""An ant that walks where it is told, on floors and with bodies that differ: a task with every optional part."""

from __future__ import annotations

import mujoco
import torch
from torch import Tensor

from envs.draws import Draws
from envs.fields import Fields
from envs.task import InitialState, Parameters, State, Task, Timing
from tasks.ant import ant_model, ant_start, healthy
from tasks.registry import register

FASTEST = 1.0  # m/s, of the commanded velocity along each axis
COMMAND_TIME = 3.0  # s, mean time until another command
TRACKING_WIDTH = 0.5  # m/s, error at which tracking pays 1/e
# Small: under exploration noise they must not eat up what tracking pays.
TURN_COST, CONTROL_COST, CHANGE_COST = 0.005, 0.002, 0.002
FRICTION = (0.5, 1.25)  # of the model's
MASS = (0.8, 1.3)  # of the model's, torso
GAIN = (0.8, 1.2)  # of the model's, each motor


@register("AntVelocity")
class AntVelocity(Task):
    """Walk with a velocity that is commanded, as the torso sees it, and that changes on the way.

    | term             | size | unit                                                           | noise |
    |------------------|------|----------------------------------------------------------------|-------|
    | angular_velocity | 3    | of the torso, as its gyroscope measures it (rad/s)             | ±0.2  |
    | up               | 3    | the world's up axis as the torso sees it                       | ±0.05 |
    | joint_position   | 8    | hip and ankle of the four legs (rad)                           | ±0.02 |
    | joint_velocity   | 8    | likewise (rad/s)                                               | ±0.5  |
    | command          | 2    | velocity along the torso's x and y axes (m/s)                  |       |
    | last_action      | 8    | in [-1, 1]                                                     |       |

    The critic also sees what no sensor of the robot measures: the torso's linear velocity (3, m/s) and height (1, m),
    and what differs from world to world, as factors of the model's: friction of the floor, mass of the torso, gain of
    each motor.
    """

    timing = Timing(control=0.05, physics=0.01)
    nconmax, njmax = 20, 80  # 5 contacts and 20 rows is the most a world was seen to have
    units = {
        "angular_velocity": "rad/s",
        "up": "1",
        "joint_position": "rad",
        "joint_velocity": "rad/s",
        "command": "m/s",
        "last_action": "1",
    }
    noise = {"angular_velocity": 0.2, "up": 0.05, "joint_position": 0.02, "joint_velocity": 0.5}
    randomised = ("geom_friction", "body_mass", "body_inertia", "actuator_gainprm")

    def model(self) -> mujoco.MjSpec:
        """Gymnasium's ant and an inertial measurement unit; friction cones are elliptic.

        With pyramidal ones MuJoCo Warp and MuJoCo C point the pyramid under a steep leg differently.
        """
        spec = ant_model()
        spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
        return spec

    def initial_state(self, sim: Fields, random: Draws) -> InitialState:
        """As gymnasium's ant, with a command from the first step on."""
        qpos, qvel = ant_start(sim, random)
        still = torch.zeros_like(qpos[:, : sim.model.nu])
        return InitialState(qpos, qvel, state={"command": self.draw_command(random), "last_action": still})

    def observe(self, sim: Fields, state: State) -> dict[str, Tensor]:
        """What an inertial measurement unit and joint encoders measure, the command, and what was done last."""
        return {
            "angular_velocity": sim.sensordata[:, sim.sensor("angular_velocity")],
            "up": sim.xmat[:, sim.body("torso"), 2],
            "joint_position": sim.qpos[:, 7:],
            "joint_velocity": sim.qvel[:, 6:],
            "command": state["command"],
            "last_action": state["last_action"],
        }

    def privileged(self, sim: Fields, state: State) -> dict[str, Tensor]:
        """The velocity that is to be tracked, and the height that ends the episode."""
        return {"linear_velocity": self.velocity(sim), "height": sim.qpos[:, 2:3]}

    def reward(self, sim: Fields, state: State, action: Tensor) -> Tensor:
        """Up to 1 for tracking, less costs of turning, of control and of its change; never below 0.

        Not below, so that falling over, which pays nothing more, is never the better choice.
        """
        error = (self.velocity(sim)[:, :2] - state["command"]).square().sum(dim=1)
        turning = sim.sensordata[:, sim.sensor("angular_velocity")].square().sum(dim=1)
        change = (action - state["last_action"]).square().sum(dim=1)
        cost = TURN_COST * turning + CONTROL_COST * action.square().sum(dim=1) + CHANGE_COST * change
        return (torch.exp(-error / TRACKING_WIDTH**2) - cost).clamp(min=0.0)

    def terminated(self, sim: Fields, state: State) -> Tensor:
        """Torso too low or too high, or upside down."""
        return ~healthy(sim) | (sim.xmat[:, sim.body("torso"), 2, 2] < 0)

    def update(self, sim: Fields, state: State, random: Draws) -> State:
        """A new command in some worlds; in all of them the action becomes the last one."""
        changes = random.uniform(1) < self.timing.control / COMMAND_TIME
        command = torch.where(changes, self.draw_command(random), state["command"])
        return {"command": command, "last_action": sim.ctrl}  # the control range is [-1, 1]

    def parameters(self, sim: Fields, random: Draws) -> Parameters:
        """Friction of all geoms, mass and inertia of the torso, gain of each motor: uniform between two factors."""
        model, torso = sim.model, sim.body("torso")
        friction, mass = between(FRICTION, random.uniform(1)), between(MASS, random.uniform(1))
        gain = between(GAIN, random.uniform(model.nu))
        body = torch.ones(sim.num_worlds, model.nbody, dtype=sim.dtype, device=sim.device)
        body[:, torso : torso + 1] = mass
        gainprm = sim.tensor(model.actuator_gainprm).repeat(sim.num_worlds, 1, 1)
        gainprm[:, :, 0] *= gain
        fields = {
            "geom_friction": friction.unsqueeze(2) * sim.tensor(model.geom_friction),
            "body_mass": body * sim.tensor(model.body_mass),
            "body_inertia": body.unsqueeze(2) * sim.tensor(model.body_inertia),
            "actuator_gainprm": gainprm,
        }
        return Parameters(fields, told={"friction": friction, "mass": mass, "gain": gain})

    def velocity(self, sim: Fields) -> Tensor:
        """The torso's linear velocity as it sees it itself, in m/s, (N, 3)."""
        return sim.sensordata[:, sim.sensor("linear_velocity")]

    def draw_command(self, random: Draws) -> Tensor:
        """Uniform commands, (N, 2)."""
        return FASTEST * (2 * random.uniform(2) - 1)


def between(limits: tuple[float, float], share: Tensor) -> Tensor:
    """The point `share` (in [0, 1]) of the way from the lower to the upper limit."""
    return limits[0] + (limits[1] - limits[0]) * share
