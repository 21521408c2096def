"""docs/your_robot.md: its commands work as they stand there, its code is that of the repository's tasks."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import running

from gorl_robotics import export
from tasks.ant import Ant

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs" / "your_robot.md").read_text()
COMMANDS = re.findall(r"^    (python .*)$", GUIDE, re.MULTILINE)
NOT_HERE = "python -m tasks new"  # needs a model of the reader's own; tests/tasks/test_new.py runs it
TINY = {"total_steps": 6 * running.SAMPLES, "evaluation_worlds": 10, "stages.fractions": "[0.5,0.5]"}


BLOCKS = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


def lines(text: str, indent: int = 0) -> str:
    """Without blank lines, of which ruff has other numbers in a document; moved to the right."""
    return "\n".join(" " * indent + line for line in text.splitlines() if line.strip()) + "\n"


@pytest.mark.parametrize("block", BLOCKS, ids=lambda text: text.split("\n")[0])
def test_the_code_is_that_of_the_tasks(block: str) -> None:
    sources = [lines((ROOT / "tasks" / name).read_text()) for name in ("ant.py", "ant_velocity.py")]
    assert any(lines(block, indent) in source for source in sources for indent in (0, 4, 8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the reader works, after training as the guide says, with few steps of short episodes."""
    cwd = tmp_path_factory.mktemp("reader")
    (train,) = (line for line in COMMANDS if "train.py" in line)
    tiny = {**running.TINY, **TINY}
    del tiny["task"]
    arguments = [*shlex.split(train)[2:], *(f"{name}={value}" for name, value in tiny.items())]
    with mock.patch.object(Ant, "episode_length", 25):
        ended = running.here(arguments, cwd)
        assert ended.code == 0, ended.err
        yield cwd


@pytest.mark.parametrize("line", [line for line in COMMANDS if "train.py" not in line])
def test_its_commands_work(line: str, folder: Path) -> None:
    if line.startswith(NOT_HERE):
        pytest.skip("needs a model of the reader's own")
    run = running.only_run(folder).relative_to(folder)
    words = shlex.split(re.sub(r"runs/Ant/\S+", str(run), line))
    if words[1] == "-c":
        ended = subprocess.run([sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True, check=True)
        assert ended.stdout == "8 actuators\n"
        return
    if words[2] == "tasks":
        subprocess.run([sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True, check=True)
        return
    if words[2] == "gorl_robotics.export":  # here, where an episode of the ant is short
        told = running.here(words[3:], folder, export.main)
        assert (told.code, told.err) == (0, "")
        return
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, *words[1:]]
    played = subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert played.returncode == 0, played.stderr
    if "--video" in words:
        assert (folder / "ant.mp4").stat().st_size > 1000
    else:
        assert "Ant, deterministic policy, 20 episodes" in played.stdout


def test_every_command_of_the_guide_is_run_or_skipped_knowingly() -> None:
    assert len(COMMANDS) == 7
    assert [line for line in COMMANDS if line.startswith(NOT_HERE)] == [
        "python -m tasks new my_robot --model robot.xml"
    ]
