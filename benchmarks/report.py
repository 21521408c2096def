"""Draws the curves of learning runs and writes the table of their results, beside what is published.

python -m benchmarks.report                                  # benchmarks/results/learning and …/throughput
python -m benchmarks.report benchmarks/results/hopper_stand --figure former.png --table ""
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from benchmarks.provenance import RESULTS
from benchmarks.series import load
from gorl_robotics.command_line import Parser
from gorl_robotics.errors import InputError, run_main
from gorl_robotics.files import atomic


def main() -> None:
    """The command line."""
    parser = Parser(
        prog="python -m benchmarks.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # a mistyped option would name a file to be written
    )
    parser.add_argument("folders", type=Path, nargs="*", metavar="RESULTS_FOLDER")
    parser.add_argument("--figure", default="docs/learning.png", help="learning curves; '' draws none; %(default)s")
    parser.add_argument("--table", default="docs/results.md", help="Markdown; '' writes none; %(default)s")
    parser.add_argument("--throughput", default="docs/throughput.png", help="rates, where there are any; %(default)s")
    arguments = parser.parse_args()
    usual = [folder for folder in (RESULTS / "learning", RESULTS / "throughput") if folder.is_dir()]
    folders = arguments.folders or usual
    every, throughput = load(folders)
    if not every and not throughput:
        raise InputError(f"no result files in {', '.join(map(str, folders)) or RESULTS}; run benchmarks.learning first")

    from benchmarks.figures import draw_learning, draw_throughput  # matplotlib takes a second
    from benchmarks.tables import page

    if arguments.figure and any(series.results for series in every):
        draw_learning(every, Path(arguments.figure))
        print(arguments.figure)
    if arguments.table and every:
        with atomic(Path(arguments.table)) as temporary:
            temporary.write_text(page(every, [os.path.relpath(folder) for folder in folders]))
        print(arguments.table)
    if arguments.throughput and draw_throughput(throughput, Path(arguments.throughput)):
        print(arguments.throughput)


if __name__ == "__main__":
    run_main(main)
