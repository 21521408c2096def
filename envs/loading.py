"""What takes seconds to load, loaded side by side."""

from __future__ import annotations

import ctypes
from importlib.util import find_spec
from pathlib import Path
from threading import Thread

_DEPENDENCIES, _CUDA = "libtorch_global_deps.so", "libtorch_cuda.so"


def load_side_by_side() -> None:
    """Imports MuJoCo Warp while torch's CUDA libraries are loaded, in that order those of torch's own import.

    To be called before torch is imported. Warp's modules are Python alone, torch's libraries are none of it: ctypes
    lets the interpreter go on meanwhile. Where torch is not built for CUDA nothing happens.
    """
    torch = find_spec("torch")
    folder = Path(torch.origin).parent / "lib" if torch and torch.origin else Path()
    if not (folder / _CUDA).exists():
        return
    import mujoco  # noqa: F401 - libraries of its own, which would wait for torch's

    Thread(target=_load, args=(folder,), name="libraries").start()
    import mujoco_warp  # noqa: F401


def _load(folder: Path) -> None:
    try:
        ctypes.CDLL(str(folder / _DEPENDENCIES), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / _CUDA))
    except OSError:
        return  # torch's own import knows more places to look, and says what is missing
