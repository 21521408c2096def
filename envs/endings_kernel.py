"""`Endings.close` on a GPU in two kernels and what is drawn and reduced between them, instead of two dozen."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from envs.episodes import Episodes
from envs.practice import NEWEST, Practice
from envs.step import Step

_BLOCK = 256  # worlds of a program


@triton.jit
def _pay(  # type: ignore[no-untyped-def]
    given,
    failed,
    lost,
    age,
    recent,
    reward,
    terminated,
    truncated,
    worlds,
    learners,
    length,
    newest,
    block: tl.constexpr,
):
    world = tl.program_id(0) * block + tl.arange(0, block)
    here, learning = world < worlds, world < learners
    gone = tl.load(lost + world, mask=here, other=0) != 0
    paid = tl.where(gone, 0.0, tl.load(given + world, mask=here, other=0.0))
    older = tl.load(age + world, mask=here, other=0) + 1
    mean = tl.load(recent + world, mask=learning, other=0.0)
    tl.store(reward + world, paid, mask=here)
    tl.store(terminated + world, gone | (tl.load(failed + world, mask=here, other=0) != 0), mask=here)
    tl.store(truncated + world, older >= length, mask=here)
    tl.store(age + world, older, mask=here)
    tl.store(recent + world, mean + newest * (paid - mean), mask=learning)


@triton.jit
def _end(  # type: ignore[no-untyped-def]
    reward, terminated, truncated, age, sums, last, whole, recent, mean, least, draw, done, worlds, learners, rate,
    block: tl.constexpr,
):  # fmt: skip
    world = tl.program_id(0) * block + tl.arange(0, block)
    here, learning = world < worlds, world < learners
    failed = tl.load(terminated + world, mask=here, other=0) != 0
    over = tl.load(truncated + world, mask=here, other=0) != 0
    lately = tl.load(recent + world, mask=learning, other=0.0)
    chosen = tl.load(draw + world, mask=learning, other=1.0) < rate
    cut = learning & chosen & (lately > tl.load(mean))
    ended = failed | over | cut
    total = tl.load(sums + world, mask=here, other=0.0) + tl.load(reward + world, mask=here, other=0.0)
    counted = tl.load(whole + world, mask=here, other=0) != 0
    tl.store(last + world, total, mask=here & counted & (failed | over))
    tl.store(truncated + world, over | cut, mask=here)
    tl.store(sums + world, tl.where(ended, 0.0, total), mask=here)
    tl.store(age + world, tl.zeros((block,), tl.int64), mask=here & ended)
    tl.store(whole + world, counted | ended, mask=here)
    tl.store(recent + world, tl.load(least), mask=learning & ended)
    tl.store(done + world, ended, mask=here)


def close(
    episodes: Episodes,
    practice: Practice,
    step: Step,
    reward: Tensor,
    failed: Tensor,
    lost: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """As `Endings.close`; all on a CUDA device."""
    worlds, learners, recent = len(reward), len(practice.recent), practice.recent
    grid, flags = (triton.cdiv(worlds, _BLOCK),), (step.terminated, step.truncated)
    given = reward.to(step.reward.dtype).contiguous(), failed.contiguous(), lost.contiguous()
    _pay[grid](*given, episodes.step, recent, step.reward, *flags, worlds, learners, episodes.length, NEWEST, _BLOCK)
    if practice.rate:
        practice.draw.uniform_(generator=generator)
    done = torch.empty_like(lost)
    _end[grid](
        step.reward,
        *flags,
        episodes.step,
        episodes.paid,
        episodes.last_return,
        episodes.whole,
        recent,
        recent.mean(),
        recent.min(),
        practice.draw,
        done,
        worlds,
        learners,
        practice.rate,
        _BLOCK,
    )
    return done
