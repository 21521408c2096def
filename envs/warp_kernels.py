"""How Warp's kernels are compiled, side by side, and launched, in small blocks.

Warp compiles a module when its first kernel is launched, one after the other. MuJoCo Warp's are dozens, and which ones
a model needs shows in what is launched: so the function is gone through once without launching anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import warp as wp

from envs.cuda_compilers import compiling_elsewhere

Variant = tuple[Any, int | None]  # a module, and the threads of a block, for each of which it is compiled anew
BLOCK = 64  # threads


def compile_kernels(function: Callable[[], object]) -> None:
    """Compiles and loads the kernels that `function` launches on Warp's current device; none of them is run.

    What has been compiled before is taken from Warp's cache, which lasts from run to run. A kernel of generic types is
    left to its first launch.
    """
    with _noted() as variants:
        function()
    device = wp.get_device()
    with compiling_elsewhere(), ThreadPoolExecutor(len(os.sched_getaffinity(0)), "compile") as pool:
        loads = [pool.submit(wp.force_load, device, [module], block_dim) for module, block_dim in variants]
    for load in loads:
        load.result()


@contextmanager
def small_blocks() -> Iterator[None]:
    """Launches that do not say otherwise have 64 threads to a block instead of Warp's 256.

    Most of MuJoCo Warp's kernels have one thread for each world, or a few: 4,096 of them in blocks of 256 would keep
    sixteen of a GPU's hundred and more processors busy.
    """
    launch = wp.launch

    def small(kernel: wp.Kernel, dim: Any, *inputs: Any, block_dim: int | None = None, **others: Any) -> Any:
        return launch(kernel, dim, *inputs, block_dim=block_dim or BLOCK, **others)

    wp.launch = small
    try:
        yield
    finally:
        wp.launch = launch


@contextmanager
def _noted() -> Iterator[dict[Variant, None]]:
    """Launches are noted, in their order, instead of done; the device's loops and branches are gone through once."""
    variants: dict[Variant, None] = {}

    def note(kernel: wp.Kernel, dim: Any, *_: Any, block_dim: int | None = None, **__: Any) -> None:
        some = all(dim) if isinstance(dim, Sequence) else dim
        if some and not kernel.is_generic:
            variants[kernel.module, block_dim] = None

    def once(_: Any, while_body: Callable[..., object], **arguments: Any) -> None:
        while_body(**arguments)

    def both(_: Any, on_true: Any = None, on_false: Any = None, **arguments: Any) -> None:
        for branch in filter(None, (on_true, on_false)):
            branch(**arguments)

    replaced = {"launch": note, "launch_tiled": note, "capture_while": once, "capture_if": both}
    originals = {name: getattr(wp, name) for name in replaced}
    try:
        for name, function in replaced.items():
            setattr(wp, name, function)
        yield variants
    finally:
        for name, function in originals.items():
            setattr(wp, name, function)
