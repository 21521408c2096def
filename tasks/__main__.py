"""Lists the tasks: python -m tasks."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

import tasks
from envs.dry_run import dry_run
from gorl_robotics.errors import run_main


def main() -> None:
    """Prints one row a task: what it is, how much it observes and controls, and its time steps."""
    table = Table("task", "what the robot must do", "observation", "actions", "control step", "physics step", box=None)
    for name in tasks.names():
        task = tasks.make(name)
        model = task.compile()
        size, timing = dry_run(task, model).observation_size, task.timing
        summary = (task.__doc__ or "").strip().split("\n")[0]
        table.add_row(name, summary, str(size), str(model.nu), f"{timing.control} s", f"{timing.physics} s")
    Console().print(table)


if __name__ == "__main__":
    run_main(main)
