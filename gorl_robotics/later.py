"""A tensor on its way to the host, which need not wait for it."""

from __future__ import annotations

import time

import torch
from torch import Tensor


class Later:
    """The values that a tensor has now, as far as the current stream has got when it comes to that.

    A device that is waited for after each piece of work idles until the host has launched the next: reading the
    numbers of one iteration while the next one runs costs nothing.

    Attributes:
        arrived: when the host had the values, on the clock of `time.monotonic`.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._host = tensor.clone()
        self.arrived = time.monotonic()

    @classmethod
    def of(cls, *tensors: Tensor) -> Later:
        """All numbers of several tensors, (n,), which may have been made in other streams."""
        for tensor in tensors:
            if tensor.is_cuda:
                tensor.record_stream(torch.cuda.current_stream())  # its memory is in use until then
        return cls(torch.cat([tensor.view(-1) for tensor in tensors]))

    def now(self) -> Tensor:
        """The values, on the host, which waits for them."""
        if self._event is not None:
            self._event.synchronize()
            self._event, self.arrived = None, time.monotonic()
        return self._host
