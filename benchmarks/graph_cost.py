"""What a graph has to compute and to read for given inputs, counted from the graph itself.

Every tensor's shape is taken from a run in ONNX Runtime with its optimisations off, so dynamic
axes, unrolled steps and constants that are cast or scaled on loading are counted as they are.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmer.errors import CorruptBundle, ExportError, MissingDependency

CONV = ("Conv", "QLinearConv", "ConvInteger")
MATMUL = ("MatMul", "Gemm", "QLinearMatMul", "MatMulInteger")
# One operation an element of the output, however dear the function is.
ELEMENTWISE = (
    *("Add", "Sub", "Mul", "Div", "Relu", "Tanh", "Sigmoid", "Exp", "Log", "Sqrt", "Neg", "Clip"),
    *("Softmax", "LogSoftmax", "Sin", "Cos", "Pow", "Reciprocal", "BatchNormalization"),
)
REDUCE = ("ReduceSum", "ReduceMean", "ReduceMax", "ArgMax", "MaxPool", "AveragePool", "TopK")

Shapes = Mapping[str, tuple[tuple[int, ...], int]]  # name -> shape, bytes of one value


@dataclass(frozen=True)
class Cost:
    """``flops`` by kind (``conv``, ``matmul``, ``elementwise``); a multiplication and an addition
    are two. Bytes are those of the types that are computed with.

    ``weights``: of all constants, each once. ``weight_reads``: of the constants at each use, of a
    looked-up table only the rows that are taken. ``in_out``: of the graph's inputs and outputs.
    ``uncounted``: operators without a figure, which move data or whose work is nothing beside.
    """

    flops: dict[str, int]
    weights: int
    weight_reads: int
    in_out: int
    uncounted: dict[str, int]

    @property
    def total_flops(self) -> int:
        """Of all kinds."""
        return sum(self.flops.values())

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "flops": self.flops,
            "total_flops": self.total_flops,
            "weight_bytes": self.weights,
            "weight_read_bytes": self.weight_reads,
            "in_out_bytes": self.in_out,
            "uncounted": self.uncounted,
        }


def graph_cost(path: Path, feeds: Mapping[str, NDArray[Any]]) -> Cost:
    """The cost of the ONNX graph at ``path`` for ``feeds``.

    Raises ``MissingDependency``, ``CorruptBundle``, or ``ExportError`` for control flow, which
    cannot be counted from shapes.
    """
    onnx, runtime = _libraries()
    try:
        model = onnx.load(str(path))
    except Exception as error:
        raise CorruptBundle(f"{path} cannot be read as ONNX ({error}).") from error
    graph = model.graph
    if flow := [node.op_type for node in graph.node if node.op_type in ("Loop", "If", "Scan")]:
        raise ExportError(f"{path} has a {flow[0]}: its work cannot be counted from shapes.")
    shapes = _shapes(model, feeds, onnx, runtime)
    constants = _constants(graph)
    flops = dict.fromkeys(("conv", "matmul", "elementwise"), 0)
    uncounted: Counter[str] = Counter()
    read, used = 0, dict[str, int]()
    for node in graph.node:
        if all(name in constants for name in node.output):
            continue
        kind, count = _flops(node, shapes)
        if kind:
            flops[kind] += count
        else:
            uncounted[node.op_type] += 1
        for position, name in enumerate(node.input):
            if name not in constants:
                continue
            size = _bytes(shapes[name])
            if node.op_type == "Gather" and position == 0:
                read += min(size, _bytes(shapes[node.output[0]]))
            else:
                read += size
            used[name] = size
    ends = [value.name for value in (*graph.input, *model_outputs(graph))]
    return Cost(
        flops, sum(used.values()), read, sum(_bytes(shapes[n]) for n in ends), dict(uncounted)
    )


def model_outputs(graph: Any) -> list[Any]:
    """The graph's own outputs, without those that were added to see every shape."""
    return [value for value in graph.output if value.HasField("type")]


def _flops(node: Any, shapes: Shapes) -> tuple[str, int]:
    """What kind of work ``node`` does, and how much; "" where it is not counted."""
    out = math.prod(shapes[node.output[0]][0])
    if node.op_type in CONV:
        weight = next(n for n in node.input[1:] if len(shapes[n][0]) >= 3)
        return "conv", 2 * out * math.prod(shapes[weight][0][1:])
    if node.op_type in MATMUL:
        left = shapes[node.input[0]][0]
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return "matmul", 2 * out * (left[0] if transposed else left[-1])
    if node.op_type in ELEMENTWISE:
        return "elementwise", out
    if node.op_type in REDUCE:
        return "elementwise", math.prod(shapes[node.input[0]][0])
    return "", 0


def _shapes(model: Any, feeds: Mapping[str, NDArray[Any]], onnx: Any, runtime: Any) -> Shapes:
    graph = model.graph
    known: dict[str, tuple[tuple[int, ...], int]] = {
        name: (value.shape, value.itemsize) for name, value in feeds.items()
    }
    for tensor in graph.initializer:
        kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        known[tensor.name] = (tuple(tensor.dims), np.dtype(kind).itemsize)
    there = {value.name for value in graph.output}
    names = [n for node in graph.node for n in node.output if n]
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in there)
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = runtime.InferenceSession(
        copy.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    for name, value in zip(names, session.run(names, dict(feeds)), strict=True):
        known[name] = (value.shape, value.itemsize)
    return known


def _constants(graph: Any) -> set[str]:
    """Names of the tensors that no input of the graph has a part in."""
    found = {tensor.name for tensor in graph.initializer}
    for node in graph.node:  # in topological order, as ONNX demands
        if all(name in found for name in node.input if name):
            found.update(node.output)
    return found


def _bytes(shape: tuple[tuple[int, ...], int]) -> int:
    return math.prod(shape[0]) * shape[1]


def _libraries() -> tuple[Any, Any]:
    try:
        return import_module("onnx"), import_module("onnxruntime")
    except ImportError as error:
        raise MissingDependency(
            f"Counting a graph's work needs {error.name}: pip install 'hmer[bench]'"
        ) from error
