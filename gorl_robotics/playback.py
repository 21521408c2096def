"""Scores an exported policy in plain MuJoCo: `python -m gorl_robotics.playback RUN`.

Needs numpy, mujoco and onnxruntime, and imageio for a video. The rewards are the task's own, from task.onnx.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gorl_robotics.command_line import Parser
from gorl_robotics.errors import InputError, run_main

if TYPE_CHECKING:
    from gorl_robotics.player import Exported


def find(path: Path) -> Path:
    """The export that `path` means: itself, or the one in that run folder.

    Raises:
        InputError: there is none.
    """
    if not path.is_dir():
        raise InputError(f"{str(path)!r} is not a folder; expected a run folder or an export folder")
    if (path / "policy.json").is_file():
        return path
    if not (path / "export").is_dir():
        raise InputError(f"{str(path)!r} holds no export; make one with python -m gorl_robotics.export {path}")
    return path / "export"


def play(
    exported: Exported,
    episodes: int,
    *,
    seed: int | None = None,
    stochastic: bool = False,
    video: Path | None = None,
) -> dict[str, Any]:
    """Plays `episodes` whole episodes and returns what `--json` prints.

    Without a seed they begin from the first exported starts in their order, with one from a random choice of them;
    no start is used twice. If training left its own returns from those starts, the paired difference is included.

    Raises:
        InputError: there are not that many starts, or the video cannot be made.
    """
    from gorl_robotics.player import Player

    count = len(exported.starts["qpos"])
    if not 1 <= episodes <= count:
        raise InputError(f"episodes={episodes}: the export holds {count} initial states; expected 1 to {count}")
    if seed is not None and seed < 0:
        raise InputError(f"seed={seed}: expected at least 0")
    random = np.random.default_rng(seed or 0)
    rows = np.arange(episodes) if seed is None else random.choice(count, episodes, replace=False)
    player = Player(exported, rows, random, stochastic)
    if video is None:
        while player.running.any():
            player.step()
    else:
        _play_filmed(player, video)
    result = {"task": exported.metadata["task"], "stochastic": stochastic, **summary(player.returns)}
    if "return" in exported.starts and not stochastic:
        result.update(paired(exported.starts["return"][rows], player.returns))
    return result


def summary(returns: np.ndarray) -> dict[str, float | int]:
    """Number, mean, standard deviation, 10th percentile and minimum of returns (N,)."""
    return {
        "episodes": len(returns),
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std(ddof=1)) if len(returns) > 1 else 0.0,
        "return_p10": float(np.quantile(returns, 0.1)),
        "return_min": float(returns.min()),
    }


def paired(training: np.ndarray, playback: np.ndarray) -> dict[str, float | int]:
    """Training minus playback over the starts whose training return is known; nothing if those are fewer than two."""
    difference = (training - playback)[np.isfinite(training)]
    if len(difference) < 2:
        return {}
    return {
        "paired_episodes": len(difference),
        "training_return_mean": float(training[np.isfinite(training)].mean()),
        "difference_mean": float(difference.mean()),
        "difference_standard_error": float(difference.std(ddof=1) / np.sqrt(len(difference))),
    }


def _play_filmed(player: Any, video: Path) -> None:
    """Plays, and films the first episode to its end."""
    from gorl_robotics.video import film

    with film(video, player.model, player.metadata["timing"]["control_dt"]) as reel:
        while player.running.any():
            filmed = player.running[0]
            player.step()
            if filmed:
                reel.take(player.data[0])


def _text(result: dict[str, Any]) -> str:
    kind = "stochastic" if result["stochastic"] else "deterministic"
    lines = [
        f"{result['task']}, {kind} policy, {result['episodes']} episodes in plain MuJoCo",
        f"return    mean {result['return_mean']:.1f}   std {result['return_std']:.1f}   "
        f"10th percentile {result['return_p10']:.1f}   min {result['return_min']:.1f}",
    ]
    if "paired_episodes" in result:
        difference = round(result["difference_mean"], 2) + 0.0  # no minus before a zero
        lines.append(
            f"training  mean {result['training_return_mean']:.1f} from {result['paired_episodes']} of these starts; "
            f"training - playback {difference:.2f} ± {result['difference_standard_error']:.2f} (standard error)"
        )
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = Parser(prog="python -m gorl_robotics.playback", description="Plays an exported policy in plain MuJoCo.")
    parser.add_argument("run", type=Path, help="a run folder or an export folder")
    parser.add_argument("--episodes", type=int, default=20, help="episodes, each from another start (default 20)")
    parser.add_argument("--seed", type=int, help="choose the starts at random; by default the first ones are taken")
    parser.add_argument("--video", type=Path, metavar="OUT.mp4", help="film the first episode")
    parser.add_argument("--stochastic", action="store_true", help="act with noise, as in training")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


def main() -> None:
    """The command line."""
    given = _arguments()
    if given.video is not None and sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")
    # MuJoCo chooses its renderer when it is imported, and where EGL is not installed would fail to import with it.
    from gorl_robotics.player import load

    exported = load(find(given.run))
    result = play(exported, given.episodes, seed=given.seed, stochastic=given.stochastic, video=given.video)
    print(json.dumps(result) if given.json else _text(result))


if __name__ == "__main__":
    run_main(main)
