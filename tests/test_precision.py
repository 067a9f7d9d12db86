"""Graphs in fp16, bf16 and int8: what is in them, what they answer, what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper

from export import gate, quantise
from export.checks import check_graph, op_counts, opset_of
from export.emulate import emulate
from export.graphs import EncoderGraph, fold_batch_norm
from export.precision import HALVES, lower
from export.precision_checks import HALF_TYPES, ISLANDS, graph_precision, tensor_types
from export.trace import OPSET
from hmer import contract
from hmer.bundle import BEAM_FILE, ENCODER_FILE, STEP_FILE, Bundle
from hmer.errors import BundleError
from hmer.preprocess import to_batch
from hmer.runtime import open_runner
from hmer.vocab import EOS_ID, SOS_ID
from tests import tiny
from tests.export_fixtures import in_precision
from training.checkpoint import load_checkpoint

Tensors = dict[str, NDArray[Any]]
MODELS = {
    contract.ENCODER: ENCODER_FILE,
    contract.DECODER_STEP: STEP_FILE,
    contract.DECODER_BEAM: BEAM_FILE,
}
# Largest difference of a feature from fp32's, which are of order 1 in the tiny network.
CLOSE = {"fp16": 0.01, "bf16": 0.08, "int8": 0.5}


@pytest.fixture(scope="module")
def fp16(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return in_precision("fp16", tmp_path_factory.mktemp("fp16") / "graphs")


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return in_precision("int8", tmp_path_factory.mktemp("int8") / "graphs")


def graph_of(bundle: Bundle, file: str) -> ModelProto:
    return onnx.load(bundle.file(file))


def run(model: ModelProto, feeds: Tensors) -> Tensors:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def encoder_feeds(count: int = 5) -> Tensors:
    image, size = to_batch(tiny.images(count))
    return {"image": image, "size": size}


def step_feeds(encoded: Tensors) -> Tensors:
    return encoded | {
        "token": np.full((len(encoded["state"]), 1), SOS_ID, np.int32),
        "coverage": np.zeros(encoded["keys"].shape[:3], np.float32),
    }


# What is in the files


def test_every_graph_keeps_the_contract_in_its_precision(low: Bundle) -> None:
    for name, spec in contract.models(low.sizes).items():
        if name in MODELS:
            model = graph_of(low, MODELS[name])
            precision = graph_precision(name, low.precision)
            check_graph(model, spec, precision)
            assert opset_of(model) == (22 if precision == "bf16" else OPSET)
    assert low.details["export"]["loss"]["precision"] == low.precision


@pytest.mark.parametrize("low", HALVES, indirect=True)
def test_matrices_are_16_bits_and_islands_32(low: Bundle) -> None:
    half = HALF_TYPES[low.precision]
    for file in gate.present_graphs(low):
        model = graph_of(low, file)
        types = tensor_types(model)
        read = {(node.op_type, types[node.input[0]]) for node in model.graph.node if node.input}
        assert ("Conv" if file == ENCODER_FILE else "Gemm", half) in read
        for op, kind in read:
            assert op not in ISLANDS or kind not in HALF_TYPES.values()
        stored = Counter(t.data_type for t in model.graph.initializer if np.prod(t.dims) > 256)
        assert stored[half] >= 3
        if file == ENCODER_FILE:
            continue
        # Coverage and cell state accumulate: their sums are of float32 tensors.
        makers = {name: node for node in model.graph.node for name in node.output}
        frozen = makers["next_coverage"]
        assert frozen.op_type == "Where"
        grown = makers[frozen.input[2]]
        assert grown.op_type == "Add"
        assert {types[name] for name in grown.input} == {TensorProto.FLOAT}
        cells = [n for n in model.graph.node if n.op_type == "Sigmoid"]
        assert cells
        assert {types[node.input[0]] for node in cells} == {TensorProto.FLOAT}


def test_int8_is_the_encoders_alone_and_symmetric(int8: Bundle) -> None:
    encoder, step = graph_of(int8, ENCODER_FILE), graph_of(int8, STEP_FILE)
    kernels = {t.name for t in encoder.graph.initializer if t.data_type == TensorProto.INT8}
    assert len([name for name in kernels if name.endswith("_quantized")]) == 12
    assert not [name for name in kernels if name.startswith(quantise.KEPT)]
    assert op_counts(encoder)["Conv"] == 12 + 1 + 4 + 2  # stem, first stage, 1x1 shortcuts
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(op_counts(step))
    scales = {t.name: numpy_helper.to_array(t) for t in encoder.graph.initializer}
    per_channel = [s for n, s in scales.items() if n.endswith("weight_scale")]
    assert all(scale.ndim == 1 and scale.size > 1 for scale in per_channel)
    # Shortcuts read what was quantised, not the rounded values.
    makers = {name: node for node in encoder.graph.node for name in node.output}
    for node in encoder.graph.node:
        for name in node.input if node.op_type == "Add" else ():
            source = makers.get(name)
            if source is not None and source.op_type == "DequantizeLinear":
                rounded = makers[makers[source.input[0]].input[0]]
                assert rounded.op_type == "Conv"


# What they answer


def test_features_are_close_to_float32(low: Bundle, graphs: Bundle) -> None:
    feeds = encoder_feeds()
    expected = run(graph_of(graphs, ENCODER_FILE), feeds)
    model = graph_of(low, ENCODER_FILE)
    found = run(emulate(model, low.precision) if low.precision in HALVES else model, feeds)
    for name in ("values", "keys", "state"):
        assert found[name].dtype == np.float32
        worst = np.abs(found[name] - expected[name]).max()
        assert 0.0 < worst < CLOSE[low.precision], name
    np.testing.assert_array_equal(found["feature_size"], expected["feature_size"])


@pytest.mark.parametrize("precision", HALVES)
def test_the_emulated_encoder_is_pytorchs(precision: str, checkpoint: Path, tmp_path: Path) -> None:
    """bfloat16 to the last bit but for the order of sums; float16 to a unit in the last place."""
    bundle = in_precision(precision, tmp_path / "graphs")
    feeds = encoder_feeds()
    found = run(emulate(graph_of(bundle, ENCODER_FILE), precision), feeds)
    network = lower(fold_batch_norm(load_checkpoint(checkpoint)[1])[0], precision)
    with torch.no_grad():
        values = EncoderGraph(network)(*(torch.from_numpy(feeds[n]) for n in ("image", "size")))[0]
    np.testing.assert_allclose(found["values"], values.numpy(), atol=3e-3, rtol=2.0**-8)
    features = found["values"][..., : bundle.sizes.features]  # rounded to 16 bits as they left
    kept = torch.from_numpy(features).to(HALVES[precision]).float().numpy()
    np.testing.assert_array_equal(kept, features)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_cpu_runtimes_run_them(low: Bundle, runtime: str) -> None:
    pytest.importorskip(runtime)
    if (runtime, low.precision) == ("onnxruntime", "bf16"):
        with pytest.raises(BundleError, match=r"no CPU operators .* bf16.*openvino"):
            open_runner(runtime, low.file(ENCODER_FILE))
        return
    with (
        open_runner(runtime, low.file(ENCODER_FILE), precision=low.precision) as encoder,
        open_runner(runtime, low.file(STEP_FILE)) as step,
    ):
        outputs = step.infer(step_feeds(encoder.infer(encoder_feeds())))
    assert outputs["tokens"].dtype == np.int32
    assert (outputs["scores"] <= 0).all()
    assert np.isfinite(outputs["next_state"]).all()


def test_padding_and_neighbours_change_nothing(low: Bundle) -> None:
    model = graph_of(low, ENCODER_FILE)
    if low.precision in HALVES:
        model = emulate(model, low.precision)
    images = tiny.images(4)
    image, size = to_batch(images)
    together = run(model, {"image": image, "size": size})
    close = 1e-5 if low.precision == "int8" else CLOSE[low.precision] / 2
    for row, alone in enumerate(images):
        size = np.array([alone.shape], np.int32)
        single = run(model, {"image": alone[None, None], "size": size})
        h, w = single["feature_size"][0]
        for name in ("values", "keys"):
            inside, outside = together[name][row, :h, :w], together[name][row].copy()
            np.testing.assert_allclose(inside, single[name][0], atol=close)
            outside[:h, :w] = 0
            assert not outside.any()


def test_the_beam_graph_in_float16_ranks_as_the_step(fp16: Bundle) -> None:
    feeds = step_feeds(run(emulate(graph_of(fp16, ENCODER_FILE), "fp16"), encoder_feeds()))
    greedy = run(emulate(graph_of(fp16, STEP_FILE), "fp16"), feeds)
    rows = np.arange(5, dtype=np.int32)[:, None]
    beam = run(emulate(graph_of(fp16, BEAM_FILE), "fp16"), feeds | {"parent": rows})
    np.testing.assert_array_equal(beam["candidates"][:, 0], greedy["tokens"][:, 0])
    assert (np.diff(beam["scores"], axis=1) <= 0).all()
    ended = feeds | {"token": np.full((5, 1), EOS_ID, np.int32), "parent": rows}
    stopped = run(emulate(graph_of(fp16, BEAM_FILE), "fp16"), ended)
    np.testing.assert_array_equal(stopped["next_state"], feeds["state"])


def test_training_cannot_go_on_in_half_precision_by_accident(checkpoint: Path) -> None:
    """``lower`` leaves the network that it is given as it was."""
    model = load_checkpoint(checkpoint)[1]
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    lowered = lower(fold_batch_norm(model)[0], "bf16")
    assert lowered.key_feature.weight.dtype == torch.bfloat16
    assert lowered.output.weight.dtype == torch.float32
    for name, weight in model.named_parameters():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, before[name])


def test_the_emulated_copy_is_a_whole_bundle(fp16: Bundle) -> None:
    with gate.computable(fp16) as runnable:
        folder = runnable.folder
        assert folder != fp16.folder
        assert sorted(gate.present_graphs(runnable)) == sorted(MODELS.values())
    assert not folder.exists()
