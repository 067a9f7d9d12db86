"""The exported graphs: the contract's tensors, dynamic axes, padding, the freeze, storage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from export import storage
from export.checks import check_graph, check_interface, name_axes, op_counts
from export.graphs import DecoderStepGraph, fold_batch_norm
from export.verify_checks import answer_all
from export.verify_runners import open_graphs
from hmer import contract
from hmer.bundle import ENCODER_FILE, STEP_FILE, Bundle
from hmer.contract import ModelSpec, TensorSpec
from hmer.errors import ExportError
from hmer.preprocess import to_batch
from hmer.vocab import EOS_ID, SOS_ID
from tests import tiny
from training.checkpoint import load_checkpoint

Tensors = dict[str, NDArray[Any]]


def model_of(bundle: Bundle, file: str) -> ModelProto:
    return onnx.load(bundle.file(file))


def run(path: Path | bytes, feeds: Tensors) -> Tensors:
    session = onnxruntime.InferenceSession(
        path if isinstance(path, bytes) else str(path), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def encode(bundle: Bundle, images: list[NDArray[np.uint8]]) -> Tensors:
    image, size = to_batch(images)
    return run(bundle.file(ENCODER_FILE), {"image": image, "size": size})


def first_step(encoded: Tensors) -> Tensors:
    rows = len(encoded["state"])
    return encoded | {
        "token": np.full((rows, 1), SOS_ID, np.int32),
        "coverage": np.zeros(encoded["keys"].shape[:3], np.float32),
    }


@pytest.mark.parametrize(
    ("name", "file"), [(contract.ENCODER, ENCODER_FILE), (contract.DECODER_STEP, STEP_FILE)]
)
def test_graphs_have_the_tensors_of_the_contract(graphs: Bundle, name: str, file: str) -> None:
    model = model_of(graphs, file)
    check_graph(model, contract.models(graphs.sizes)[name])
    axes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    if name == contract.ENCODER:
        assert axes["image"] == ["batch", 1, "height", "width"]
        assert axes["values"] == ["batch", "feature_height", "feature_width", 32]
    else:
        assert axes["tokens"] == ["batch", 3]
        assert axes["next_coverage"] == ["batch", "feature_height", "feature_width"]


@pytest.mark.parametrize("file", [ENCODER_FILE, STEP_FILE])
def test_files_tell_nothing_about_the_machine_that_made_them(graphs: Bundle, file: str) -> None:
    content = graphs.file(file).read_bytes()
    for trace in (str(tiny.ROOT), "site-packages", ".py", "stack_trace", "torch.ops"):
        assert trace.encode() not in content


def test_padding_and_neighbours_change_no_feature(graphs: Bundle) -> None:
    images = tiny.images(5)
    together = encode(graphs, images)
    for row, image in enumerate(images):
        size = np.array([image.shape], np.int32)
        alone = run(graphs.file(ENCODER_FILE), {"image": image[None, None], "size": size})
        h, w = alone["feature_size"][0]
        assert (h, w) == (image.shape[0] // 8, image.shape[1] // 8)
        np.testing.assert_array_equal(together["feature_size"][row], (h, w))
        np.testing.assert_allclose(together["state"][row], alone["state"][0], atol=1e-5)
        for name in ("values", "keys"):
            np.testing.assert_allclose(together[name][row, :h, :w], alone[name][0], atol=2e-5)
            outside = together[name][row].copy()
            outside[:h, :w] = 0
            assert not outside.any()  # exactly zero


def test_padding_and_neighbours_change_no_answer(graphs: Bundle, checkpoint: Path) -> None:
    images = tiny.named_images(12, seed=3)
    with open_graphs("onnxruntime", graphs, load_checkpoint(checkpoint)[1]) as opened:
        together = list(answer_all(opened, images).values())
        alone = [answer_all(opened, {name: image})[name] for name, image in images.items()]
    assert [answer.ids for answer in together] == [answer.ids for answer in alone]
    for left, right in zip(together, alone, strict=True):
        np.testing.assert_allclose(left.scores, right.scores, atol=1e-4)
    assert len({answer.ids for answer in alone}) > 6  # the answers do depend on the images


def test_k_tokens_a_call_are_k_calls_of_the_network(graphs: Bundle, checkpoint: Path) -> None:
    """Row by row, over the end of the shorter answers: the frozen state, and what precedes it."""
    network = DecoderStepGraph(load_checkpoint(checkpoint)[1], k=1)
    feeds = first_step(encode(graphs, tiny.images(8)))
    single = {name: torch.from_numpy(value) for name, value in feeds.items()}
    spec = contract.models(graphs.sizes)[contract.DECODER_STEP]
    ended = 0
    for _ in range(5):
        found = run(graphs.file(STEP_FILE), feeds)
        for index in range(3):
            before = dict(single)
            with torch.no_grad():
                token, score, state, coverage = network(*(single[t.name] for t in spec.inputs))
            over = before["token"][:, 0] == EOS_ID
            ended += int(over.sum())
            assert (token[over] == EOS_ID).all()
            assert (score[over] == 0).all()
            assert torch.equal(state[over], before["state"][over])
            assert torch.equal(coverage[over], before["coverage"][over])
            np.testing.assert_array_equal(found["tokens"][:, index], token[:, 0])
            np.testing.assert_allclose(found["scores"][:, index], score[:, 0], atol=1e-4)
            single |= {"token": token, "state": state, "coverage": coverage}
        np.testing.assert_allclose(found["next_state"], single["state"], atol=1e-4)
        np.testing.assert_allclose(found["next_coverage"], single["coverage"], atol=1e-4)
        feeds |= {
            "token": found["tokens"][:, -1:],
            "state": found["next_state"],
            "coverage": found["next_coverage"],
        }
    assert 0 < ended < 8 * 15


def test_the_step_holds_its_weights_once_whatever_k(graphs: Bundle, checkpoint: Path) -> None:
    network = load_checkpoint(checkpoint)[1]
    decoder = {n: w for n, w in network.named_parameters() if not n.startswith("encoder")}
    used = [w.numel() for n, w in decoder.items() if not n.startswith(("initial", "key_"))]
    model = model_of(graphs, STEP_FILE)
    stored = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    assert sum(used) <= stored <= 1.05 * sum(used) + 100
    assert op_counts(model)["ArgMax"] == 3


# Storage


def expand(model: ModelProto) -> None:
    """Undo ``storage.compress``: every stored weight as one float32 initialiser again."""
    graph = model.graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for half in [name for name in stored if name.endswith(storage.HALF)]:
        name = half.removesuffix(storage.HALF)
        weight = stored[half].astype(np.float32) * stored.get(name + storage.FACTOR, np.float32(1))
        graph.initializer.append(numpy_helper.from_array(weight, name))
        for tensor in [t for t in graph.initializer if t.name in (half, name + storage.FACTOR)]:
            graph.initializer.remove(tensor)
        for node in [n for n in graph.node if n.output[0] in (name, name + storage.UNSCALED)]:
            graph.node.remove(node)


def test_weights_are_stored_as_they_were_trained(graphs: Bundle, checkpoint: Path) -> None:
    """float16 storage loses nothing: the graph's kernels are the folded checkpoint's."""
    folded, scales = fold_batch_norm(load_checkpoint(checkpoint)[1])
    model = model_of(graphs, ENCODER_FILE)
    halves = [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT16]
    assert len(halves) >= 20
    expand(model)
    assert not [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT16]
    found = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for name in scales:
        kernel = folded.get_parameter(name).detach().numpy()
        np.testing.assert_allclose(found[name], kernel, rtol=1e-6)


@pytest.mark.parametrize("file", [ENCODER_FILE, STEP_FILE])
def test_stored_and_expanded_graphs_answer_alike(graphs: Bundle, file: str) -> None:
    image, size = to_batch(tiny.images(4))
    feeds: Tensors = {"image": image, "size": size}
    if file == STEP_FILE:
        feeds = first_step(encode(graphs, tiny.images(4)))
    model = model_of(graphs, file)
    expand(model)
    onnx.checker.check_model(model, full_check=True)
    expanded = run(model.SerializeToString(), feeds)
    for name, values in run(graphs.file(file), feeds).items():
        np.testing.assert_array_equal(values, expanded[name])


@pytest.mark.parametrize("file", [ENCODER_FILE, STEP_FILE])
def test_the_runtime_restores_the_weights_at_load(
    graphs: Bundle, file: str, tmp_path: Path
) -> None:
    """Otherwise every call would convert them anew."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / file)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    onnxruntime.InferenceSession(
        str(graphs.file(file)), options, providers=["CPUExecutionProvider"]
    )
    loaded = onnx.load(tmp_path / file).graph
    assert not [t.name for t in loaded.initializer if t.data_type == TensorProto.FLOAT16]
    weights = {tensor.name for tensor in loaded.initializer}
    assert not [n.name for n in loaded.node if n.op_type == "Cast" and n.input[0] in weights]


def test_a_weight_too_large_for_float16_is_refused() -> None:
    tensor = numpy_helper.from_array(np.full((16, 16), 1e6, np.float32), "weight")
    graph = helper.make_graph([], "large", [], [], [tensor])
    with pytest.raises(ExportError, match=r"weight reaches 1e\+06.*--storage float32"):
        storage.compress(helper.make_model(graph), {})


# Checks


def small_graph(op: str = "Relu", to: int = TensorProto.FLOAT, size: int | str = "height") -> Any:
    shape = ["batch", size]
    kind = TensorProto.INT64 if op == "NonZero" else to
    node = helper.make_node(op, ["x"], ["y"], name="node")
    if op == "Cast":
        node.attribute.append(helper.make_attribute("to", to))
    graph = helper.make_graph(
        [node],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", kind, [2, "n"] if op == "NonZero" else shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def small_spec(dims: tuple[int | str, ...] = ("height",), out: str = "float32") -> ModelSpec:
    return ModelSpec("small", (TensorSpec("x", "float32", dims),), (TensorSpec("y", out, dims),))


def test_a_graph_as_the_contract_wants_it_passes() -> None:
    check_graph(small_graph(), small_spec())


@pytest.mark.parametrize(
    ("model", "spec", "complaint"),
    [
        (small_graph("NonZero"), small_spec(), "uses NonZero .* TensorRT refuses"),
        (small_graph("Dropout"), small_spec(), "still has a Dropout"),
        (small_graph("Cast", TensorProto.DOUBLE), small_spec(), "is DOUBLE"),
        (small_graph(size=7), small_spec(), r"axes \['batch', 7\].*\['batch', 'height'\]"),
        (small_graph(), small_spec((7,)), r"asks for \['batch', 7\]"),
        (small_graph(), small_spec(out="int32"), "is float32, but the contract asks for int32"),
    ],
)
def test_a_graph_that_is_not_servable_is_refused(
    model: ModelProto, spec: ModelSpec, complaint: str
) -> None:
    with pytest.raises(ExportError, match=complaint):
        check_graph(model, spec)


def test_swapped_tensors_and_invalid_graphs_are_refused() -> None:
    swapped = ModelSpec("small", small_spec().outputs, small_spec().inputs)
    with pytest.raises(ExportError, match="inputs x, but the contract asks for y"):
        check_interface(small_graph(), swapped)
    invalid = small_graph()
    invalid.graph.node[0].input[0] = "nobody"
    with pytest.raises(ExportError, match="not valid ONNX"):
        check_graph(invalid, small_spec())


def test_a_specialised_axis_is_refused_not_renamed() -> None:
    with pytest.raises(ExportError, match=r"height.*specialised to 7"):
        name_axes(small_graph(size=7), small_spec())
    formula = small_graph(size="8*h")
    name_axes(formula, small_spec())
    check_graph(formula, small_spec())
