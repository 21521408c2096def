"""A stage that is recorded, and what a refit is given of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from fake_environment import FakeEnvironment, small_config
from torch import Tensor

from gorl_robotics import checkpoint
from gorl_robotics.recorder import Recorder
from gorl_robotics.rollout import Rollout

STEPS, WORLDS = 8, 6
SAMPLES = STEPS * WORLDS
STAGE_END = 10 * SAMPLES
KEPT = 3  # rollouts that a refit is fitted to


class Run:
    """A stage's recorder, and the rollouts it was given."""

    def __init__(
        self,
        folder: Path,
        enabled: bool = True,
        resume: Any = None,
        rank: int = 0,
        device: str = "cpu",
        kept: int = KEPT,
        end: int = STAGE_END,
    ) -> None:
        self.path = folder / "rollouts" / f"stage-1-rank-{rank}.h5"
        self.rollout = Rollout.empty(FakeEnvironment(WORLDS, device=device), STEPS)
        config = small_config(refit__samples=kept * SAMPLES, storage__enabled=enabled)
        self.recorder = Recorder(self.path, self.rollout, end, config, {"task": "Fake"}, resume)

    def add(self, *numbers: int) -> None:
        """Adds the stage's rollouts of these numbers, counted from 1; each overwrites the one before."""
        for number in numbers:
            for name, value in filled(number).items():
                getattr(self.rollout, name).copy_(value)
            self.recorder.add(number * SAMPLES)


def filled(number: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(number)
    sizes = {"observation": 4, "terminal_observation": 4, "latent": 2, "action": 2}
    tensors = {name: torch.randn(STEPS, WORLDS, size, generator=draw) for name, size in sizes.items()}
    tensors["reward"] = torch.full((STEPS, WORLDS), float(number))
    tensors["terminated"] = torch.rand(STEPS, WORLDS, generator=draw) < 0.1
    return tensors


def assert_data(data: tuple[Tensor, Tensor], *numbers: int) -> None:
    """The data are these rollouts' observations and actions, in time's order."""
    for got, name in zip(data, ("observation", "action"), strict=True):
        assert torch.equal(got, torch.cat([filled(number)[name] for number in numbers]))


def interrupted(run: Run, folder: Path) -> Any:
    """The recorder's state by way of a checkpoint, as a resumed run gets it."""
    checkpoint.save(folder / "saved.pt", {"recorder": run.recorder.state_dict()})
    return checkpoint.load(folder / "saved.pt")["recorder"]
