"""Runs a task's methods on tensors that have shapes but no data: what a CUDA graph cannot record is found on a CPU.

A graph records device work only. `.item()`, `if` on a tensor, `nonzero` and boolean indexing look at values, which
FakeTensorMode refuses; a tensor of host data, a list as an index and torch's own random numbers it lets pass, and they
are refused here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.overrides import TorchFunctionMode

from envs.dry_run import Layout
from envs.fields import FIELD_SHAPES, Fields, field_shape
from envs.task import InitialState, Parameters, Task
from envs.user_code import defined_at, raised_at, summary
from gorl_robotics.errors import InputError

WORLDS = 5  # another number than the dry run's: what was made for that one does not fit
_DEVICE = "meta"  # any device that is not the host's
_BEFORE_THE_WORLDS = {"model", "compile"}
_HOST_DATA = {torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy, Tensor.new_tensor}
_TO_HOST = {Tensor.cpu, Tensor.numpy, Tensor.tolist}
_GLOBAL_RANDOM = {
    *(torch.rand, torch.randn, torch.randint, torch.randperm, torch.rand_like, torch.randn_like, torch.randint_like),
    *(torch.normal, torch.bernoulli, torch.multinomial, torch.poisson),
    *(Tensor.uniform_, Tensor.normal_, Tensor.random_, Tensor.bernoulli, Tensor.bernoulli_, Tensor.exponential_),
}


@dataclass(frozen=True)
class Returned:
    """One tensor that a method returns for WORLDS worlds, and what it should be."""

    method: str
    what: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    expected_shape: tuple[int, ...] | None  # None: anything
    expected_dtype: torch.dtype | None


@dataclass(frozen=True)
class FakeRun:
    """What every method returned, and one line for each that cannot be recorded or returns something else."""

    returned: tuple[Returned, ...]
    faults: tuple[str, ...]


def fake_run(task: Task, model: mujoco.MjModel, layout: Layout) -> FakeRun:
    """Runs every method of the contract once; `layout` is the dry run's."""
    returned: list[Returned] = []
    faults: list[str] = []
    with FakeTensorMode():
        given = _given(model, layout)
        for method in methods():
            if method == "parameters" and not task.randomised:
                continue
            function, before = getattr(task, method), dict(vars(task))
            try:
                with _DeviceWorkOnly():
                    result = function(**{name: given[name]() for name in inspect.signature(function).parameters})
            except Exception as error:
                where = raised_at(type(task), error) or defined_at(type(task), method)
                faults.append(f"{where}: {task.name}.{method}: {_advice(error)}")
                continue
            found = list(_compared(method, result, _expected(task, model, layout)))
            returned += found
            wrong = [_difference(item) for item in found if _differs(item)]
            now = {name: value for name, value in vars(task).items() if isinstance(value, Tensor)}
            kept = [name for name, value in now.items() if value is not before.get(name)]
            wrong += [f"keeps a tensor in self.{name}; what a task remembers belongs in its state" for name in kept]
            faults += [f"{defined_at(type(task), method)}: {task.name}.{method}: {text}" for text in wrong]
    return FakeRun(tuple(returned), tuple(faults))


def methods() -> list[str]:
    """The methods of the contract that work on worlds, in its order."""
    found = {name: value for name, value in vars(Task).items() if inspect.isfunction(value) and name[0] != "_"}
    known = {"self", "sim", "state", "action", "random"}
    return [
        name
        for name, value in found.items()
        if name not in _BEFORE_THE_WORLDS and set(inspect.signature(value).parameters) <= known
    ]


class _DeviceWorkOnly(TorchFunctionMode):
    """Raises where torch is asked for what FakeTensorMode lets pass and a graph cannot record."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _HOST_DATA:
            raise InputError("makes a tensor of host data; use sim.tensor(...), which keeps it on the device")
        if func in _TO_HOST or (func is Tensor.to and "cpu" in map(str, (*args[1:], *kwargs.values()))):
            raise InputError("copies a tensor to the host; compute with the tensor itself")
        if func in _GLOBAL_RANDOM:
            raise InputError(
                "draws random numbers of torch's own; use random.uniform or random.normal, which are given"
            )
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            _check_index(args[1], args[2] if len(args) > 2 else None)
        return func(*args, **kwargs)


class _FakeFields(Fields):
    """Fields without data, of which constants need no host data either."""

    def tensor(self, values: Any) -> Tensor:
        return torch.empty(np.shape(values), dtype=self.dtype, device=self.device)


class _FakeDraws:
    """Draws without numbers."""

    def uniform(self, *size: int) -> Tensor:
        return _empty(size)

    def normal(self, *size: int) -> Tensor:
        return _empty(size)


def _given(model: mujoco.MjModel, layout: Layout) -> dict[str, Callable[[], Any]]:
    """What a method may be given, made anew for each, by the parameter's name."""
    fields = {name: _empty(field_shape(model, name)) for name in FIELD_SHAPES}
    return {
        "sim": lambda: _FakeFields(model, fields, WORLDS),
        "state": lambda: {name: _empty(shape, _single(dtype)) for name, (shape, dtype) in layout.state.items()},
        "action": lambda: _empty((model.nu,)),
        "random": _FakeDraws,
    }


def _empty(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(WORLDS, *shape, dtype=dtype, device=_DEVICE)


def _single(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype.is_floating_point else dtype


def _check_index(index: Any, value: Any) -> None:
    for part in index if isinstance(index, tuple) else (index,):
        if isinstance(part, list | np.ndarray | range) or (isinstance(part, Tensor) and part.device.type != _DEVICE):
            raise InputError(
                "indexes with a list, an array or a tensor of the host, which is copied to the device each time; "
                "use a slice, or torch.stack of single columns"
            )
        if isinstance(part, Tensor) and part.dtype == torch.bool and isinstance(value, Tensor) and value.ndim > 0:
            raise InputError("writes to a boolean index, whose size depends on data; use torch.where(mask, new, old)")


def _advice(error: Exception) -> str:
    if isinstance(error, DataDependentOutputException):
        return "looks at a value (.item(), float(), or `if` on a tensor), so that a GPU must wait; use torch.where"
    if isinstance(error, DynamicOutputShapeException):
        return "makes a shape that depends on data (nonzero, boolean indexing, unique); use torch.where"
    if "same device" in str(error):
        return "mixes tensors of the host and of the device; use sim.tensor(...) or device=sim.device"
    return summary(error)


def _expected(
    task: Task, model: mujoco.MjModel, layout: Layout
) -> dict[tuple[str, str], tuple[tuple[int, ...], torch.dtype]]:
    """Shape of one world and type of what a method should return, by method and name."""
    single = torch.float32
    state = {name: (shape, _single(dtype)) for name, (shape, dtype) in layout.state.items()}
    return {
        ("initial_state", "qpos"): ((model.nq,), single),
        ("initial_state", "qvel"): ((model.nv,), single),
        ("initial_state", "mocap_pos"): ((model.nmocap, 3), single),
        ("initial_state", "mocap_quat"): ((model.nmocap, 4), single),
        ("reward", "reward"): ((), single),
        ("terminated", "terminated"): ((), torch.bool),
        **{("initial_state", f"state {name}"): value for name, value in state.items()},
        **{("update", f"state {name}"): value for name, value in state.items()},
        **{("observe", name): ((size,), single) for name, size in layout.observation.items()},
        **{("privileged", name): ((size,), single) for name, size in layout.privileged.items()},
        **{("parameters", name): (getattr(model, name).shape, single) for name in task.randomised},
        **{("parameters", name): ((size,), single) for name, size in layout.told.items()},
    }


def _compared(method: str, result: Any, expected: Mapping[tuple[str, str], Any]) -> Iterator[Returned]:
    for what, value in _tensors(method, result):
        shape, dtype = expected.get((method, what), (None, None))
        wanted = None if shape is None else (WORLDS, *shape)
        yield Returned(method, what, tuple(value.shape), value.dtype, wanted, dtype)


def _tensors(method: str, result: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors in what a method returned, by name."""
    if isinstance(result, InitialState):
        named = {**vars(result), **{f"state {name}": value for name, value in result.state.items()}}
    elif isinstance(result, Parameters):
        named = {**result.fields, **result.told}
    elif isinstance(result, dict):
        named = {f"state {name}": value for name, value in result.items()} if method == "update" else result
    else:
        named = {method: result}
    yield from ((name, value) for name, value in named.items() if isinstance(value, Tensor))


def _differs(item: Returned) -> bool:
    return item.expected_shape is not None and (item.shape, item.dtype) != (item.expected_shape, item.expected_dtype)


def _difference(item: Returned) -> str:
    got, expected = f"{item.shape} {_word(item.dtype)}", f"{item.expected_shape} {_word(item.expected_dtype)}"
    text = f"{item.what} is {got} for {WORLDS} worlds in single precision, expected {expected}"
    if item.dtype == torch.float64:
        text += "; a constant is in double precision, use sim.tensor(...)"
    return text


def _word(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")
