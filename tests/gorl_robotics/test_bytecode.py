"""Where bytecode is kept, seen from a Python that imports a torch of one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LOOK = """
import sys
from gorl_robotics.bytecode import keep_bytecode
keep_bytecode()
import torch
print(torch.__cached__, sys.pycache_prefix)
"""
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with a torch that has no bytecode yet."""
    (tmp_path / "site" / "torch").mkdir(parents=True)
    (tmp_path / "site" / "torch" / "__init__.py").write_text("line = 1\n")
    return tmp_path / "site"


def start(site: Path, **environment: str) -> tuple[Path, str]:
    """Where the torch there has its bytecode, if it has any, and the prefix, which may be None."""
    given = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    given |= {"PYTHONPATH": f"{site}{os.pathsep}{ROOT}", "XDG_CACHE_HOME": str(site.parent / "cache"), **environment}
    done = subprocess.run([sys.executable, "-c", LOOK], env=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    cached, prefix = done.stdout.split()
    return Path(cached), prefix


def test_where_it_may_not_be_written_beside_torch_it_is_in_the_cache(site: Path) -> None:
    cached, _ = start(site, PYTHONDONTWRITEBYTECODE="1")
    assert cached.is_relative_to(site.parent / "cache" / "gorl_robotics")
    assert cached.exists()
    assert not (site / "torch" / "__pycache__").exists()
    written = cached.stat().st_mtime_ns
    assert start(site, PYTHONDONTWRITEBYTECODE="1")[0].stat().st_mtime_ns == written  # read, not written again


def test_where_it_may_be_written_it_is_left_to_python(site: Path) -> None:
    cached, prefix = start(site)
    assert prefix == "None"
    assert cached.exists()
    assert cached.is_relative_to(site)
    assert start(site, PYTHONDONTWRITEBYTECODE="1") == (cached, "None")  # there already, and so read from there
    assert not (site.parent / "cache").exists()


def test_without_a_place_to_write_nothing_changes(site: Path) -> None:
    (site.parent / "cache").touch()  # a file, in which there can be no folder
    assert start(site, PYTHONDONTWRITEBYTECODE="1")[1] == "None"


def test_a_place_that_the_user_has_named_stays(site: Path) -> None:
    named = str(site.parent / "named")
    assert start(site, PYTHONPYCACHEPREFIX=named, PYTHONDONTWRITEBYTECODE="1")[1] == named
    assert not (site.parent / "cache").exists()
