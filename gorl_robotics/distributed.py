"""Several processes that learn as one: all that this project knows of torch.distributed.

`torchrun --nproc-per-node=2 train.py ...` starts them. Each has worlds of its own and the same weights. With a single
process every function here returns what it was given and launches nothing.

Four rules keep the processes together. All of them call the same functions of this file in the same order, so what
decides whether one is called must be the same everywhere: counts of steps, never a clock or a signal of one's own.
Collectives on a GPU run in one stream, one after the other: two that ran at once, in the streams of policy and critic,
could each hold the processors that the other one waits for. While a captured graph with collectives may be running, no
collective is launched on that GPU outside of a graph: what the host is told meanwhile, it gathers itself. And what is
reduced is the same to the last bit on every process, so that weights which began equal stay equal.
"""

from __future__ import annotations

import atexit
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")

# Longer than one process ever works alone: kernels that compile for the first time, a frozen evaluation, an export.
_TIMEOUT = timedelta(minutes=10)
# Seeds of processes are this far apart: torch's CPU generator sees their lower 32 bits only, and neighbouring seeds
# are other runs'.
_SEED_STRIDE = 0x9E3779B1
_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)  # its former name
_alone = False


@contextmanager
def processes() -> Iterator[None]:
    """Inside it the processes that torchrun started know one another; without torchrun it does nothing.

    A process that has left it ends without Python's taking anything down: files must be closed by then.

    Raises:
        ConnectionError: they do not find one another.
    """
    if not (dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1):
        yield
        return
    # By the third rule: NCCL need not order graphs and other launches, for which the host would wait at each of them.
    os.environ.setdefault("NCCL_GRAPH_MIXING_SUPPORT", "0")
    with _peers():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_TIMEOUT)
    code = 1
    try:
        yield
        any_process(False)  # all leave together
        code = 0
    finally:
        atexit.register(_leave_at_once, code)


@contextmanager
def alone() -> Iterator[None]:
    """Inside it this process counts as the only one: what it learns is from its own worlds, and nobody waits for it."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def rank() -> int:
    """This process's number among all."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes learn together."""
    return dist.get_world_size() if dist.is_initialized() and not _alone else 1


def is_main() -> bool:
    """Whether this process is the one that evaluates, shows and saves."""
    return rank() == 0


def local_rank() -> int:
    """This process's number on its machine."""
    return int(os.environ["LOCAL_RANK"]) if dist.is_initialized() else 0


def local_size() -> int:
    """How many of the processes are on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if dist.is_initialized() else 1


def launcher() -> str:
    """What a command line begins with that starts as many processes as there are."""
    return "python" if size() == 1 else f"torchrun --nproc-per-node={local_size()}"


def threads(wanted: int) -> int:
    """CPU threads of this process: as many as wanted; for 0 its share of the machine's cores."""
    if wanted or not dist.is_initialized():
        return wanted
    return max(1, len(os.sched_getaffinity(0)) // local_size())


def own_seed(seed: int) -> int:
    """The seed of what differs between processes; the first one's is `seed` itself."""
    return (seed + rank() * _SEED_STRIDE) % 2**63


def average(*tensors: Tensor) -> None:
    """Replaces tensors of one dtype by their means over all processes, in one collective; may be captured."""
    if size() == 1:
        return
    pieces = _pieces([tensor.detach() for tensor in tensors])
    flat = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    with _collective(flat.device):
        dist.all_reduce(flat)
    flat /= size()
    if len(pieces) > 1:
        for piece, mean in zip(pieces, flat.split([len(piece) for piece in pieces]), strict=True):
            piece.copy_(mean)


def average_gradients(network: nn.Module, *others: Tensor) -> None:
    """Averages the gradients of a network's parameters, and other tensors with them, over all processes."""
    average(*(parameter.grad for parameter in network.parameters() if parameter.grad is not None), *others)


def gather(tensor: Tensor) -> Tensor:
    """Every process's tensor (...), all of one shape, as (processes, ...) in order of rank; may be captured."""
    if size() == 1:
        return tensor.unsqueeze(0)
    flat = tensor.contiguous().view(-1)
    rows = flat.new_empty(size() * len(flat))
    with _collective(tensor.device):
        _all_gather(rows, flat)
    return rows.view(size(), *tensor.shape)


def merge_moments(count: int, mean: Tensor, squares: Tensor) -> tuple[int | Tensor, Tensor, Tensor]:
    """Moments of every process's samples together (Chan et al. 1979), the same to the last bit everywhere.

    Args:
        count: this process's number of samples.
        mean: their mean, (n,), float64.
        squares: their sum of squared deviations from it, (n,), float64.
    """
    if size() == 1:
        return count, mean, squares
    every = gather(torch.cat([mean.new_full((1,), count), mean, squares]))
    counts, means, deviations = every.split([1, len(mean), len(mean)], dim=1)
    total = counts.sum()
    merged = (counts * means).sum(dim=0) / total
    return total, merged, (deviations + counts * (means - merged) ** 2).sum(dim=0)


def mean_std(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, scalars, of every process's values together."""
    if size() == 1:
        return values.mean(), values.std()
    column = values.reshape(-1, 1).double()
    mean = column.mean(dim=0)
    count, mean, squares = merge_moments(len(column), mean, ((column - mean) ** 2).sum(dim=0))
    std = (squares / (count - 1)).sqrt()
    return mean.squeeze(0).to(values.dtype), std.squeeze(0).to(values.dtype)


def broadcast(*modules: nn.Module) -> None:
    """Gives every process the first one's weights and buffers, in place, once the device has nothing else to do."""
    if size() == 1:
        return
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # no captured graph is running any more
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            with _collective(tensor.device):
                dist.broadcast(tensor.detach(), src=0)


def total(number: int) -> int:
    """The sum of every process's number; the host waits."""
    return number if size() == 1 else int(_on_host(number, dist.ReduceOp.SUM))


def any_process(flag: bool) -> bool:
    """Whether it is so on any process; the hosts wait for one another."""
    return flag if size() == 1 else bool(_on_host(flag, dist.ReduceOp.MAX))


def from_main(function: Callable[[], T]) -> T:
    """What `function` returns on the first process, which alone calls it; the others wait."""
    if size() == 1:
        return function()
    box = [function() if is_main() else None]
    with _peers():
        dist.broadcast_object_list(box, src=0)
    return box[0]  # type: ignore[return-value]


def gather_states(state: dict[str, Any]) -> list[dict[str, Any]]:
    """On the first process every process's state, tensors and plain values, in order of rank; elsewhere nothing."""
    if size() == 1:
        return [state]
    every: list[Any] | None = [None] * size() if is_main() else None
    with _peers():
        dist.gather_object(_packed(state), every, dst=0)
    return [] if every is None else [state, *map(_unpacked, every[1:])]


def state_of(source: int, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` returns in process `source`, which alone calls it: tensors and plain values, on the host."""
    if size() == 1:
        return make()
    box = [_packed(make()) if rank() == source else None]
    with _peers():
        dist.broadcast_object_list(box, src=source)
    return _unpacked(box[0])  # type: ignore[arg-type]


def _leave_at_once(code: int) -> None:
    """Ends a process that has nothing left to do or, once its reason is told, one that has failed.

    Python's own way out would take down NCCL's communicators, which wait for captured graphs: an error's traceback may
    still hold some, and after an audition they once waited for more than six minutes, for what has not been found. As
    long as this process is there, the others wait for it. On CPUs one of many runs aborted there after its export, by
    std::terminate in one of the libraries; which of them has not been found either.
    """
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:  # also where nobody reads them any more
        os._exit(code)


def _packed(state: dict[str, Any]) -> bytes:
    packed = io.BytesIO()
    torch.save(state, packed)
    return packed.getvalue()


def _unpacked(packed: bytes) -> dict[str, Any]:
    return torch.load(io.BytesIO(packed), map_location="cpu", weights_only=True)


def _on_host(number: int, operation: Any) -> Tensor:
    box = torch.tensor(number, dtype=torch.int64)
    with _collective(box.device):
        dist.all_reduce(box, op=operation)
    return box


def _pieces(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors as (n,) each, those that follow one another in memory as one: fused kernels leave gradients so.

    In an order that is the same on every process, unlike that of addresses.
    """
    buffers = list(dict.fromkeys(_buffer(tensor) for tensor in tensors))
    pieces: list[Tensor] = []
    for tensor in sorted(tensors, key=lambda tensor: (buffers.index(_buffer(tensor)), tensor.storage_offset())):
        flat, last = tensor.view(-1), pieces[-1] if pieces else tensor.new_empty(0)
        if _buffer(flat) == _buffer(last) and flat.storage_offset() == last.storage_offset() + len(last):
            pieces[-1] = last.as_strided((len(last) + len(flat),), (1,))
        else:
            pieces.append(flat)
    return pieces


def _buffer(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@contextmanager
def _collective(device: torch.device) -> Iterator[None]:
    """What is called inside is ordered with the current stream and with every other collective of this process."""
    with _peers():
        if device.type != "cuda":
            yield
            return
        stream, current = _stream(device), torch.cuda.current_stream(device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            yield
        current.wait_stream(stream)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


@contextmanager
def _peers() -> Iterator[None]:
    """A process that is gone is an error of one line here: it has said why it went."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise ConnectionError(f"the processes of this run no longer reach one another: {reason}") from error
