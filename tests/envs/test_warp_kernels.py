"""Compiling what a function launches, on the CPU."""

from __future__ import annotations

import pytest
import warp as wp

from envs.warp_kernels import compile_kernels, small_blocks


@wp.kernel(module="unique")
def _fill(numbers: wp.array(dtype=float)):  # type: ignore[no-untyped-def, valid-type]
    numbers[wp.tid()] = 1.0  # type: ignore[index]


@wp.kernel(module="unique")
def _count_down(left: wp.array(dtype=int)):  # type: ignore[no-untyped-def, valid-type]
    left[0] = left[0] - 1  # type: ignore[index]


@wp.kernel(module="unique")
def _half(numbers: wp.array(dtype=float)):  # type: ignore[no-untyped-def, valid-type]
    numbers[wp.tid()] = numbers[wp.tid()] / 2.0  # type: ignore[index]


@wp.kernel(module="unique")
def _of_nothing(numbers: wp.array(dtype=float)):  # type: ignore[no-untyped-def, valid-type]
    numbers[wp.tid()] = 2.0  # type: ignore[index]


def test_what_is_launched_is_loaded_and_not_run() -> None:
    with wp.ScopedDevice("cpu"):
        numbers, left = wp.zeros(4, dtype=float), wp.full(1, 3, dtype=int)

        def work() -> None:
            wp.launch(_fill, dim=4, inputs=[numbers])
            wp.capture_while(left, while_body=lambda: wp.launch(_count_down, dim=1, inputs=[left]))
            wp.launch(_of_nothing, dim=0, inputs=[numbers])

        compile_kernels(work)
        assert [bool(kernel.module.execs) for kernel in (_fill, _count_down, _of_nothing)] == [True, True, False]
        assert numbers.numpy().tolist() == [0.0] * 4
        assert left.numpy().tolist() == [3]
        work()  # launches are what they were
        assert numbers.numpy().tolist() == [1.0] * 4
        assert left.numpy().tolist() == [0]


def test_blocks_are_small_where_a_launch_does_not_say_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []
    monkeypatch.setattr(wp, "launch", lambda kernel, dim, inputs, block_dim: launched.append((dim, inputs, block_dim)))
    before = wp.launch
    with small_blocks():
        wp.launch(_fill, 4, [1.0])
        wp.launch(_fill, 5, inputs=[2.0], block_dim=128)
    assert launched == [(4, [1.0], 64), (5, [2.0], 128)]
    assert wp.launch is before


@pytest.mark.gpu
def test_small_blocks_are_compiled_as_they_are_launched() -> None:
    def work() -> None:
        with small_blocks():
            wp.launch(_half, dim=4, inputs=[numbers])

    with wp.ScopedDevice("cuda"):
        numbers = wp.full(4, 3.0, dtype=float)
        compile_kernels(work)
        compiled = list(_half.module.execs)
        work()
        assert list(_half.module.execs) == compiled
        assert numbers.numpy().tolist() == [1.5] * 4
