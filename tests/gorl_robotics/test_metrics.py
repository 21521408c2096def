"""The csv and the events of a run, and what its user sees."""

from __future__ import annotations

import csv
import io
import math
import time
from pathlib import Path

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from gorl_robotics import display as display_module
from gorl_robotics.display import UNKNOWN, Display, duration, seconds_left
from gorl_robotics.errors import InputError
from gorl_robotics.metrics import MetricsLog


def read(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def write(folder: Path, steps: range, resume_rows: int | None = None) -> None:
    log = MetricsLog(folder, resume_rows)
    for step in steps:
        log.write({"steps": step, "return/monitor_mean": step / 3})
    log.close()


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    # Files of one second are read in the order of their names, in which the tenth comes before the ninth.
    return sorted((event.step, event.value) for event in events.Scalars(tag))


def test_the_first_row_fixes_the_columns(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.write({"steps": 10, "phase": "train, slow", "loss/policy": 0.5})
    log.write({"loss/policy": 0.25, "steps": 20})
    with pytest.raises(ValueError, match="'loss/value'"):
        log.write({"steps": 30, "loss/value": 1.0})
    with pytest.raises(ValueError, match="'steps'"):
        log.write({"loss/policy": 1.0})
    assert log.rows == 2
    # Read before close: a killed run keeps its rows.
    assert (tmp_path / "metrics.csv").read_text() == 'steps,phase,loss/policy\n10,"train, slow",0.5\n20,,0.25\n'
    log.close()


def test_floats_read_back_exactly(tmp_path: Path) -> None:
    values = [0.1 + 0.2, 1e-300, 1 / 3, -math.inf, 123456789.123456789]
    log = MetricsLog(tmp_path)
    for value in values:
        log.write({"steps": 1, "x": value})
    log.close()
    assert [float(row["x"]) for row in read(tmp_path)] == values


def test_a_resumed_log_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    whole.mkdir()
    resumed.mkdir()
    write(whole, range(6))
    write(resumed, range(5))
    with (resumed / "metrics.csv").open("a") as file:
        file.write("5,1.6")
    log = MetricsLog(resumed, resume_rows=3)
    assert log.rows == 3
    log.close()
    write(resumed, range(3, 6), resume_rows=3)
    assert (resumed / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    assert curve(resumed, "return/monitor_mean") == curve(whole, "return/monitor_mean")


def test_a_run_stopped_before_its_first_row_resumes(tmp_path: Path) -> None:
    write(tmp_path, range(0))
    (tmp_path / "metrics.csv").write_text("steps,retu")
    write(tmp_path, range(2), resume_rows=0)
    assert [row["steps"] for row in read(tmp_path)] == ["0", "1"]


def test_what_cannot_be_resumed_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="missing") as missing:
        MetricsLog(tmp_path, resume_rows=1)
    write(tmp_path, range(2))
    before = (tmp_path / "metrics.csv").read_bytes()
    with pytest.raises(InputError, match=r"has 2 rows.*after 3") as short:
        MetricsLog(tmp_path, resume_rows=3)
    with pytest.raises(InputError, match="exists already") as exists:
        MetricsLog(tmp_path)
    assert all("\n" not in str(error.value) for error in (missing, short, exists))
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_a_log_of_an_older_version_is_gone_on_with(tmp_path: Path) -> None:
    write(tmp_path, range(3))
    log = MetricsLog(tmp_path, resume_rows=2, columns=("return/monitor_mean", "worlds/lost"))
    log.write({"steps": 2, "worlds/lost": 5})
    log.close()
    assert read(tmp_path) == [
        {"steps": "0", "return/monitor_mean": "0.0", "worlds/lost": ""},
        {"steps": "1", "return/monitor_mean": repr(1 / 3), "worlds/lost": ""},
        {"steps": "2", "return/monitor_mean": "", "worlds/lost": "5"},
    ]


def test_curves_are_the_finite_numbers_over_steps(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.write({"steps": 64, "iteration": 1, "stage": 1, "phase": "train", "loss/policy": math.nan})
    log.write({"steps": 128, "iteration": 2, "stage": 1, "phase": "train", "loss/policy": 0.5})
    log.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["loss/policy", "stage"]
    assert curve(tmp_path, "loss/policy") == [(128, 0.5)]
    assert curve(tmp_path, "stage") == [(64, 1.0), (128, 1.0)]


def show(display: Display, steps: int, speed: float = 100.0, monitor: float | None = 873.21) -> None:
    display.update(
        stage=2,
        steps=steps,
        steps_per_second=speed,
        monitor_return=monitor,
        extra={"kl": 0.0123},
    )


@pytest.fixture
def pipe() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=60)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Console:
    monkeypatch.setenv("TERM", "xterm")
    return Console(file=io.StringIO(), force_terminal=True, width=100)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_pipe_gets_few_plain_lines(pipe: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(display_module, "monotonic", lambda: clock[0])
    with Display("HopperStand", 1_000_000, 4, pipe) as display:
        for second in range(60):
            clock[0] = 1001.0 + second
            display.doing("training")
            show(display, 10_000 * (second + 1))
        display.note("stage 2 ends: return [873.2]")
    lines = text(pipe).splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "HopperStand",
        "training",
        "1.0 %",
        "31.0 %",
        "stage 2 ends: return [873.2]",
    ]
    for part in ("stage 2/4", "steps 310,000 / 1,000,000", "return 873.2"):
        assert part in lines[3]
    for part in ("steps per second 100", "time elapsed 0:00:31", "time left 1:55:00", "kl 0.0123"):
        assert part in lines[3]
    assert all(character.isprintable() for line in lines for character in line)


def test_a_terminal_gets_a_panel(terminal: Console) -> None:
    with Display("HopperStand [gorl]", 1_000_000, 4, terminal) as display:
        display.doing("training")
        show(display, 250_000)
        display.note("stage 1 ends")
    panel = text(terminal)
    parts = (
        "HopperStand [gorl]",
        "25.0 %",
        "2/4",
        "250,000 / 1,000,000",
        "873.2",
        "2:05:00",
        "training",
    )
    for part in (*parts, "stage 1 ends", "╭", "╰"):
        assert part in panel


def test_before_any_number_is_known(terminal: Console) -> None:
    with Display("HopperStand", 1_000_000, 4, terminal) as display:
        show(display, 0, speed=0.0, monitor=None)
    assert text(terminal).count(UNKNOWN) >= 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_exception_leaves_the_terminal_clean(terminal: Console, error: type[BaseException]) -> None:
    with pytest.raises(error), Display("HopperStand", 1_000_000, 4, terminal):
        raise error
    hidden, shown = "\x1b[?25l", "\x1b[?25h"
    assert text(terminal).rfind(shown) > text(terminal).rfind(hidden) >= 0
    before = len(text(terminal))
    terminal.print("after")
    assert text(terminal)[before:] == "after\n"


def test_an_update_costs_the_training_thread_little(terminal: Console) -> None:
    with Display("HopperStand", 1_000_000, 4, terminal) as display:
        started = time.thread_time()
        for step in range(200):
            show(display, step)
        assert (time.thread_time() - started) / 200 < 1e-3


def test_time_left() -> None:
    assert seconds_left(100, None) is None
    assert seconds_left(100, 50.0) == 2.0
    assert seconds_left(-5, 50.0) == 0.0
    assert [duration(value) for value in (None, 0.4, 61, 100 * 3600)] == [
        UNKNOWN,
        "0:00:00",
        "0:01:01",
        "100:00:00",
    ]


def test_one_slow_update_does_not_spoil_the_time_left(pipe: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display_module, "PLAIN_SECONDS", 0.0)
    with Display("HopperStand", 1_000, 4, pipe) as display:
        for speed in (10.0, 10.0, 0.01):
            show(display, 900, speed)
    assert "time left 0:00:10" in text(pipe).splitlines()[-1]
