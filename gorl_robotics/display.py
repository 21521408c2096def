"""What a user sees while a robot trains: a live panel in a terminal, a few plain lines everywhere else."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from time import monotonic
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

REFRESHES_PER_SECOND = 2
PLAIN_SECONDS = 30.0
"""At most one plain line of progress in so many seconds."""
RECENT_UPDATES = 20
UNKNOWN = "\N{EN DASH}"


@dataclass(frozen=True)
class Progress:
    """Where training stands: never changed, only replaced, so the drawing thread needs no lock."""

    stage: int = 0
    steps: int = 0
    steps_per_second: float | None = None
    recent_speed: float | None = None
    monitor_return: float | None = None
    extra: tuple[tuple[str, float], ...] = ()


class Display:
    """Shows the progress of one run; a context manager that leaves the terminal as it found it.

    Args:
        title: what is trained, e.g. task and method.
        total_steps: steps of the whole run, at least 1.
        num_stages: stages of the whole run; stages count from 1.
        console: where to show it; standard output by default.
    """

    def __init__(self, title: str, total_steps: int, num_stages: int, console: Console | None = None) -> None:
        self._title = title
        self._total_steps = total_steps
        self._num_stages = num_stages
        self._console = console or Console()
        self._what = "starting"
        self._progress = Progress()
        self._speeds: deque[float] = deque(maxlen=RECENT_UPDATES)
        self._started = monotonic()
        self._next_line = -math.inf
        self._live: Live | None = None
        if self._console.is_interactive:
            # Live draws in a thread of its own: the training thread only leaves its numbers behind.
            self._live = Live(
                console=self._console,
                get_renderable=self._panel,
                refresh_per_second=REFRESHES_PER_SECOND,
            )

    def __enter__(self) -> Self:
        self._started = monotonic()
        if self._live:
            self._live.start(refresh=True)
        else:
            self.note(self._title)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def doing(self, what: str) -> None:
        """Says what the run does from now on, e.g. `training`."""
        if what == self._what:
            return
        self._what = what
        if not self._live:
            self.note(what)

    def update(
        self,
        *,
        stage: int,
        steps: int,
        steps_per_second: float,
        monitor_return: float | None,
        extra: Mapping[str, float] = {},
    ) -> None:
        """Takes the newest numbers.

        Args:
            stage: counted from 1.
            steps: steps done in the whole run.
            steps_per_second: speed since the last update.
            monitor_return: return of the deterministic monitor worlds; None while no episode has ended.
            extra: further numbers to show, by name.
        """
        if math.isfinite(steps_per_second) and steps_per_second > 0:
            self._speeds.append(steps_per_second)
        # The median: one update that waited for a compilation or a checkpoint says nothing of the rest.
        recent = median(self._speeds) if self._speeds else None
        shown = tuple(extra.items())
        self._progress = Progress(stage, steps, steps_per_second, recent, monitor_return, shown)
        if not self._live and monotonic() >= self._next_line:
            self._next_line = monotonic() + PLAIN_SECONDS
            self.note(self._line())

    def note(self, line: str) -> None:
        """Prints a line that stays, above the panel where there is one."""
        self._console.out(line, highlight=False)

    def _facts(self, now: Progress) -> list[tuple[str, str]]:
        left = seconds_left(self._total_steps - now.steps, now.recent_speed)
        return [
            ("stage", f"{now.stage or UNKNOWN}/{self._num_stages}"),
            ("steps", f"{now.steps:,} / {self._total_steps:,}"),
            ("steps per second", UNKNOWN if now.steps_per_second is None else f"{now.steps_per_second:,.0f}"),
            ("return", _number(now.monitor_return)),
            ("time elapsed", duration(monotonic() - self._started)),
            ("time left", duration(left)),
            *((name, f"{value:.4g}") for name, value in now.extra),
        ]

    def _percent(self, now: Progress) -> str:
        # The last rollout may go past the total.
        return f"{min(100.0, 100.0 * now.steps / self._total_steps):.1f} %"

    def _line(self) -> str:
        facts = [f"{name} {value}" for name, value in self._facts(self._progress)]
        return "  ".join([self._percent(self._progress), *facts])

    def _panel(self) -> Panel:
        now = self._progress
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(ratio=1)
        bar.add_column(justify="right", no_wrap=True)
        bar.add_row(ProgressBar(total=self._total_steps, completed=now.steps), self._percent(now))
        table = Table.grid(padding=(0, 2))
        facts = [(Text(name, style="dim"), Text(value)) for name, value in self._facts(now)]
        facts.insert(1, (Text("now", style="dim"), Text(self._what, style="bold")))
        for left in range(0, len(facts), 2):
            table.add_row(*(cell for fact in facts[left : left + 2] for cell in fact))
        return Panel(Group(bar, table), title=Text(self._title, style="bold"), title_align="left")


def seconds_left(steps: int, steps_per_second: float | None) -> float | None:
    """Seconds that `steps` more steps take at that speed; None while the speed is unknown."""
    return None if steps_per_second is None else max(0, steps) / steps_per_second


def duration(seconds: float | None) -> str:
    """Seconds as `h:mm:ss`; None as a dash."""
    if seconds is None:
        return UNKNOWN
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}"


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.1f}"
