"""Films one world of plain MuJoCo as an mp4 file."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import imageio_ffmpeg  # type: ignore[import-untyped]
import mujoco
import numpy as np

from gorl_robotics.errors import InputError
from gorl_robotics.files import atomic

WIDTH, HEIGHT = 640, 480
_MOST_FRAMES_PER_SECOND = 60


class Film:
    """Frames of one world, taken in real time; see `film`."""

    def __init__(self, model: mujoco.MjModel, frames: Generator[None, np.ndarray | None], every: int) -> None:
        # The first camera if the model has one; -1 is MuJoCo's free camera.
        self._camera = 0 if model.ncam else -1
        self._renderer = mujoco.Renderer(model, HEIGHT, WIDTH)
        self._frames, self._every, self._steps = frames, every, 0

    def take(self, data: mujoco.MjData) -> None:
        """To be called after each control step; not every one becomes a frame if they follow too fast."""
        if self._steps % self._every == 0:
            self._renderer.update_scene(data, self._camera)
            self._frames.send(self._renderer.render())
        self._steps += 1

    def close(self) -> None:
        """Frees the renderer."""
        self._renderer.close()


@contextmanager
def film(path: Path, model: mujoco.MjModel, control_dt: float) -> Iterator[Film]:
    """Writes `path` as a whole when the block ends, and not at all if it fails.

    Raises:
        InputError: the file is not named .mp4 or cannot be written, or this machine cannot render.
    """
    if path.suffix.lower() != ".mp4":
        raise InputError(f"video {str(path)!r}: expected a name that ends in .mp4")
    every = max(1, math.ceil(1 / (control_dt * _MOST_FRAMES_PER_SECOND) - 1e-6))
    buffer = model.vis.global_
    buffer.offwidth, buffer.offheight = max(buffer.offwidth, WIDTH), max(buffer.offheight, HEIGHT)
    try:
        with (
            atomic(path) as temporary,
            closing(_encoder(temporary, 1 / (control_dt * every))) as frames,
            closing(_renderable(model, frames, every)) as reel,
        ):
            yield reel
    except OSError as error:
        raise InputError(
            f"video {str(path)!r} cannot be written: {error.strerror or ' '.join(str(error).split())}"
        ) from error


def _encoder(path: Path, fps: float) -> Generator[None, np.ndarray | None]:
    path.touch()  # or the encoder says in lines of its own that it cannot
    # The temporary file's name says nothing of the format.
    encoder = imageio_ffmpeg.write_frames(
        str(path), (WIDTH, HEIGHT), fps=fps, macro_block_size=1, output_params=["-f", "mp4"]
    )
    encoder.send(None)
    return encoder


def _renderable(model: mujoco.MjModel, frames: Generator[None, np.ndarray | None], every: int) -> Film:
    try:
        return Film(model, frames, every)
    except Exception as error:  # each OpenGL platform fails in its own way
        raise InputError(
            f"MuJoCo cannot render here ({' '.join(str(error).split())}); install EGL or set MUJOCO_GL"
        ) from error
