"""What a model offers to a task: its parts by name, what of it can be observed, and a pose to begin with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

import mujoco

_FREE, _BALL, _SLIDE, _HINGE = range(4)  # mjtJoint
_WIDTHS = {_FREE: (7, 6), _BALL: (4, 3), _SLIDE: (1, 1), _HINGE: (1, 1)}  # in qpos and qvel
_WORDS = {_FREE: "free", _BALL: "ball", _SLIDE: "slide", _HINGE: "hinge"}
_SENSOR_UNITS = {
    "TOUCH": "N",
    "ACCELEROMETER": "m/s^2",
    "VELOCIMETER": "m/s",
    "GYRO": "rad/s",
    "FORCE": "N",
    "TORQUE": "N m",
    "MAGNETOMETER": "T",
    "RANGEFINDER": "m",
    "TENDONPOS": "m",
    "TENDONVEL": "m/s",
    "ACTUATORPOS": "rad or m",
    "ACTUATORVEL": "rad/s or m/s",
    "ACTUATORFRC": "N or N m",
    "JOINTACTFRC": "N or N m",
    "TENDONACTFRC": "N",
    "BALLQUAT": "1",
    "BALLANGVEL": "rad/s",
    "JOINTLIMITPOS": "rad or m",
    "JOINTLIMITVEL": "rad/s or m/s",
    "JOINTLIMITFRC": "N or N m",
    "TENDONLIMITPOS": "m",
    "TENDONLIMITVEL": "m/s",
    "TENDONLIMITFRC": "N",
    "FRAMEPOS": "m",
    "FRAMEQUAT": "1",
    "FRAMEXAXIS": "1",
    "FRAMEYAXIS": "1",
    "FRAMEZAXIS": "1",
    "FRAMELINVEL": "m/s",
    "FRAMEANGVEL": "rad/s",
    "FRAMELINACC": "m/s^2",
    "FRAMEANGACC": "rad/s^2",
    "SUBTREECOM": "m",
    "SUBTREELINVEL": "m/s",
    "SUBTREEANGMOM": "kg m^2/s",
    "INSIDESITE": "1",
    "GEOMDIST": "m",
    "GEOMNORMAL": "1",
    "GEOMFROMTO": "m",
    "E_POTENTIAL": "J",
    "E_KINETIC": "J",
    "CLOCK": "s",
}
_OBSERVED_ALREADY = {"JOINTPOS", "JOINTVEL"}


@dataclass(frozen=True)
class Term:
    """A term of an observation: its name, the columns it is made of as a task writes them, its size and unit."""

    name: str
    pieces: tuple[str, ...]
    size: int
    unit: str
    comment: str = ""

    @property
    def expression(self) -> str:
        """How a task computes it."""
        return self.pieces[0] if len(self.pieces) == 1 else f"torch.cat([{', '.join(self.pieces)}], dim=1)"


class Robot:
    """A compiled model, seen by who writes a task for it."""

    def __init__(self, model: mujoco.MjModel) -> None:
        self.model = model
        self.actuators = [self._name(mujoco.mjtObj.mjOBJ_ACTUATOR, i) for i in range(model.nu)]
        data = mujoco.MjData(model)
        if model.nkey:
            mujoco.mj_resetDataKeyframe(model, data, 0)
        mujoco.mj_forward(model, data)
        # A robot that can leave the ground is led by its root, one that is bolted to it by its last link.
        roots = [int(model.jnt_bodyid[i]) for i in range(model.njnt) if self._lifts(i)]
        moving = [i for i in range(1, model.nbody) if model.body_weldid[i] and model.body_mocapid[i] < 0]
        self._body = (roots or moving[-1:] or [model.nbody - 1])[0]
        self.height = float(data.xipos[self._body, 2])

    @property
    def body(self) -> str:
        """The body that a first reward is about, as in "the body torso"."""
        name = self._name(mujoco.mjtObj.mjOBJ_BODY, self._body)
        return f"the body {name}" if name else f"body {self._body}"

    @property
    def body_expression(self) -> str:
        """Its index, as a task writes it."""
        name = self._name(mujoco.mjtObj.mjOBJ_BODY, self._body)
        return f"sim.body({json.dumps(name)})" if name else str(self._body)

    @property
    def start(self) -> tuple[str, str]:
        """The configuration to begin from, in words and as a task writes it: the first keyframe, if there is one."""
        if not self.model.nkey:
            return "The model's own pose", "sim.default_qpos()"
        key = self._name(mujoco.mjtObj.mjOBJ_KEY, 0)
        word = f"The model's keyframe {key}" if key else "The model's first keyframe"
        return word, f"sim.tensor(sim.model.key({json.dumps(key or 0)}).qpos).repeat(sim.num_worlds, 1)"

    def movable(self) -> list[tuple[str, int]]:
        """Columns of qpos of slides and hinges, as slices, and how many each is."""
        return [(_slice(a, b), b - a) for a, b in _runs(self._columns(_SLIDE, 0) + self._columns(_HINGE, 0))]

    def terms(self) -> list[Term]:
        """An observation: joints, roots without their place on the floor, velocities, activations, sensors."""
        activation = [Term("activation", ("sim.act",), int(self.model.na), "1")] if self.model.na else []
        named: dict[str, Term] = {}
        for term in (*self._positions(), *self._velocities(), *activation, *self._sensors()):
            name = f"{term.name}_sensor" if term.name in named else term.name
            named[name] = replace(term, name=name)
        return list(named.values())

    def parts(self) -> list[str]:
        """Comment lines that name bodies, joints, actuators and sensors."""
        model = self.model
        joints = []
        for i in range(model.njnt):
            kind = int(model.jnt_type[i])
            low, high = model.jnt_range[i]
            limits = f", {low:.3g} to {high:.3g}" if model.jnt_limited[i] else ""
            unit = {_SLIDE: " (m", _HINGE: " (rad"}.get(kind, " (m and quaternion" if kind == _FREE else " (quaternion")
            joints.append(f"{self._joint(i)}: {_WORDS[kind]}{unit}{limits})")
        actuators = []
        for i, name in enumerate(self.actuators):
            low, high = model.actuator_ctrlrange[i] if model.actuator_ctrllimited[i] else (-1.0, 1.0)
            actuators.append(f"{name or f'number {i}'}: action -1 to 1 is ctrl {low:.3g} to {high:.3g}")
        bodies = [self._name(mujoco.mjtObj.mjOBJ_BODY, i) or f"number {i}" for i in range(1, model.nbody)]
        sensors = [f"{self._sensor(i)} ({_sensor_type(model, i).lower()})" for i in range(model.nsensor)]
        return [
            *_listed("bodies", bodies),
            *_listed("joints", joints),
            *_listed("actuators", actuators),
            *_listed("sensors", sensors),
        ]

    def _positions(self) -> Iterator[Term]:
        roots = [i for i in range(self.model.njnt) if self.model.jnt_type[i] == _FREE]
        for count, i in enumerate(roots):
            start, name = int(self.model.jnt_qposadr[i]), _root(count)
            if count == 0:
                comment = "x and y are left out: the policy shall not depend on where it is"
                yield Term(f"{name}_height", (f"sim.qpos[:, {_slice(start + 2, start + 3)}]",), 1, "m", comment)
            else:
                yield Term(f"{name}_position", (f"sim.qpos[:, {_slice(start, start + 3)}]",), 3, "m", self._joint(i))
            columns = _slice(start + 3, start + 7)
            yield Term(f"{name}_orientation", (f"sim.qpos[:, {columns}]",), 4, "1", "quaternion w, x, y, z")
        for kind, word, unit in ((_BALL, "balls", "1"), (_SLIDE, "slides", "m"), (_HINGE, "hinges", "rad")):
            yield from self._joined(kind, 0, word, unit)

    def _velocities(self) -> Iterator[Term]:
        roots = [i for i in range(self.model.njnt) if self.model.jnt_type[i] == _FREE]
        for count, i in enumerate(roots):
            start, name = int(self.model.jnt_dofadr[i]), _root(count)
            yield Term(
                f"{name}_velocity", (f"sim.qvel[:, {_slice(start, start + 3)}]",), 3, "m/s", "in the world's frame"
            )
            columns = _slice(start + 3, start + 6)
            yield Term(f"{name}_turning", (f"sim.qvel[:, {columns}]",), 3, "rad/s", "in the body's own frame")
        for kind, word, unit in ((_BALL, "ball", "rad/s"), (_SLIDE, "slide", "m/s"), (_HINGE, "hinge", "rad/s")):
            yield from self._joined(kind, 1, f"{word}_velocities", unit)

    def _joined(self, kind: int, which: int, name: str, unit: str) -> Iterator[Term]:
        """All joints of a kind, in qpos (which 0) or qvel (1), as one term."""
        runs = _runs(self._columns(kind, which))
        if not runs:
            return
        field = ("qpos", "qvel")[which]
        pieces = tuple(f"sim.{field}[:, {_slice(*run)}]" for run in runs)
        size = sum(b - a for a, b in runs)
        if size == (self.model.nq, self.model.nv)[which]:
            pieces = (f"sim.{field}",)
        joints = [i for i in range(self.model.njnt) if self.model.jnt_type[i] == kind]
        names = ", ".join(self._joint(i) for i in joints if not (which == 0 and self._drifts(i)))
        yield Term(name, pieces, size, unit, names if len(names) < 60 else "")

    def _sensors(self) -> Iterator[Term]:
        for i in range(self.model.nsensor):
            kind = _sensor_type(self.model, i)
            if kind in _OBSERVED_ALREADY:
                continue
            start, size = int(self.model.sensor_adr[i]), int(self.model.sensor_dim[i])
            name = self._name(mujoco.mjtObj.mjOBJ_SENSOR, i)
            columns = f"sim.sensor({json.dumps(name)})" if name else _slice(start, start + size)
            yield Term(
                self._sensor(i), (f"sim.sensordata[:, {columns}]",), size, _SENSOR_UNITS.get(kind, "see the model")
            )

    def _columns(self, kind: int, which: int) -> list[int]:
        found: list[int] = []
        starts = (self.model.jnt_qposadr, self.model.jnt_dofadr)[which]
        for i in range(self.model.njnt):
            if self.model.jnt_type[i] == kind and not (which == 0 and self._drifts(i)):
                found += range(int(starts[i]), int(starts[i]) + _WIDTHS[kind][which])
        return found

    def _lifts(self, i: int) -> bool:
        """Whether a joint of a body on the ground moves it up and down: free, or a slide with a vertical part."""
        model, kind = self.model, self.model.jnt_type[i]
        grounded = model.body_parentid[model.jnt_bodyid[i]] == 0
        return bool(kind == _FREE or (kind == _SLIDE and grounded and abs(model.jnt_axis[i, 2]) > 0.5))

    def _drifts(self, i: int) -> bool:
        """Whether a slide moves a planar robot along the ground; like a free root's x and y that is not observed."""
        model = self.model
        own = [j for j in range(model.njnt) if model.jnt_bodyid[j] == model.jnt_bodyid[i]]
        return bool(model.jnt_type[i] == _SLIDE and not self._lifts(i) and any(self._lifts(j) for j in own))

    def _joint(self, i: int) -> str:
        return self._name(mujoco.mjtObj.mjOBJ_JOINT, i) or f"number {i}"

    def _sensor(self, i: int) -> str:
        return self._name(mujoco.mjtObj.mjOBJ_SENSOR, i) or f"sensor_{i}"

    def _name(self, kind: mujoco.mjtObj, i: int) -> str:
        return mujoco.mj_id2name(self.model, kind, i) or ""


def _sensor_type(model: mujoco.MjModel, i: int) -> str:
    return mujoco.mjtSensor(int(model.sensor_type[i])).name.removeprefix("mjSENS_")


def _root(count: int) -> str:
    return "root" if count == 0 else f"object_{count}"


def _runs(columns: list[int]) -> list[tuple[int, int]]:
    """Ascending columns as half-open intervals."""
    runs: list[tuple[int, int]] = []
    for column in sorted(columns):
        if runs and runs[-1][1] == column:
            runs[-1] = (runs[-1][0], column + 1)
        else:
            runs.append((column, column + 1))
    return runs


def _slice(start: int, stop: int) -> str:
    return f"{start}:{stop}"


def _listed(title: str, items: list[str]) -> list[str]:
    """Comment lines of at most 120 characters."""
    lines, line = [], f"#   {title}:"
    for i, item in enumerate(items or ["none"]):
        piece = f" {item}" + (";" if i < len(items) - 1 else "")
        if len(line) + len(piece) > 118:
            lines.append(line)
            line = "#    "
        line += piece
    return [*lines, line]
