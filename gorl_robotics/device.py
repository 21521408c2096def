"""Where a run computes."""

from __future__ import annotations

import torch

from gorl_robotics import distributed
from gorl_robotics.errors import InputError


def choose_device(name: str) -> torch.device:
    """The device that `device=name` means: auto takes CUDA if there is one, each of several processes its own.

    Raises:
        InputError: the name is no device, or the device is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device={name!r}: expected auto, cuda, cuda:N or cpu") from error
    if device.type not in ("cuda", "cpu"):
        raise InputError(f"device={name!r}: expected auto, cuda, cuda:N or cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device={name!r}: this machine has no CUDA device; expected device=cpu or device=auto")
    if device.type == "cuda" and distributed.size() > 1:
        return _own_device(name, device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device={name!r}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def _own_device(name: str, device: torch.device) -> torch.device:
    """The GPU of this one of several processes."""
    if device.index is not None:
        raise InputError(f"device={name!r}: each of several processes takes its own GPU; expected auto, cuda or cpu")
    if distributed.local_size() > torch.cuda.device_count():
        raise InputError(
            f"device={name!r}: torchrun started {distributed.local_size()} processes on this machine, "
            f"which has {torch.cuda.device_count()} CUDA devices; expected --nproc-per-node at most that"
        )
    return torch.device("cuda", distributed.local_rank())


def prepare_device(device: torch.device, tf32: bool = False) -> torch.device:
    """Makes `device` current. On CUDA everything, Warp included, works in one side stream, which can be captured.

    With `tf32` networks multiply there with ten bits behind the point instead of 23.
    """
    # The networks are small: a second thread gains little, and where cores are shared the threads spend their time
    # waiting for one another. The cores are the physics' to use.
    torch.set_num_threads(1)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
        # Before the learner's other streams: what the next rollout needs goes first.
        torch.cuda.set_stream(torch.cuda.Stream(priority=-1))
    return device
