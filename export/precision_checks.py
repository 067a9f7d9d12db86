"""Does a graph compute in the precision that it claims, with its islands in float32?"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from export.storage import HALF
from hmer import contract
from hmer.errors import ExportError

HALF_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_INTEGERS = frozenset(
    {TensorProto.INT64, TensorProto.INT32, TensorProto.UINT8, TensorProto.BOOL}
)  # shapes, ids, masks
# Sums of exponentials, sums over positions, and choices: rounding would decide them.
ISLANDS = frozenset({"Softmax", "LogSoftmax", "ArgMax", "TopK", "ReduceMax", "ReduceSum", "Exp"})
# What a 16-bit graph must not do in float32 by oversight.
KERNELS = frozenset({"Conv"})
_SMALL = 64  # elements; equal constants below this are a coincidence


def graph_precision(model: str, precision: str) -> str:
    """The precision of one graph of a bundle of ``precision``: int8 is the encoder's alone."""
    return "fp32" if precision == "int8" and model != contract.ENCODER else precision


def check_precision(model: ModelProto, precision: str) -> None:
    """Raise ``ExportError`` unless ``model`` computes in ``precision`` as it should.

    Its weights have the precision's types, each lies in the file once; softmax, argmax, top-k
    and sums over positions read float32; convolutions read 16 bits in fp16 and bf16; Q/DQ nodes
    are symmetric int8 with constant scales in int8, and are not there otherwise.
    """
    name = str(model.graph.name)
    types = tensor_types(model)
    _check_weights(model, precision)
    _check_copies(model)
    half = HALF_TYPES.get(precision)
    for node in model.graph.node:
        read = types.get(node.input[0]) if node.input else None
        if node.op_type in ISLANDS and read in HALF_TYPES.values():
            raise ExportError(
                f"The {name} graph feeds {_type(read)} to {node.op_type} ({node.name}), which "
                "must compute in float32."
            )
        if half is not None and node.op_type in KERNELS and read != half:
            raise ExportError(
                f"The {name} graph should compute in {precision}, but {node.name} reads "
                f"{_type(read)}."
            )
    if precision == "int8":
        check_symmetric(model)
    elif any(_is_quantiser(node) for node in model.graph.node):
        raise ExportError(f"The {name} graph is quantised, but should compute in {precision}.")


def check_symmetric(model: ModelProto) -> None:
    """Raise ``ExportError`` unless ``model`` is quantised to symmetric int8, statically.

    Zero points must be 0 and scales positive constants: TensorRT refuses the rest, and a scale
    that is found at run time makes an answer depend on its batch.
    """
    name = str(model.graph.name)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found = 0
    for node in model.graph.node:
        if node.op_type in ("DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"):
            raise ExportError(
                f"The {name} graph quantises while it runs ({node.op_type}), so an answer would "
                "depend on its batch."
            )
        if not _is_quantiser(node):
            continue
        found += 1
        where = f"{node.name} of the {name} graph"
        if len(node.input) < 3 or any(value not in constants for value in node.input[1:]):
            raise ExportError(f"{where} has a scale or zero point that is not constant.")
        scale, zero = (constants[value] for value in node.input[1:3])
        if zero.data_type != TensorProto.INT8 or numpy_helper.to_array(zero).any():
            raise ExportError(f"{where} is not symmetric int8, which TensorRT asks for.")
        if not (numpy_helper.to_array(scale) > 0).all():
            raise ExportError(f"{where} has a scale that is not positive.")
    if not found:
        raise ExportError(f"The {name} graph has no quantised node.")


def tensor_types(model: ModelProto) -> dict[str, int]:
    """Element type of every tensor of the main graph, by shape inference."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    types = {value.name: int(value.type.tensor_type.elem_type) for value in values}
    return types | {tensor.name: int(tensor.data_type) for tensor in inferred.initializer}


def _check_weights(model: ModelProto, precision: str) -> None:
    allowed = {TensorProto.FLOAT, *_INTEGERS}
    if precision in HALF_TYPES:
        allowed.add(HALF_TYPES[precision])
    if precision == "int8":
        allowed |= {TensorProto.INT8}
    readers: defaultdict[str, list[NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for value in node.input:
            readers[value].append(node)
    for tensor in model.graph.initializer:
        if tensor.data_type in allowed:
            continue
        stored = tensor.data_type == TensorProto.FLOAT16 and tensor.name.endswith(HALF)
        if stored and all(node.op_type == "Cast" for node in readers[tensor.name]):
            continue  # a float32 weight in 16 bits of the file
        raise ExportError(
            f"{tensor.name} of the {model.graph.name} graph is {_type(tensor.data_type)}, which "
            f"has no place in {precision}."
        )


def _check_copies(model: ModelProto) -> None:
    seen: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    for tensor in model.graph.initializer:
        if np.prod(tensor.dims, dtype=np.int64) < _SMALL:
            continue
        content = numpy_helper.to_array(tensor).tobytes()
        if not any(content):
            continue  # zeros are no weight
        key = (int(tensor.data_type), tuple(tensor.dims), content)
        if key in seen:
            raise ExportError(
                f"The {model.graph.name} graph holds one weight twice: {seen[key]} and "
                f"{tensor.name}."
            )
        seen[key] = tensor.name


def _is_quantiser(node: NodeProto) -> bool:
    return node.op_type in ("QuantizeLinear", "DequantizeLinear")


def _type(kind: int | None) -> str:
    return "nothing" if kind is None else str(TensorProto.DataType.Name(kind)).lower()
