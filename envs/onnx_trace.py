"""Whether a task can leave for ONNX: found before training, not when the trained policy shall be exported."""

from __future__ import annotations

import mujoco
import torch

from envs.dry_run import Layout
from envs.task import Task
from envs.task_module import TaskModule
from envs.user_code import raised_at, summary
from gorl_robotics.errors import InputError
from gorl_robotics.onnx_graph import TOLERANCE, difference, translate  # a leaf, as errors is: it knows nothing else


def trace(task: Task, model: mujoco.MjModel, layout: Layout) -> float:
    """Translates the task as an export does and runs it in onnxruntime; returns the largest difference from torch.

    Raises:
        InputError: torch cannot trace the task or has no ONNX for one of its functions, or the results differ.
    """
    module = TaskModule(task, model, layout).eval()
    examples = module.examples()
    inputs = tuple(examples.values())
    try:
        program = translate(module, inputs, list(examples), module.output_names)
    except torch.onnx.OnnxExporterError as error:
        raise _untraceable(task, error.__cause__ or error) from error
    with torch.no_grad():
        pairs = zip(module(*inputs), program(*inputs), strict=True)
        differences = [difference(want.numpy(), got.numpy()) for want, got in pairs]
    apart = dict(zip(module.output_names, differences, strict=True))
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
