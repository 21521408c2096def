"""Compiling for CUDA in other processes; it takes no GPU."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import warp as wp
from warp._src import build

from envs import cuda_compilers
from envs.cuda_compilers import compiling_elsewhere

CUDA_BUILD = build.build_cuda


@wp.kernel(module="unique", enable_backward=False)
def twice(x: wp.array(dtype=float)):  # type: ignore[valid-type,no-untyped-def]
    i = wp.tid()
    x[i] = 2.0 * x[i]  # type: ignore[index]


@pytest.fixture
def builds_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is compiled in this process."""
    paths: list[str] = []

    def note(path: str, *arguments: Any, **options: Any) -> None:
        paths.append(path)
        CUDA_BUILD(path, *arguments, **options)

    monkeypatch.setattr(build, "build_cuda", note)
    yield paths
    assert build.build_cuda is note  # the context has put it back


def compiled(folder: Path) -> bytes:
    """The kernel's program for an H100."""
    files = wp.compile_aot_module(twice.module, arch=90, module_dir=folder)
    return next(file for file in files if file.suffix in (".cubin", ".ptx")).read_bytes()


def test_another_process_compiles_the_same(tmp_path: Path, builds_here: list[str]) -> None:
    with compiling_elsewhere():
        there = compiled(tmp_path / "there")
    assert not builds_here
    assert compiled(tmp_path / "here") == there
    assert len(builds_here) == 1


@pytest.mark.parametrize("program", ["raise SystemExit", "import sys; sys.stdin.buffer.read(1)", None])
def test_what_no_other_process_can_compile_is_compiled_here(
    program: str | None, tmp_path: Path, builds_here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = tmp_path / "program.py"
    if program:
        ends.write_text(program)
    else:
        monkeypatch.setattr(cuda_compilers.sys, "executable", str(tmp_path / "no_python"))
    monkeypatch.setattr(cuda_compilers, "_PROGRAM", ends)
    with compiling_elsewhere():
        assert compiled(tmp_path / "cache")
    assert len(builds_here) == 1


def test_an_error_there_is_raised_here(tmp_path: Path) -> None:
    source = tmp_path / "program.cu"
    source.write_text("this is no program\n")
    with compiling_elsewhere(), pytest.raises(Exception, match="build failed"):
        build.build_cuda(str(source), 90, str(tmp_path / "program.cubin"), pch_dir=None)


def test_no_process_starts_before_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_compilers.subprocess, "Popen", pytest.fail)
    with compiling_elsewhere():
        pass
