"""Turns torch functions into ONNX files and proves that onnxruntime computes the same from them."""

from __future__ import annotations

import io
import logging
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
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
    try:
        program = translate(module, inputs, list(graph.examples), list(graph.outputs))
    except torch.onnx.OnnxExporterError as error:
        raise _untraceable(path.name, error.__cause__ or error) from error
    with torch.no_grad():
        results = module(*inputs)
    model = program.model_proto
    _tidy(model.graph)
    if metadata is not None:
        onnx.helper.set_model_props(model, {"gorl": metadata})
    onnx.save(model, path)
    results = results if isinstance(results, tuple) else (results,)
    return {name: value.numpy() for name, value in zip(graph.outputs, results, strict=True)}


def translate(
    module: nn.Module, inputs: tuple[Tensor, ...], input_names: Sequence[str], output_names: Sequence[str]
) -> torch.onnx.ONNXProgram:
    """A function of tensors, batch first, as an ONNX program with a free batch size.

    Raises:
        torch.onnx.OnnxExporterError: torch cannot trace it; the cause says where.
    """
    batch = torch.export.Dim("batch")
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            inputs,
            dynamo=True,
            opset_version=_OPSET,
            input_names=input_names,
            output_names=output_names,
            dynamic_shapes=(tuple({0: batch} for _ in inputs),),  # one entry for forward's one parameter
            verbose=False,
        )
    assert program is not None
    return program


def difference(want: np.ndarray, got: np.ndarray, scale: np.ndarray | None = None) -> float:
    """The largest difference, in units of `scale`; by default of 1, or of the number itself if that is larger."""
    if want.dtype.kind != "f":
        return float(np.not_equal(got, want).any())
    unit = np.maximum(np.abs(want), 1.0) if scale is None else scale
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    return float(np.where(same, 0.0, np.abs(got - want) / unit).max())


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


def check(
    path: Path,
    graph: Graph,
    expected: Mapping[str, np.ndarray],
    scale: np.ndarray | None = None,
    tolerance: float = TOLERANCE,
) -> None:
    """Raises ExportError if onnxruntime computes something else from the examples than torch did."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {item.name: graph.examples[item.name].numpy() for item in session.get_inputs()}
    for (name, want), got in zip(expected.items(), session.run(list(expected), feed), strict=True):
        wrong = difference(want, got, scale)
        if not wrong <= tolerance:
            raise ExportError(
                f"{path.name}: {name!r} of onnxruntime differs from torch's by {wrong:.1e}, at most {tolerance:.1e} is "
                "allowed; nothing was exported"
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's warnings, log lines and printed graphs tell of its own workings; nobody needs them here."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
