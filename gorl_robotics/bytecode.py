"""Python's bytecode, kept where it may be written: without it each start compiles all of torch anew, for seconds."""

from __future__ import annotations

import os
import sys
from importlib.util import cache_from_source, find_spec
from pathlib import Path


def keep_bytecode() -> None:
    """Has Python keep bytecode in this project's cache, ~/.cache/gorl_robotics, if torch's is kept nowhere else.

    That is where torch was installed without it and Python may not write beside it: the folder is another user's, or
    `PYTHONDONTWRITEBYTECODE` is set, as images of containers have it so that none lies among their files. To be called
    before torch is imported.
    """
    torch = find_spec("torch")
    if sys.pycache_prefix is not None or torch is None or torch.origin is None:
        return
    may_write = not sys.dont_write_bytecode and os.access(Path(torch.origin).parent, os.W_OK)
    if may_write or Path(cache_from_source(torch.origin)).exists():
        return
    try:
        given = Path(os.environ.get("XDG_CACHE_HOME", ""))
        cache = (given if given.is_absolute() else Path.home() / ".cache") / "gorl_robotics" / "bytecode"
        cache.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no place that may be written, or a user without a home
        return
    if os.access(cache, os.W_OK):  # or what is kept elsewhere would not be read any more, for nothing
        sys.pycache_prefix = str(cache)
        sys.dont_write_bytecode = False
