"""What a user is told: one line with the nearest right name, and exit code 2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gorl_robotics.errors import InputError, run_main, unknown

TASKS = ["CartpoleBalance", "CartpoleSwingup", "HopperHop", "HopperStand"]


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("HoperStand", "HopperStand"), ("hopperhop", "HopperHop"), ("CARTPOLEBALANCE", "CartpoleBalance")],
)
def test_the_nearest_name_is_offered(name: str, nearest: str) -> None:
    assert str(unknown("task", name, TASKS)) == f"unknown task {name!r}; did you mean {nearest!r}?"


def test_without_a_near_name_all_are_listed() -> None:
    assert str(unknown("task", "xyz", reversed(TASKS))) == f"unknown task 'xyz'; known: {', '.join(TASKS)}"
    assert str(unknown("task", "xyz", [])) == "unknown task 'xyz'; known: none"


def test_an_input_error_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise unknown("task", "Hopper", TASKS)

    with pytest.raises(SystemExit) as ended:
        run_main(main)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: unknown task 'Hopper'")
    assert err.count("\n") == 1


def test_other_errors_keep_their_traceback() -> None:
    def main() -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        run_main(main)
    run_main(lambda: None)
    assert issubclass(InputError, ValueError)


@pytest.mark.parametrize(("fault", "told"), [("raise KeyboardInterrupt", ""), ("1 / 0", "ZeroDivisionError")])
def test_ctrl_c_while_modules_are_imported_leaves_no_traceback(tmp_path: Path, fault: str, told: str) -> None:
    (tmp_path / "torch.py").write_text(f"{fault}\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    program = Path(__file__).parents[2] / "train.py"
    ended = subprocess.run([sys.executable, str(program)], env=environment, capture_output=True, text=True, timeout=60)
    assert told in ended.stderr
    assert ("Traceback" in ended.stderr) == bool(told)
    assert ended.returncode == (1 if told else -2)
