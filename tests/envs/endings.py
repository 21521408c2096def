"""`Endings` and `health.look` by kernels against the same by torch; as a script, in Triton's interpreter on the CPU."""

from __future__ import annotations

from unittest import mock

import torch

from envs import endings_kernel, health, health_kernel
from envs.endings import Endings
from envs.step import Step

WORLDS, LEARNERS, LENGTH = 300, 260, 7


def check(device: str, rate: float) -> None:
    """Many steps: worlds that fail, are lost, reach the time limit, and are cut short."""
    place, generator = torch.device(device), torch.Generator(device)
    sides = [Endings(LEARNERS, WORLDS, LENGTH, rate, place) for _ in range(2)]
    steps = [Step.empty(WORLDS, 2, 2, place) for _ in sides]
    random = torch.Generator().manual_seed(0)
    for side in sides:
        side.episodes.restart(generator.manual_seed(1))
    ends = torch.zeros(3, dtype=torch.int64)
    for count in range(3 * LENGTH):
        reward = torch.randn(WORLDS, generator=random).to(device)
        failed, lost = (torch.rand(WORLDS, generator=random).to(device) < share for share in (0.05, 0.02))
        reward[lost] = float("nan")
        done = []
        for side, step, by_kernel in zip(sides, steps, (True, False), strict=True):
            generator.manual_seed(count)
            given = (step, reward, failed, lost, generator)
            if by_kernel:
                done.append(endings_kernel.close(side.episodes, side.practice, *given))
            else:
                with mock.patch.object(torch.Tensor, "is_cuda", False):
                    done.append(side.close(*given))
        torch.testing.assert_close(done[0], done[1])
        for name in ("reward", "terminated", "truncated"):
            torch.testing.assert_close(getattr(steps[0], name), getattr(steps[1], name))
        states = [side.episodes.named() for side in sides]
        if rate:
            states = [{**state, "recent": side.practice.recent} for state, side in zip(states, sides, strict=True)]
        torch.testing.assert_close(states[0], states[1], equal_nan=True)
        cut = steps[0].truncated[:LEARNERS] & (states[0]["episode_step"][:LEARNERS] == 0)
        ends += torch.stack([done[0].sum(), steps[0].terminated.sum(), cut.sum()]).cpu()
    assert bool((ends > WORLDS // 10).all())
    assert bool(sides[0].episodes.last_return.isfinite().any())


def check_look(device: str) -> None:
    """Worlds that run away, some by what may be as fast as it likes, and that are not finite, in views and alone."""
    worlds, nq, nv = 300, 7, 6
    torch.manual_seed(0)
    wide = torch.randn(worlds, nq + 2, device=device)
    qpos, qvel = wide[:, :nq], torch.randn(worlds, nv, device=device)
    fastest = torch.tensor([2.0, 3.0, float("inf"), 4.0, 2.0, 3.0], device=device)
    qpos[3, 0], qpos[299, nq - 1], qvel[0, 0], qvel[7, 2] = float("nan"), float("inf"), float("-inf"), float("nan")
    qvel[[8, 10]] = 0.0
    qvel[8, 2], qvel[9, nv - 1], qvel[10, 1] = 1e30, -3.5, 3.0
    wide[:, nq:] = float("nan")  # is not theirs
    sides = [torch.ones(2, worlds, dtype=torch.int64, device=device) for _ in range(2)]
    for _ in range(2):
        found = health_kernel.look(qpos, qvel, fastest, sides[0])
        with mock.patch.object(torch.Tensor, "is_cuda", False):
            expected = health.look(qpos, qvel, fastest, sides[1])
        assert torch.equal(found, expected)
        assert torch.equal(*sides)
    assert (sides[0][0] == 3).nonzero().flatten().tolist() == [0, 3, 7, 299]
    assert found[[0, 3, 7, 9, 299]].all()
    assert not found[[8, 10]].any()
    assert 20 < int(found.sum()) < worlds // 2


if __name__ == "__main__":
    check("cpu", 0.1)
    check("cpu", 0.0)
    check_look("cpu")
