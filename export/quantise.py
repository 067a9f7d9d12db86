"""An int8 encoder: its 3x3 convolutions between QuantizeLinear and DequantizeLinear nodes.

Static quantisation in the form that TensorRT, ONNX Runtime and OpenVINO all read: symmetric
int8, every zero point 0, one scale a tensor for activations, one a channel for kernels, biases
in float32. Scales come from real, preprocessed images of the training data.

The rest stays float32: the first convolution and the first stage, where rounding costs most;
the 1x1 convolutions and the sums of the shortcuts; and the decoder, which is 3 % of a formula's
work. A decoder whose scales are found at run time would answer differently in another batch.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto

from export.precision_checks import check_symmetric
from hmer import contract
from hmer.errors import ExportError, MissingDependency

# Kernels of what stays float32. The first stage reads the finest features: with it in int8 the
# features' error on held-out handwriting was 1.6 times as large, and its work is a quarter.
KEPT = ("encoder.stem.", "encoder.stages.0.")

Images = Mapping[str, NDArray[np.uint8]]


def quantise(model: ModelProto, images: Images) -> ModelProto:
    """``model``, the traced float32 encoder, with int8 convolutions calibrated on ``images``.

    ``images``: name -> preprocessed uint8 (H, W), of training data. Raises ``ExportError``,
    ``MissingDependency``.
    """
    if not images:
        raise ExportError("There are no images to calibrate int8 on. Give --data or --images.")
    nodes = _convolutions(model)
    if not nodes:
        raise ExportError(f"The {model.graph.name} graph has no convolution to quantise.")
    quantised = _static(model, nodes, list(images.values()))
    _rewire(quantised.graph, frozenset(nodes))
    quantised.graph.name = model.graph.name
    quantised.producer_name = model.producer_name
    quantised.producer_version = model.producer_version
    check_symmetric(quantised)
    return quantised


def _convolutions(model: ModelProto) -> list[str]:
    """The names of the convolutions to quantise."""
    kernels = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "Conv"
        and not node.input[1].startswith(KEPT)
        and math.prod(kernels.get(node.input[1], ())[2:]) > 1
    ]


def _rewire(graph: GraphProto, convolutions: frozenset[str]) -> None:
    """Let only ``convolutions`` read quantised activations; shortcuts read what was quantised.

    A sum of rounded shortcuts would lose more at every block. And ONNX Runtime on x86 makes its
    fast unsigned convolutions only of a Q node that one DQ node follows.
    """
    makers = {name: node for node in graph.node for name in node.output}
    float_of = {}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in makers:
            source = makers[node.input[0]].input[0]
            if source not in makers or makers[source].name not in convolutions:
                float_of[node.output[0]] = source
    for node in graph.node:
        if node.name not in convolutions:
            node.input[:] = [float_of.get(name, name) for name in node.input]


def _static(model: ModelProto, nodes: list[str], images: Sequence[NDArray[np.uint8]]) -> ModelProto:
    try:
        from onnxruntime import quantization
    except ImportError as error:
        raise MissingDependency(
            f"Quantising needs {error.name}. Install it with: pip install 'hmer[export]'"
        ) from error

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._feeds = _feeds(images)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            return next(self._feeds, None)

    source = ModelProto()
    source.CopyFrom(model)
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # it advises on its own preprocessing
    try:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "quantised.onnx"
            quantization.quantize_static(
                source,
                target,
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                activation_type=quantization.QuantType.QInt8,
                weight_type=quantization.QuantType.QInt8,
                per_channel=True,
                nodes_to_quantize=nodes,
                op_types_to_quantize=["Conv"],
                calibrate_method=quantization.CalibrationMethod.MinMax,
                extra_options={
                    "ActivationSymmetric": True,
                    "WeightSymmetric": True,
                    "QuantizeBias": False,
                    # The mean of the images' extremes: one image's outlier would cost all
                    # others resolution.
                    "CalibMovingAverage": True,
                },
            )
            quantised: ModelProto = onnx.load(target)
            return quantised
    finally:
        logging.getLogger().setLevel(level)


def _feeds(images: Sequence[NDArray[np.uint8]]) -> Iterator[dict[str, NDArray[Any]]]:
    for image in images:
        yield {
            contract.IMAGE.name: image[None, None],
            contract.SIZE.name: np.array([image.shape], np.int32),
        }
