"""The in-process runtimes, on a graph of two nodes and on an exported bundle."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from hmer import contract
from hmer.bundle import ENCODER_FILE, STEP_FILE, Bundle
from hmer.errors import (
    BadParameter,
    CorruptBundle,
    InferenceFailed,
    MissingBundle,
    MissingDependency,
)
from hmer.runtime import ONNXRUNTIME, OPENVINO, TARGETS, Runner, open_runner, thread_count

WEIGHT = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], np.float32)


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(request.param)
    return str(request.param)


@pytest.fixture(scope="session")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``product = x @ WEIGHT`` and ``doubled = x + x``, any batch."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("MatMul", ["x", "w"], ["product"]),
                helper.make_node("Add", ["x", "x"], ["doubled"]),
            ],
            "two_nodes",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
            [
                helper.make_tensor_value_info("product", TensorProto.FLOAT, ["batch", 2]),
                helper.make_tensor_value_info("doubled", TensorProto.FLOAT, ["batch", 3]),
            ],
            [numpy_helper.from_array(WEIGHT, "w")],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    path = tmp_path_factory.mktemp("graph") / "two_nodes.onnx"
    onnx.save(model, path)
    return path


def test_outputs_by_name_for_any_batch(target: str, graph: Path) -> None:
    with open_runner(target, graph) as runner:
        assert (runner.inputs, runner.outputs) == (("x",), ("product", "doubled"))
        for batch in (1, 4, 2, 0):
            x = np.arange(3 * batch, dtype=np.float32).reshape(batch, 3)
            outputs = runner.infer({"x": x})
            assert list(outputs) == ["product", "doubled"]
            np.testing.assert_allclose(outputs["product"], x @ WEIGHT)
            np.testing.assert_allclose(outputs["doubled"], 2 * x)


def test_outputs_outlive_the_next_call_and_the_runner(target: str, graph: Path) -> None:
    with open_runner(target, graph) as runner:
        first = runner.infer({"x": np.ones((2, 3), np.float32)})
        runner.infer({"x": np.zeros((2, 3), np.float32)})
    np.testing.assert_allclose(first["doubled"], 2.0)


def test_changed_inputs_are_seen(target: str, graph: Path) -> None:
    """Slots are written in place between calls."""
    with open_runner(target, graph) as runner:
        x = np.ones((2, 3), np.float32)
        runner.infer({"x": x})
        x[1] = 5.0
        np.testing.assert_allclose(runner.infer({"x": x})["doubled"], 2 * x)


def test_several_threads(target: str, graph: Path) -> None:
    wrong: list[int] = []
    with open_runner(target, graph) as runner:

        def work(number: int) -> None:
            x = np.full((number + 1, 3), number, np.float32)
            for _ in range(50):
                if not np.allclose(runner.infer({"x": x})["product"], x @ WEIGHT):
                    wrong.append(number)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_idle_threads_sleep(target: str, graph: Path) -> None:
    with open_runner(target, graph, threads=2) as runner:
        runner.infer({"x": np.ones((4096, 3), np.float32)})
        before = time.process_time()
        time.sleep(0.2)
        assert time.process_time() - before < 0.1


def test_failures_say_what_was_wrong(target: str, graph: Path) -> None:
    runner = open_runner(target, graph)
    with runner:
        with pytest.raises(InferenceFailed, match="takes the inputs x, but got y"):
            runner.infer({"y": np.ones((1, 3), np.float32)})
        with pytest.raises(InferenceFailed, match=r"two_nodes.onnx failed with x \(1, 4\): ."):
            runner.infer({"x": np.ones((1, 4), np.float32)})
        assert runner.infer({"x": np.ones((1, 3), np.float32)}), "it works on after a failure"
    runner.close()
    with pytest.raises(InferenceFailed, match="closed"):
        runner.infer({"x": np.ones((1, 3), np.float32)})


def test_files_that_cannot_be_loaded(target: str, graph: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingBundle, match=r"no-graph\.onnx"):
        open_runner(target, tmp_path / "no-graph.onnx")
    whole = graph.read_bytes()
    for name, content in {"text": b"not a graph", "part": whole[: len(whole) // 2]}.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(content)
        with pytest.raises(CorruptBundle, match="cannot be loaded"):
            open_runner(target, path)


def test_a_missing_library_names_the_extra(
    target: str, graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, target, None)
    extra = {ONNXRUNTIME: "serve", OPENVINO: "openvino"}[target]
    with pytest.raises(MissingDependency, match=rf"pip install 'hmer\[{extra}\]'"):
        open_runner(target, graph)


def test_options_out_of_range(graph: Path) -> None:
    with pytest.raises(BadParameter, match="onnxruntime, openvino"):
        open_runner("coreml", graph)
    with pytest.raises(BadParameter, match="openvino"):
        open_runner(ONNXRUNTIME, graph, precision="bf16")
    with pytest.raises(BadParameter, match="one of fp32, fp16, bf16, int8"):
        open_runner(OPENVINO, graph, precision="int3")
    with pytest.raises(BadParameter, match="threads"):
        open_runner(ONNXRUNTIME, graph, threads=-1)


def test_threads(graph: Path) -> None:
    assert thread_count(3) == 3
    assert thread_count(0) == len(os.sched_getaffinity(0))
    pytest.importorskip(ONNXRUNTIME)
    from hmer.runtime import OnnxRuntimeRunner

    options = OnnxRuntimeRunner(graph, threads=2)._session.get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_bf16_is_near_fp32(graph: Path) -> None:
    pytest.importorskip(OPENVINO)
    x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    with open_runner(OPENVINO, graph, precision="bf16") as runner:
        np.testing.assert_allclose(runner.infer({"x": x})["product"], x @ WEIGHT, atol=0.1)


@pytest.mark.parametrize(
    ("model", "file"), [(contract.ENCODER, ENCODER_FILE), (contract.DECODER_STEP, STEP_FILE)]
)
def test_exported_graphs_load_and_speak_the_contract(
    target: str, tiny_graphs: Bundle, model: str, file: str
) -> None:
    spec = contract.models(tiny_graphs.sizes)[model]
    runner: Runner
    with open_runner(target, tiny_graphs.file(file)) as runner:
        assert set(runner.inputs) == {tensor.name for tensor in spec.inputs}
        assert set(runner.outputs) == {tensor.name for tensor in spec.outputs}
