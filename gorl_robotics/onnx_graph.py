"""Turns torch functions into ONNX files and proves that onnxruntime computes the same from them."""

from __future__ import annotations

import logging
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from gorl_robotics.errors import InputError

TOLERANCE = 1e-5  # of the scale that an output is given; by default of 1, or of the number itself if that is larger
# The newest one that runtimes of 2022 and later know, and the exporter's own.
_OPSET = 18


class ExportError(InputError):
    """A function cannot be exported, or its file does not compute what torch does; no export was written."""


@dataclass(frozen=True)
class Graph:
    """A function of named tensors, batch first, that becomes an ONNX file and is checked on its examples."""

    module: nn.Module  # forward(*inputs)
    examples: Mapping[str, Tensor]  # inputs by name
    outputs: tuple[str, ...]


def write(path: Path, graph: Graph, metadata: str | None = None) -> dict[str, np.ndarray]:
    """Writes one ONNX file with a free batch size; returns what torch computes from the examples.

    Raises:
        ExportError: torch cannot trace the function.
    """
    module, inputs = graph.module.eval(), tuple(graph.examples.values())
    batch = torch.export.Dim("batch")
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                module,
                inputs,
                dynamo=True,
                opset_version=_OPSET,
                input_names=list(graph.examples),
                output_names=list(graph.outputs),
                dynamic_shapes=(tuple({0: batch} for _ in inputs),),  # one entry for forward's one parameter
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise _untraceable(path.name, error.__cause__ or error) from error
        results = module(*inputs)
    assert program is not None
    model = program.model_proto
    _tidy(model.graph)
    if metadata is not None:
        onnx.helper.set_model_props(model, {"gorl": metadata})
    onnx.save(model, path)
    results = results if isinstance(results, tuple) else (results,)
    return {name: value.numpy() for name, value in zip(graph.outputs, results, strict=True)}


def _untraceable(file: str, cause: BaseException) -> ExportError:
    """Names the line of the user's own code at which torch gave up."""
    own = [frame for frame in traceback.extract_tb(cause.__traceback__) if "site-packages" not in frame.filename]
    where = f" at {own[-1].filename}:{own[-1].lineno}" if own else ""
    reason = next(iter(str(cause).splitlines()), type(cause).__name__)
    return ExportError(
        f"{file}: torch cannot trace{where} ({reason}); use masks instead of .item(), of `if` on tensors and of "
        "shapes that depend on data"
    )


def _tidy(graph: onnx.GraphProto) -> None:
    """Drops inputs that nothing reads, since a player must feed whatever is listed, and the exporter's stack traces."""
    used = {name for node in graph.node for name in node.input}
    kept = [value for value in graph.input if value.name in used]
    del graph.input[:]
    graph.input.extend(kept)
    for node in graph.node:
        del node.metadata_props[:]


def check(path: Path, graph: Graph, expected: Mapping[str, np.ndarray], scale: np.ndarray | None = None) -> None:
    """Raises ExportError if onnxruntime computes something else from the examples than torch did."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {item.name: graph.examples[item.name].numpy() for item in session.get_inputs()}
    for (name, want), got in zip(expected.items(), session.run(list(expected), feed), strict=True):
        if want.dtype.kind != "f":
            wrong = float(np.not_equal(got, want).any())
        else:
            unit = np.maximum(np.abs(want), 1.0) if scale is None else scale
            same = (got == want) | (np.isnan(got) & np.isnan(want))
            wrong = float(np.where(same, 0.0, np.abs(got - want) / unit).max())
        if not wrong <= TOLERANCE:
            raise ExportError(
                f"{path.name}: {name!r} of onnxruntime differs from torch's by {wrong:.1e}, at most {TOLERANCE:.0e} is "
                "allowed; nothing was exported"
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells of its own workings by warnings and log lines; none is of use to who trains a robot."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
