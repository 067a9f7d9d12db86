"""A 16-bit graph emulated in float32, so that its accuracy can be measured on any CPU.

ONNX Runtime has no bfloat16 kernels on a CPU, and computes a float16 graph in float32 with
fewer roundings than a GPU makes. In the emulated graph every node that gave a 16-bit tensor
computes in float32 and its result is rounded to the 16-bit type and back. What remains
different from hardware is the order of a sum; tensor cores sum in float32 too. The emulated
graph is slow and is for measuring answers only.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from export.precision_checks import HALF_TYPES, tensor_types
from export.storage import HALF
from hmer.errors import ExportError

OPSET = 20  # ONNX Runtime's CPU kernels; bfloat16 graphs have 22
_ROUNDED = ".rounded"
# They move values without computing: what they give is rounded already.
_MOVES = frozenset(
    {"Reshape", "Transpose", "Unsqueeze", "Squeeze", "Concat", "Split", "Slice", "Gather"}
    | {"Expand", "Identity", "Where", "Relu", "MaxPool", "Flatten"}
)


def emulate(model: ModelProto, precision: str) -> ModelProto:
    """A float32 graph that answers as ``model``, an exported graph of fp16 or bf16, would.

    Inputs, outputs and their dtypes stay. Raises ``ExportError`` for a graph that is not one.
    """
    half = HALF_TYPES[precision]
    types = tensor_types(model)
    result = ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    # float32 weights in 16 bits of the file stay as they are.
    for tensor in graph.initializer:
        if tensor.data_type == half and not tensor.name.endswith(HALF):
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        ours = NodeProto()
        ours.CopyFrom(node)
        nodes.append(ours)
        outputs = [name for name in node.output if types.get(name) == half]
        if node.op_type == "Cast":
            if _target(node) == half:
                ours.CopyFrom(helper.make_node("Identity", node.input, node.output, node.name))
            elif types.get(node.input[0]) == half and not node.input[0].endswith(HALF):
                continue  # float32 already; a Cast to float32 does nothing
        elif node.op_type in _MOVES:
            continue
        for index, name in enumerate(node.output):
            if name not in outputs:
                continue
            raw, rounded = f"{name}.raw", name + _ROUNDED
            ours.output[index] = raw
            nodes.append(helper.make_node("Cast", [raw], [rounded], f"round_{name}", to=half))
            nodes.append(
                helper.make_node("Cast", [rounded], [name], f"back_{name}", to=TensorProto.FLOAT)
            )
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    for entry in result.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = min(entry.version, OPSET)
    try:
        onnx.checker.check_model(result, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"The {graph.name} graph cannot be emulated: {error}") from error
    return result


def _target(node: NodeProto) -> int:
    return next(int(a.i) for a in node.attribute if a.name == "to")
