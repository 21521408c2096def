"""Whether a task can leave for ONNX: found before training, not when the trained policy shall be exported."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

import mujoco
import torch
from torch import Tensor

from envs.dry_run import Layout
from envs.task import Task
from envs.task_module import TaskModule
from envs.user_code import raised_at, summary
from gorl_robotics.errors import InputError

TOLERANCE = 1e-5  # of 1, or of the number itself where that is larger; what an export is held to


def trace(task: Task, model: mujoco.MjModel, layout: Layout) -> float:
    """Translates the task as an export does and runs it in onnxruntime; returns the largest difference from torch.

    Raises:
        InputError: torch cannot trace the task or has no ONNX for one of its functions, or the results differ.
    """
    module = TaskModule(task, model, layout).eval()
    examples = module.examples()
    inputs = tuple(examples.values())
    batch = torch.export.Dim("batch")
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                module,
                inputs,
                dynamo=True,
                opset_version=18,
                dynamic_shapes=(tuple({0: batch} for _ in inputs),),
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise _untraceable(task, error.__cause__ or error) from error
        assert program is not None
        expected, got = module(*inputs), program(*inputs)
    apart = {name: _apart(*pair) for name, *pair in zip(module.output_names, expected, got, strict=True)}
    worst = max(apart, key=lambda name: apart[name])
    if not apart[worst] <= TOLERANCE:
        raise InputError(
            f"{task.name}: {worst} is {apart[worst]:.1e} apart in onnxruntime and torch, at most {TOLERANCE:.0e} is "
            "allowed; is something divided by, or a root taken of, what may be 0?"
        )
    return apart[worst]


def _untraceable(task: Task, cause: BaseException) -> InputError:
    where = raised_at(type(task), cause)
    return InputError(
        f"{where + ': ' if where else ''}{task.name}: torch cannot trace it to ONNX ({summary(cause)}); use masks "
        "instead of .item(), of `if` on tensors and of shapes that depend on data, and plain torch functions"
    )


def _apart(expected: Tensor, got: Tensor) -> float:
    if not expected.is_floating_point():
        return float((expected != got).any())
    same = (expected == got) | (expected.isnan() & got.isnan())
    return float(((got - expected).abs() / expected.abs().clamp(min=1.0)).masked_fill(same, 0.0).max())


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's warnings, log lines and printed graphs tell of its own workings."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
