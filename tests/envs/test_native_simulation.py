"""The CPU's worlds are MuJoCo C's, bit for bit, and a masked reset leaves nothing behind."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest
import torch
from fake_task import XML, same
from torch import Tensor

import tasks
from envs.fields import FIELD_SHAPES, field_shape
from envs.native_simulation import NativeSimulation
from gorl_robotics.errors import InputError

WORLDS = 4
HOPPER = tasks.make("HopperStand")
STEPS = HOPPER.timing.physics_steps
ALL = tuple(FIELD_SHAPES)


def hopper(worlds: int = WORLDS, threads: int = 0) -> NativeSimulation:
    return NativeSimulation(HOPPER.compile(), worlds, ALL, STEPS, threads)


def poses(seed: int, worlds: int = WORLDS) -> tuple[Tensor, Tensor]:
    """Hoppers near the floor in any pose, moving."""
    generator = torch.Generator().manual_seed(seed)
    qpos = torch.rand(worlds, 7, generator=generator, dtype=torch.float64)
    qpos[:, 1] -= 0.5
    return qpos, torch.randn(worlds, 7, generator=generator, dtype=torch.float64)


def controls(steps: int, worlds: int = WORLDS) -> Tensor:
    return 2 * torch.rand(steps, worlds, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1


def everyone(worlds: int = WORLDS) -> Tensor:
    return torch.ones(worlds, dtype=torch.bool)


def snapshot(sim: NativeSimulation, worlds: Tensor) -> dict[str, Tensor]:
    return {name: getattr(sim, name)[worlds].clone() for name in (*ALL, "qacc_warmstart")}


def unequal(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    return [name for name in one if not same(one[name], other[name])]


@pytest.mark.parametrize("threads", [1, 2])
def test_every_field_equals_mujoco_after_each_control_step(threads: int) -> None:
    sim = hopper(threads=threads)
    qpos, qvel = poses(1)
    sim.reset(everyone(), qpos, qvel)
    model = HOPPER.compile()
    worlds = [mujoco.MjData(model) for _ in range(WORLDS)]
    for data, q, v in zip(worlds, qpos, qvel, strict=True):
        data.qpos[:], data.qvel[:] = q, v
        mujoco.mj_forward(model, data)
    touched = 0
    for control in controls(50):
        sim.ctrl.copy_(control)
        sim.step()
        for world, data in enumerate(worlds):
            data.ctrl[:] = control[world]
            mujoco.mj_step(model, data, STEPS)
            mujoco.mj_step1(model, data)
            for name in ALL:
                expected = getattr(data, name).reshape(field_shape(model, name))
                np.testing.assert_array_equal(getattr(sim, name)[world], expected, err_msg=name)
        touched += int((sim.sensordata[:, sim.sensor("touch_toe")] > 0).sum())
    assert touched > 10


def test_a_masked_reset_equals_a_fresh_simulation_and_leaves_the_others_alone() -> None:
    sim, twin, fresh = hopper(), hopper(), hopper(worlds=2)
    mask = torch.tensor([False, True, False, True])
    for one in (sim, twin):
        one.reset(everyone(), *poses(2))
        for control in controls(30):
            one.ctrl.copy_(control)
            one.step()
    qpos, qvel = poses(3)
    sim.reset(mask, qpos, qvel)
    fresh.reset(everyone(2), qpos[mask], qvel[mask])
    assert unequal(snapshot(sim, mask), snapshot(fresh, everyone(2))) == []
    assert unequal(snapshot(sim, ~mask), snapshot(twin, ~mask)) == []
    for control in controls(100):
        for one, rows in ((sim, control), (twin, control), (fresh, control[mask])):
            one.ctrl.copy_(rows)
            one.step()
        assert unequal(snapshot(sim, mask), snapshot(fresh, everyone(2))) == []
        assert unequal(snapshot(sim, ~mask), snapshot(twin, ~mask)) == []


def test_settling_is_so_many_physics_steps_without_control() -> None:
    sim, model = hopper(), HOPPER.compile()
    qpos, qvel = poses(4)
    sim.reset(everyone(), qpos, qvel)
    sim.ctrl.fill_(1.0)
    sim.settle(33)
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = qpos[2], qvel[2]
    mujoco.mj_forward(model, data)
    mujoco.mj_step(model, data, 33)
    np.testing.assert_array_equal(sim.qpos[2], data.qpos)
    assert not sim.ctrl.any()


def test_a_nonfinite_world_stays_visible_until_it_is_reset() -> None:
    sim, twin = hopper(), hopper()
    for one in (sim, twin):
        one.reset(everyone(), *poses(5))
    sim.qvel[1, 0] = torch.nan
    others = torch.tensor([True, False, True, True])
    for one in (sim, twin):
        one.step()
    assert not sim.qvel[1].isfinite().all()
    assert unequal(snapshot(sim, others), snapshot(twin, others)) == []


def test_mocap_bodies_are_placed_with_the_mask() -> None:
    spec = mujoco.MjSpec.from_string(XML)
    spec.worldbody.add_body(name="target", mocap=True).add_geom(size=[0.1, 0.1, 0.1])
    sim = NativeSimulation(spec.compile(), 2, ("xpos",), 1)
    pose = torch.tensor([[[1.0, 2.0, 3.0]], [[4.0, 5.0, 6.0]]], dtype=torch.float64)
    turn = torch.tensor([[[0.0, 1.0, 0.0, 0.0]]], dtype=torch.float64).expand(2, 1, 4)
    sim.reset(torch.tensor([False, True]), torch.zeros(2, 1), torch.zeros(2, 1), pose, turn)
    assert sim.xpos[:, sim.body("target")].tolist() == [[0.0, 0.0, 0.0], [4.0, 5.0, 6.0]]
    assert sim.mocap_quat[:, 0].tolist() == [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]


def test_a_saved_state_restores_the_worlds_and_their_warm_start() -> None:
    first, second = hopper(), hopper()
    first.reset(everyone(), *poses(6))
    for control in controls(20):
        first.ctrl.copy_(control)
        first.step()
    saved = first.state_dict()
    first.step()
    second.load_state_dict(saved)
    second.step()
    assert unequal(snapshot(first, everyone()), snapshot(second, everyone())) == []


def test_a_constant_stays_what_it_was_when_the_array_it_came_from_changes() -> None:
    sim, array = hopper(), np.array([1.0, 2.0])
    constant = sim.tensor(array)
    array[:] = 3.0
    assert constant.tolist() == [1.0, 2.0]
    assert sim.tensor([1.0, 2.0]).tolist() == [1.0, 2.0]
    mass = sim.tensor(sim.model.body_mass)
    sim.model.body_mass[:] += 1.0
    assert (mass < torch.from_numpy(sim.model.body_mass)).all()


def test_names_resolve_and_a_field_must_be_bound() -> None:
    sim = NativeSimulation(mujoco.MjModel.from_xml_string(XML), 2, ("xpos",), 1)
    assert (sim.body("slider"), sim.site("tip"), sim.geom("block"), sim.joint("slide")) == (1, 0, 0, 0)
    assert sim.sensor("where") == sim.joint_qpos("slide") == sim.joint_qvel("slide") == slice(0, 1)
    assert sim.xpos.shape == (2, 2, 3)
    with pytest.raises(InputError, match="'site_xpos' was not bound"):
        _ = sim.site_xpos
    with pytest.raises(InputError, match="unknown simulation field 'xposs'; did you mean 'xpos'"):
        _ = sim.xposs
