"""`Endings.close` on a GPU in two kernels and what is drawn between them, instead of two dozen."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from envs.episodes import Episodes
from envs.practice import NEWEST, Practice
from envs.step import Step

_BLOCK = 256  # worlds of a program
_PROGRAMS = 64  # one kernel for all numbers of worlds up to so many programs


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
    sums,
    least,
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
    lately = mean + newest * (paid - mean)
    tl.store(recent + world, lately, mask=learning)
    tl.store(sums + tl.program_id(0), tl.sum(tl.where(learning, lately, 0.0)))
    tl.store(least + tl.program_id(0), tl.min(tl.where(learning, lately, float("inf"))))


@triton.jit
def _end(  # type: ignore[no-untyped-def]
    reward, terminated, truncated, age, paid, last, whole, recent, sums, least, draw, done, worlds, learners, rate,
    programs, block: tl.constexpr, padded: tl.constexpr,
):  # fmt: skip
    world = tl.program_id(0) * block + tl.arange(0, block)
    here, learning = world < worlds, world < learners
    failed = tl.load(terminated + world, mask=here, other=0) != 0
    over = tl.load(truncated + world, mask=here, other=0) != 0
    lately = tl.load(recent + world, mask=learning, other=0.0)
    chosen = tl.load(draw + world, mask=learning, other=1.0) < rate
    program = tl.arange(0, padded)  # of those that paid
    mean = tl.sum(tl.load(sums + program, mask=program < programs, other=0.0)) / learners
    worst = tl.min(tl.load(least + program, mask=program < programs, other=float("inf")))
    cut = learning & chosen & (lately > mean)
    ended = failed | over | cut
    total = tl.load(paid + world, mask=here, other=0.0) + tl.load(reward + world, mask=here, other=0.0)
    counted = tl.load(whole + world, mask=here, other=0) != 0
    tl.store(last + world, total, mask=here & counted & (failed | over))
    tl.store(truncated + world, over | cut, mask=here)
    tl.store(paid + world, tl.where(ended, 0.0, total), mask=here)
    tl.store(age + world, tl.zeros((block,), tl.int64), mask=here & ended)
    tl.store(whole + world, counted | ended, mask=here)
    tl.store(recent + world, worst, mask=learning & ended)
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
    sums, least = torch.empty(2, *grid, device=reward.device)
    numbers = (worlds, learners, episodes.length, NEWEST)
    _pay[grid](*given, episodes.step, recent, step.reward, *flags, sums, least, *numbers, _BLOCK)
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
        sums,
        least,
        practice.draw,
        done,
        worlds,
        learners,
        practice.rate,
        *grid,
        _BLOCK,
        max(_PROGRAMS, triton.next_power_of_2(*grid)),
    )
    return done
