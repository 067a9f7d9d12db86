"""Weights as float16 in the file, float32 in the computation.

A checkpoint's weights are float16 values. ``compress`` stores them so in a graph, each
followed by a ``Cast`` that the runtime folds once while it loads, so the file is half the
size and the computation is the same. A convolution's weight with BatchNorm folded in is
no float16 value any more; it is stored as the weight before folding and a float32 factor
a channel, and the product is folded at load too. So nothing is rounded twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from hmer.errors import ExportError

MIN_ELEMENTS = 256  # smaller constants, biases and scales stay float32
HALF, FACTOR, UNSCALED = ".float16", ".factor", ".unscaled"
_FLOAT16_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Stored:
    """What ``compress`` did: how many tensors, the greatest error relative to a tensor's peak."""

    tensors: int
    rounding: float


def compress(model: ModelProto, factors: Mapping[str, NDArray[np.float32]]) -> Stored:
    """Store the float32 matrices and kernels of ``model`` as float16, in place.

    ``factors`` holds, for a folded convolution's weight (O, I, h, w), its factor a channel
    (O,). Raises ``ExportError`` for a weight that float16 cannot hold.
    """
    graph = model.graph
    rounding, count = 0.0, 0
    tensors, nodes = [], []
    for tensor in graph.initializer:
        if not _worth_it(tensor):
            tensors.append(tensor)
            continue
        values = numpy_helper.to_array(tensor).astype(np.float32)
        factor = _column(factors[tensor.name], values.ndim) if tensor.name in factors else None
        half = _half(values if factor is None else values / factor, tensor.name)
        tensors.append(numpy_helper.from_array(half, tensor.name + HALF))
        restored = half.astype(np.float32)
        if factor is None:
            nodes.append(_cast(tensor.name + HALF, tensor.name))
        else:
            restored = restored * factor
            tensors.append(numpy_helper.from_array(factor, tensor.name + FACTOR))
            nodes.append(_cast(tensor.name + HALF, tensor.name + UNSCALED))
            nodes.append(
                helper.make_node(
                    "Mul",
                    [tensor.name + UNSCALED, tensor.name + FACTOR],
                    [tensor.name],
                    name=f"scale_{tensor.name}",
                )
            )
        peak = float(np.abs(values).max())
        rounding = max(rounding, float(np.abs(restored - values).max()) / max(peak, 1e-30))
        count += 1
    _replace(model, tensors, [*nodes, *graph.node])
    return Stored(count, rounding)


def _worth_it(tensor: TensorProto) -> bool:
    return (
        tensor.data_type == TensorProto.FLOAT
        and len(tensor.dims) >= 2
        and int(np.prod(tensor.dims)) >= MIN_ELEMENTS
    )


def _column(factor: NDArray[np.float32], rank: int) -> NDArray[np.float32]:
    """The factor of a channel, shaped to multiply a weight (O, ...); 0 becomes 1."""
    column = np.where(factor == 0.0, 1.0, factor).astype(np.float32)
    return column.reshape(-1, *([1] * (rank - 1)))


def _half(values: NDArray[np.float32], name: str) -> NDArray[np.float16]:
    peak = float(np.abs(values).max())
    if not peak <= _FLOAT16_MAX:
        raise ExportError(
            f"The weight {name} reaches {peak:.3g}, which float16 cannot hold. "
            "Export with --storage float32."
        )
    return values.astype(np.float16)


def _cast(source: str, target: str) -> NodeProto:
    return helper.make_node("Cast", [source], [target], to=TensorProto.FLOAT, name=f"load_{target}")


def _replace(model: ModelProto, tensors: list[TensorProto], nodes: list[NodeProto]) -> None:
    # Copies first: clearing a protobuf list empties the messages that were in it.
    tensors, nodes = [_copy_tensor(t) for t in tensors], [_copy_node(n) for n in nodes]
    del model.graph.initializer[:]
    del model.graph.node[:]
    model.graph.initializer.extend(tensors)
    model.graph.node.extend(nodes)


def _copy_tensor(tensor: TensorProto) -> TensorProto:
    copy = TensorProto()
    copy.CopyFrom(tensor)
    return copy


def _copy_node(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy
