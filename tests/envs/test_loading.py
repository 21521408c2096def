"""What is loaded before torch, and where."""

import os
import subprocess
import sys

LOAD = """
import sys
from envs.loading import load_side_by_side
load_side_by_side()
assert "torch" not in sys.modules
print("mujoco_warp" in sys.modules)
"""


def loads_warp(path=""):
    search = os.pathsep.join(each for each in (str(path), os.getcwd()) if each)
    done = subprocess.run(
        [sys.executable, "-c", LOAD], env={**os.environ, "PYTHONPATH": search}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.split()[-1] == "True"


def torch_with(folder, *libraries):
    (folder / "torch" / "lib").mkdir(parents=True)
    (folder / "torch" / "__init__.py").write_text("raise RuntimeError('imported')")
    for library in libraries:
        (folder / "torch" / "lib" / library).write_text("not a library")
    return folder


def test_torch_without_cuda_loads_nothing(tmp_path):
    assert not loads_warp(torch_with(tmp_path, "libtorch_cpu.so"))


def test_torch_with_cuda_loads_warp_and_says_nothing_of_libraries_that_do_not_load(tmp_path):
    assert loads_warp(torch_with(tmp_path, "libtorch_cuda.so"))
