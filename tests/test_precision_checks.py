"""Graphs that do not compute as they claim, or as TensorRT needs it, are refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from export import precision_checks, quantise
from export.precision import check_precision
from hmer.bundle import ENCODER_FILE, STEP_FILE, Bundle
from hmer.errors import BadParameter, ExportError
from tests import tiny
from tests.export_fixtures import in_precision


@pytest.fixture(scope="module")
def fp16(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return in_precision("fp16", tmp_path_factory.mktemp("fp16") / "graphs")


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return in_precision("int8", tmp_path_factory.mktemp("int8") / "graphs")


def graph_of(bundle: Bundle, file: str) -> ModelProto:
    return onnx.load(bundle.file(file))


def spoiled(model: ModelProto, how: str) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    if how == "island":
        softmax = next(node for node in graph.node if node.op_type == "Softmax")
        place, target = list(graph.node).index(softmax), softmax.output[0]
        before = helper.make_node("Cast", [softmax.input[0]], ["low"], to=TensorProto.FLOAT16)
        after = helper.make_node("Cast", ["raw"], [target], to=TensorProto.FLOAT)
        softmax.input[0], softmax.output[0] = "low", "raw"
        graph.node.insert(place + 1, after)
        graph.node.insert(place, before)
    elif how == "copy":
        tensor = max(graph.initializer, key=lambda t: int(np.prod(t.dims)))
        twin = numpy_helper.from_array(numpy_helper.to_array(tensor), "twin")
        graph.initializer.append(twin)
    elif how == "type":
        values = np.ones((9, 9), np.float16)
        graph.initializer.append(numpy_helper.from_array(values, "stray"))
    return copy


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ("island", "feeds float16 to Softmax"),
        ("copy", "one weight twice: .* and twin"),
    ],
)
def test_a_graph_that_lost_an_island_or_repeats_a_weight(
    fp16: Bundle, how: str, complaint: str
) -> None:
    model = graph_of(fp16, STEP_FILE)
    precision_checks.check_precision(model, "fp16")
    with pytest.raises(ExportError, match=complaint):
        precision_checks.check_precision(spoiled(model, how), "fp16")


def test_a_graph_of_another_precision(fp16: Bundle, int8: Bundle, graphs: Bundle) -> None:
    half, full = graph_of(fp16, ENCODER_FILE), graph_of(graphs, ENCODER_FILE)
    with pytest.raises(ExportError, match="is float16, which has no place in fp32"):
        precision_checks.check_precision(half, "fp32")
    with pytest.raises(ExportError, match=r"should compute in fp16, but .* reads float"):
        precision_checks.check_precision(full, "fp16")
    with pytest.raises(ExportError, match=r"int8, which has no place in fp32"):
        precision_checks.check_precision(graph_of(int8, ENCODER_FILE), "fp32")
    with pytest.raises(ExportError, match="no quantised node"):
        precision_checks.check_precision(full, "int8")
    with pytest.raises(ExportError, match=r"stray .* is float16, which has no place in fp32"):
        precision_checks.check_precision(spoiled(full, "type"), "fp32")


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ("zero", "not symmetric int8"),
        ("unsigned", "not symmetric int8"),
        ("scale", "a scale that is not positive"),
        ("dynamic", "quantises while it runs"),
        ("computed", "not constant"),
    ],
)
def test_quantisation_that_tensorrt_or_a_batch_would_not_bear(
    int8: Bundle, how: str, complaint: str
) -> None:
    model = graph_of(int8, ENCODER_FILE)
    node = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    scale, zero = (constants[name] for name in node.input[1:3])
    if how == "zero":
        zero.CopyFrom(numpy_helper.from_array(np.array(3, np.int8), zero.name))
    elif how == "unsigned":
        zero.CopyFrom(numpy_helper.from_array(np.array(0, np.uint8), zero.name))
    elif how == "scale":
        scale.CopyFrom(numpy_helper.from_array(np.array(0, np.float32), scale.name))
    elif how == "dynamic":
        node.op_type = "DynamicQuantizeLinear"
    else:
        node.input[1] = "found_at_run_time"
    with pytest.raises(ExportError, match=complaint):
        precision_checks.check_symmetric(model)


def test_bad_names_and_nothing_to_calibrate_on(graphs: Bundle) -> None:
    with pytest.raises(BadParameter, match=r"no precision 'fp8'.*fp32, fp16, bf16, int8"):
        check_precision("fp8")
    with pytest.raises(ExportError, match="no images to calibrate"):
        quantise.quantise(graph_of(graphs, ENCODER_FILE), {})
    with pytest.raises(ExportError, match="no convolution to quantise"):
        quantise.quantise(graph_of(graphs, STEP_FILE), tiny.named_images(1))
