"""A run to go on with whose decoder knows both ways: what PPO makes of two peaks that are there from the start.

    python -m benchmarks.two_way_start runs/.../checkpoints/stage-2.pt FOLDER refit.updates=3000 refit.draws=1
    python train.py resume=FOLDER/checkpoints/stage-2.pt

FOLDER gets the checkpoint with another decoder, fitted to the run's recording and the mirror image of that, and the
run's metrics. The checkpoint must be a GoRL run's of a stage that ended with a refit: there the latents are N(0, I).
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import torch

from benchmarks.action_sources import fitted_to_both, load, recorded, refit_settings
from benchmarks.arguments import apart
from benchmarks.symmetry import MIRRORS
from gorl_robotics import checkpoint
from gorl_robotics.command_line import Parser
from gorl_robotics.config import config_values, resolve
from gorl_robotics.errors import InputError, run_main
from gorl_robotics.methods.gorl import GorlPolicy


def main() -> None:
    """The command line."""
    parser = Parser(
        prog="python -m benchmarks.two_way_start",
        usage="%(prog)s CHECKPOINT FOLDER [refit.NAME=VALUE ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    settings, others = apart(sys.argv[1:])
    arguments, given = parser.parse_args(others), refit_settings(settings)
    path, one = checkpoint.find(arguments.checkpoint), load(arguments.checkpoint)
    data, mirror = recorded(one), MIRRORS.get(one.config.task_name)
    begins = isinstance(one.policy, GorlPolicy) and 0 < one.stage < len(one.config.stages.fractions)
    if not (begins and data and mirror and path.name == f"stage-{one.stage}.pt"):
        raise InputError(f"{path}: expected a GoRL run's checkpoint stage-K.pt after a refit, its recording beside it")
    assert isinstance(one.policy, GorlPolicy)
    config = resolve({**config_values(one.config), **given})
    decoder = fitted_to_both(one.policy, data, config, mirror, torch.Generator().manual_seed(0))
    one.policy.decoder.load_state_dict(decoder.state_dict())
    saved = {name: value for name, value in checkpoint.load(path).items() if not name.startswith("format")}
    checkpoint.save(arguments.folder / "checkpoints" / path.name, {**saved, "policy": one.policy.state_dict()})
    shutil.copy2(path.resolve().parent.parent / "metrics.csv", arguments.folder)


if __name__ == "__main__":
    run_main(main)
