"""Lists the tasks, checks one, or begins a new one: python -m tasks [check NAME | new NAME --model ASSET]."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

import tasks
from envs.dry_run import dry_run
from gorl_robotics.command_line import Parser
from gorl_robotics.errors import InputError, run_main


def show() -> None:
    """Prints one row a task: what it is, how much it observes and controls, and its time steps."""
    table = Table(box=None)
    table.add_column("task", no_wrap=True)  # in full, to be copied
    for heading in ("what the robot must do", "obser-\nvation", "actions", "control\nstep, s", "physics\nstep, s"):
        table.add_column(heading)
    for name in tasks.names():
        try:
            table.add_row(*_row(name))
        except InputError as error:  # of an installed package; the others are none the worse for it
            table.add_row(name, Text(str(error), style="red"))
    Console().print(table)


def _row(name: str) -> tuple[str, ...]:
    task = tasks.make(name)
    model = task.compile()
    size, timing = dry_run(task, model).observation_size, task.timing
    about = (task.__doc__ or "").strip().split("\n")[0]
    return name, about, str(size), str(model.nu), f"{timing.control:g}", f"{timing.physics:g}"


def main() -> None:
    """The command line."""
    parser = Parser(prog="python -m tasks", description="Without a command: lists the tasks.")
    commands = parser.add_subparsers(dest="command")
    checking = commands.add_parser("check", help="try a task out before it is trained")
    checking.add_argument("task", help="its name, or FILE.py:CLASS")
    beginning = commands.add_parser("new", help="write a task for a model into the current folder")
    beginning.add_argument("name", help="of the file to write, for example my_robot")
    beginning.add_argument("--model", required=True, help="an MJCF or URDF file, or an asset such as suite:hopper")
    given = parser.parse_args()
    if given.command == "check":
        from tasks import check

        check.main(given.task)
    elif given.command == "new":
        from tasks import new

        new.main(given.name, given.model)
    else:
        show()


if __name__ == "__main__":
    run_main(main)
