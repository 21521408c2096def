"""Random numbers for the worlds: one draw gives every world its own numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Draws(Protocol):
    """A source of random numbers with one row per world."""

    def uniform(self, *size: int) -> Tensor:
        """Uniform numbers in [0, 1), shape (N, *size)."""

    def normal(self, *size: int) -> Tensor:
        """Standard normal numbers, shape (N, *size)."""


class BatchDraws:
    """Draws for all worlds from one generator: fast, and safe inside a CUDA graph."""

    def __init__(self, num_worlds: int, generator: torch.Generator, dtype: torch.dtype) -> None:
        self._num_worlds, self._generator, self._dtype = num_worlds, generator, dtype

    def uniform(self, *size: int) -> Tensor:
        """Uniform numbers in [0, 1), shape (N, *size)."""
        return self._empty(size).uniform_(generator=self._generator)

    def normal(self, *size: int) -> Tensor:
        """Standard normal numbers, shape (N, *size)."""
        return self._empty(size).normal_(generator=self._generator)

    def _empty(self, size: tuple[int, ...]) -> Tensor:
        return torch.empty(self._num_worlds, *size, dtype=self._dtype, device=self._generator.device)


class WorldDraws:
    """Draws a world's row from that world's own generator, so that it does not depend on its neighbours.

    Args:
        generators: one for each world; an exchanged item counts from the next draw on.
        dtype: of the numbers.
        device: of the numbers.
        mask: (N,) bool; the others' rows are zeros and their generators do not advance. By default all draw.
    """

    def __init__(
        self,
        generators: Sequence[np.random.Generator],
        dtype: torch.dtype,
        device: torch.device,
        mask: Tensor | None = None,
    ) -> None:
        self._generators, self._dtype, self._device, self._mask = generators, dtype, device, mask

    def only(self, mask: Tensor) -> WorldDraws:
        """The same generators, of which only those in `mask` (N,) draw."""
        return WorldDraws(self._generators, self._dtype, self._device, mask)

    def uniform(self, *size: int) -> Tensor:
        """Uniform numbers in [0, 1), shape (N, *size)."""
        return self._rows(size, lambda generator: generator.random(size))

    def normal(self, *size: int) -> Tensor:
        """Standard normal numbers, shape (N, *size)."""
        return self._rows(size, lambda generator: generator.standard_normal(size))

    def _rows(self, size: tuple[int, ...], draw: Callable[[np.random.Generator], float | np.ndarray]) -> Tensor:
        rows = np.zeros((len(self._generators), *size))
        wanted = range(len(rows)) if self._mask is None else np.flatnonzero(self._mask.cpu()).tolist()
        for i in wanted:
            rows[i] = draw(self._generators[i])
        return torch.as_tensor(rows, dtype=self._dtype, device=self._device)
