"""A module of plain tensors -> an ONNX graph with the contract's names and open axes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor, nn
from torch.export import Dim

from export.checks import name_axes
from hmer import __version__
from hmer.contract import ModelSpec
from hmer.errors import ExportError, MissingDependency

OPSET = 20  # TensorRT 10.x and 11.x, ONNX Runtime and OpenVINO all read it
OPSETS = {"bf16": 22}  # the first with a bfloat16 convolution


def export_graph(
    module: nn.Module, spec: ModelSpec, stride: int, precision: str = "fp32"
) -> ModelProto:
    """``module``, whose ``forward`` takes ``spec``'s inputs in order, as an ONNX graph.

    Open axes stay open and are named as in ``spec``; ``height`` and ``width`` are
    multiples of ``stride``. ``precision`` is what ``module`` computes in. Raises
    ``ExportError``.
    """
    batch = Dim("batch", min=1, max=1 << 16)
    axes: dict[str, Any] = {
        name: Dim(name, min=1, max=1 << 12) for name in ("feature_height", "feature_width")
    }
    for axis in ("height", "width"):
        axes[axis] = stride * axes[f"feature_{axis}"]
    # Sizes that are unlike each other and unlike 0 and 1, which the exporter would take
    # for constants.
    lengths = {"feature_height": 3, "feature_width": 5}
    lengths |= {axis: stride * lengths[f"feature_{axis}"] for axis in ("height", "width")}
    example, dynamic = [], []
    for tensor in spec.inputs:
        shape = [2, *(lengths[d] if isinstance(d, str) else d for d in tensor.dims)]
        example.append(torch.from_numpy(np.zeros(shape, tensor.dtype)))
        named = {i: axes[d] for i, d in enumerate(tensor.dims, 1) if isinstance(d, str)}
        dynamic.append({0: batch, **named})
    model = _onnx(module, tuple(example), tuple(dynamic), spec, OPSETS.get(precision, OPSET))
    _clean(model, spec.name)
    name_axes(model, spec)
    return model


def _onnx(
    module: nn.Module,
    example: tuple[Tensor, ...],
    dynamic: tuple[Any, ...],
    spec: ModelSpec,
    opset: int,
) -> ModelProto:
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                module,
                example,
                dynamo=True,
                opset_version=opset,
                input_names=[tensor.name for tensor in spec.inputs],
                output_names=[tensor.name for tensor in spec.outputs],
                dynamic_shapes=dynamic,
                verbose=False,
            )
            if program is None:
                raise ExportError(f"The {spec.name} graph came out empty.")
            return program.model_proto
    except ImportError as error:
        raise MissingDependency(
            f"The export needs {error.name}. Install it with: pip install 'hmer[export]'"
        ) from error
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(f"The {spec.name} graph cannot be exported: {reason[0]}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter talks about optional packages and about its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _clean(model: ModelProto, name: str) -> None:
    """Drop what the exporter noted for debugging (source lines with their paths, shapes)."""
    graph = model.graph
    del graph.value_info[:], graph.metadata_props[:], model.metadata_props[:]
    for item in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
    model.doc_string = graph.doc_string = ""
    model.producer_name, model.producer_version = "hmer", __version__
    graph.name = name
    shorter = {i.name: i.name.removeprefix("model.") for i in graph.initializer}
    for tensor in graph.initializer:
        tensor.name = shorter[tensor.name]
    for node in graph.node:
        node.input[:] = [shorter.get(value, value) for value in node.input]
