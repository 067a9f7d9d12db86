"""What an exported graph must be, before anybody compares its answers.

A graph that passes ``onnx.checker`` can still have lost a dynamic axis (an exporter
specialises silently) or contain what TensorRT refuses; this module looks for both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from export.precision_checks import check_precision
from hmer.contract import ModelSpec, TensorSpec
from hmer.errors import ExportError

BATCH = "batch"

# TensorRT refuses these, or cannot plan their memory and capture them as a CUDA graph.
DENIED_OPS = frozenset(
    {
        *("NonZero", "Compress", "Unique", "If", "Loop", "Scan"),
        *("Multinomial", "Bernoulli", "RandomNormal", "RandomNormalLike"),
        *("RandomUniform", "RandomUniformLike", "StringNormalizer", "TfIdfVectorizer"),
        *("SequenceAt", "SequenceConstruct", "SequenceInsert", "ConcatFromSequence"),
        *("SplitToSequence", "Optional", "OptionalGetElement", "OptionalHasElement"),
    }
)
# They belong to training; left in a graph they say that the export went wrong.
TRAINING_OPS = frozenset({"BatchNormalization", "Dropout"})


def check_graph(model: ModelProto, spec: ModelSpec, precision: str = "fp32") -> None:
    """Raise ``ExportError`` unless ``model`` is valid, servable ONNX with ``spec``'s tensors.

    ``precision`` is the graph's own: see ``export.precision_checks``.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"The {spec.name} graph is not valid ONNX: {error}") from error
    _check_ops(model, spec.name)
    check_interface(model, spec)
    check_precision(model, precision)


def check_interface(model: ModelProto, spec: ModelSpec) -> None:
    """Names, order, dtypes and axes of inputs and outputs against the tensor contract.

    Every axis that the contract leaves open must be named as it names it, and every
    other one must have its size. Raises ``ExportError``.
    """
    for kind, found, wanted in (
        ("input", model.graph.input, spec.inputs),
        ("output", model.graph.output, spec.outputs),
    ):
        names, expected = [value.name for value in found], [tensor.name for tensor in wanted]
        if names != expected:
            raise ExportError(
                f"The {spec.name} graph has the {kind}s {', '.join(names)}, but the contract "
                f"asks for {', '.join(expected)}, in this order."
            )
        for value, tensor in zip(found, wanted, strict=True):
            _check_tensor(value, tensor, f"{kind} {tensor.name} of the {spec.name} graph")


def name_axes(model: ModelProto, spec: ModelSpec) -> None:
    """Give the open axes of inputs and outputs the names that ``spec`` has for them.

    The exporter names a derived axis by a formula (``8*feature_height``) or a number. An
    axis that it has specialised to one size is refused with ``ExportError``.
    """
    values = [*model.graph.input, *model.graph.output]
    for value, tensor in zip(values, (*spec.inputs, *spec.outputs), strict=True):
        axes = value.type.tensor_type.shape.dim
        wanted = (BATCH, *tensor.dims)
        for index, (axis, name) in enumerate(zip(axes, wanted, strict=True)):
            if isinstance(name, str):
                if axis.HasField("dim_value"):
                    raise ExportError(
                        f"Axis {index} ({name}) of {tensor.name} in the {spec.name} graph was "
                        f"specialised to {axis.dim_value}: the exporter lost a dynamic size."
                    )
                axis.dim_param = name


def op_counts(model: ModelProto) -> Counter[str]:
    """How many nodes of each operator, subgraphs included."""
    return Counter(node.op_type for node in _nodes(model.graph))


def opset_of(model: ModelProto) -> int:
    """The version of the standard operator set."""
    return max(int(e.version) for e in model.opset_import if e.domain in ("", "ai.onnx"))


def _check_tensor(value: ValueInfoProto, tensor: TensorSpec, where: str) -> None:
    kind = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    if dtype != np.dtype(tensor.dtype):
        raise ExportError(f"The {where} is {dtype}, but the contract asks for {tensor.dtype}.")
    found = [axis.dim_param or axis.dim_value for axis in kind.shape.dim]
    wanted: Sequence[int | str] = [BATCH, *tensor.dims]
    if found != wanted:
        raise ExportError(
            f"The {where} has the axes {found}, but the contract asks for {list(wanted)}."
        )


def _check_ops(model: ModelProto, name: str) -> None:
    if model.functions:
        raise ExportError(f"The {name} graph keeps functions that were not inlined.")
    for node in _nodes(model.graph):
        if node.domain not in ("", "ai.onnx"):
            raise ExportError(
                f"The {name} graph uses {node.op_type} of {node.domain}, which no runtime but "
                "the exporter's knows."
            )
        if node.op_type in DENIED_OPS:
            raise ExportError(
                f"The {name} graph uses {node.op_type} ({node.name}), which TensorRT refuses or "
                "cannot capture. Write that part of the network with masks instead."
            )
        if node.op_type in TRAINING_OPS:
            raise ExportError(
                f"The {name} graph still has a {node.op_type} ({node.name}); it should have been "
                "folded away before the export."
            )
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to":
                _check_dtype(attribute.i, f"{node.name} of the {name} graph")
    for tensor in model.graph.initializer:
        _check_dtype(tensor.data_type, f"{tensor.name} of the {name} graph")


def _check_dtype(dtype: int, where: str) -> None:
    if dtype in (TensorProto.DOUBLE, TensorProto.STRING, TensorProto.COMPLEX64):
        kind = TensorProto.DataType.Name(dtype)
        raise ExportError(f"{where} is {kind}, which TensorRT does not have.")


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _nodes(attribute.g)
