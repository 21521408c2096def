"""The end of a control step by kernels: in Triton's interpreter where there is Triton, for real on a GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton comes with torch for CUDA only")
def test_kernels_interpreted_end_steps_as_torch_does() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment["TRITON_INTERPRET"] = "1"  # read when a kernel is defined
    command = [sys.executable, str(Path(__file__).with_name("endings.py"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_kernels_end_steps_as_torch_does(rate: float) -> None:
    from endings import check

    check("cuda", rate)


@pytest.mark.gpu
def test_a_kernel_looks_at_worlds_as_torch_does() -> None:
    from endings import check_look

    check_look("cuda")
