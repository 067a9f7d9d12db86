"""``hmer-bench limits``: work counted from graphs, peaks, and the distance to them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from benchmarks import limits as module
from benchmarks import peaks as peaks_module
from benchmarks.cli import main
from benchmarks.graph_cost import graph_cost
from benchmarks.limits import best_peak, measure, tables
from benchmarks.peaks import BF16, CONVOLUTION, FP32, GEMM, INT8, Peak, best_seconds, write_graph
from benchmarks.repositories import Chosen
from hmer.bundle import ENCODER_FILE, STEP_FILE, Bundle
from hmer.errors import CorruptBundle, ExportError
from hmer.runtime import open_runner
from tests.test_recognizer import pictures

ORT = Chosen("onnxruntime", "onnxruntime", "fp32")


def save(
    path: Path, nodes: list[Any], inputs: dict[str, Any], weights: dict[str, Any], output: str
) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, t, s) for n, (t, s) in inputs.items()],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    path.write_bytes(model.SerializeToString())
    return path


def test_a_graph_is_counted(tmp_path: Path) -> None:
    """Convolution, product, table and a weight that is stored as float16, by hand."""
    weights = {
        "w": np.ones((8, 3, 3, 3), np.float32),
        "half": np.ones((8, 5), np.float16),
        "table": np.ones((100, 5), np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["half"], ["full"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["x", "w"], ["c"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("ReduceMean", ["r", "axes"], ["m"], keepdims=0),
        helper.make_node("MatMul", ["m", "full"], ["p"]),
        helper.make_node("MatMul", ["m", "full"], ["p2"]),
        helper.make_node("Gather", ["table", "token"], ["e"]),
        helper.make_node("Sum", ["p", "p2", "e"], ["y"]),
    ]
    weights["axes"] = np.array([2, 3], np.int64)
    inputs = {
        "x": (TensorProto.FLOAT, ["b", 3, "h", "w"]),
        "token": (TensorProto.INT64, ["b"]),
    }
    path = save(tmp_path / "g.onnx", nodes, inputs, weights, "y")
    feeds: dict[str, Any] = {
        "x": np.zeros((2, 3, 10, 12), np.float32),
        "token": np.zeros(2, np.int64),
    }
    cost = graph_cost(path, feeds)
    out = 2 * 8 * 5 * 6  # images, channels, height and width after the stride
    assert cost.flops["conv"] == 2 * out * 3 * 9
    assert cost.flops["matmul"] == 2 * (2 * 2 * 5 * 8)
    assert cost.flops["elementwise"] == out + out  # Relu, then the mean reads all
    assert cost.uncounted == {"Gather": 1, "Sum": 1}
    matrix, kernel, axes = 8 * 5 * 4, 8 * 3 * 9 * 4, 2 * 8
    assert cost.weights == matrix + kernel + axes + 100 * 5 * 4
    assert cost.weight_reads == 2 * matrix + kernel + axes + 2 * 5 * 4  # two rows of the table
    assert cost.in_out == 2 * 3 * 10 * 12 * 4 + 2 * 8 + 2 * 5 * 4
    assert cost.total_flops == sum(cost.flops.values())


def test_k_tokens_a_call_read_the_weights_k_times(tiny_graphs: Bundle) -> None:
    sizes = tiny_graphs.sizes
    h, w = 3, 4
    feeds: dict[str, Any] = {
        "values": np.zeros((1, h, w, 2 * sizes.features), np.float32),
        "keys": np.zeros((1, h, w, sizes.attention), np.float32),
        "feature_size": np.array([[h, w]], np.int32),
        "token": np.array([[1]], np.int32),
        "state": np.zeros((1, sizes.state), np.float32),
        "coverage": np.zeros((1, h, w), np.float32),
    }
    cost = graph_cost(tiny_graphs.file(STEP_FILE), feeds)
    assert sizes.k == 3
    assert 2 * cost.weights < cost.weight_reads <= 3 * cost.weights
    recurrent = 4 * sizes.hidden * sizes.hidden
    assert cost.flops["matmul"] > sizes.k * 2 * recurrent
    assert cost.flops["conv"] == 0
    more = graph_cost(
        tiny_graphs.file(STEP_FILE), {n: np.repeat(v, 2, axis=0) for n, v in feeds.items()}
    )
    assert more.flops["matmul"] == 2 * cost.flops["matmul"]
    assert more.weights == cost.weights


def test_the_encoder_grows_with_the_picture(tiny_graphs: Bundle) -> None:
    def cost(width: int) -> int:
        image = np.zeros((1, 1, 64, width), np.uint8)
        feeds: dict[str, Any] = {"image": image, "size": np.array([[64, width]], np.int32)}
        return graph_cost(tiny_graphs.file(ENCODER_FILE), feeds).flops["conv"]

    assert cost(64) > 0
    assert cost(128) == 2 * cost(64)


def test_graphs_that_cannot_be_counted(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    with pytest.raises(CorruptBundle, match=r"bad\.onnx"):
        graph_cost(tmp_path / "bad.onnx", {})
    branch = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["z"])],
        "b",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    inputs = {"x": (TensorProto.FLOAT, [1]), "c": (TensorProto.BOOL, [])}
    path = save(tmp_path / "if.onnx", [node], inputs, {}, "y")
    with pytest.raises(ExportError, match="has a If"):
        graph_cost(path, {"x": np.zeros(1, np.float32), "c": np.array(True)})


@pytest.mark.parametrize(
    ("work", "precision", "size", "flops"),
    [
        (GEMM, FP32, 16, 2 * 16**3),
        (CONVOLUTION, FP32, (4, 6, 8), 4 * 2 * 4 * 4 * 9 * 6 * 8),
        (CONVOLUTION, INT8, (4, 6, 8), 4 * 2 * 4 * 4 * 9 * 6 * 8),
    ],
)
def test_graphs_of_peaks_do_what_they_say(
    work: str, precision: str, size: Any, flops: int, tmp_path: Path
) -> None:
    path = tmp_path / "peak.onnx"
    told, feed = write_graph(path, work, precision, size)
    assert told == flops
    onnx.checker.check_model(onnx.load(path))
    counted = graph_cost(path, {"x": feed})
    assert counted.flops["conv"] + counted.flops["matmul"] == flops
    with open_runner("onnxruntime", path) as runner:
        (out,) = runner.infer({"x": feed}).values()
    assert out.shape == feed.shape
    assert np.isfinite(out).all()
    assert np.abs(out).max() > 0


def test_the_best_of_several_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 5.0, 10.0, 12.0, 20.0, 24.0])
    monkeypatch.setattr("benchmarks.peaks.time.perf_counter", lambda: next(ticks))
    calls: list[int] = []
    assert best_seconds(lambda: calls.append(1), budget=0.0) == 2.0
    assert len(calls) == 4  # the first is not timed


def test_memory_is_read() -> None:
    assert peaks_module.bandwidth(2, 1 << 20, budget=0.0) > 0


def test_the_limit_is_the_faster_of_bf16_and_fp32() -> None:
    def peak(precision: str, gflops: float, work: str = CONVOLUTION) -> Peak:
        return Peak(work, precision, 2, gflops, "x")

    fp32, int8, gemm = peak(FP32, 200.0), peak(INT8, 900.0), peak(FP32, 500.0, GEMM)
    assert best_peak([fp32, int8, gemm]) is fp32
    assert best_peak([fp32, peak(BF16, 70.0)]) is fp32  # emulated, and slower
    assert best_peak([fp32, peak(BF16, 1300.0)]).precision == BF16


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Peaks that nobody measured, for the shape of a report; 1 GFLOP/s, 1 GB/s, 1 ms a call."""
    found = [Peak(CONVOLUTION, FP32, 2, 1.0, "a fake")]
    monkeypatch.setattr(module, "peaks", lambda *_, **__: found)
    monkeypatch.setattr(module, "bandwidth", lambda *_, **__: 1.0)

    def once(run: Callable[[], object], budget: float) -> float:
        run()
        return 1e-3

    monkeypatch.setattr(module, "best_seconds", once)
    return once


def test_gaps(quick: object, tiny_graphs: Bundle) -> None:
    found = measure(tiny_graphs, ORT, pictures(2))
    encoder, step = found["encoder"], found["step"]
    flops = sum(image["total_flops"] for image in encoder["images"])
    assert encoder["gap"] == pytest.approx(2e-3 / (flops / 1e9))
    assert encoder["limit_ms"] == pytest.approx(flops / 2 / 1e6)
    at = next(batch for batch in step["batches"] if batch["rows"] == module.AT)
    assert step["gap"] == pytest.approx(1e-3 / (at["weight_read_bytes"] / 1e9))
    assert [batch["rows"] for batch in step["batches"]] == list(module.ROWS)
    assert "1 GFLOP/s, 3x3 convolution in fp32" in encoder["against"]
    json.dumps(found)
    assert [len(t.rows) for t in tables(found)] == [1 + len(found["bandwidth_gb_s"]), 4]


def test_the_command(quick: object, tiny_graphs: Bundle, tmp_path: Path) -> None:
    output = tmp_path / "limits.json"
    bundle = ("--bundle", str(tiny_graphs.folder), "--limit", "2")
    result = CliRunner().invoke(main, ["limits", *bundle, "--output", str(output), "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report == json.loads(output.read_text(encoding="utf-8"))
    assert report["benchmark"] == "limits"
    assert report["data"] == "samples"
    shown = CliRunner().invoke(main, ["limits", *bundle, "--markdown"])
    assert "| encoder, a picture |" in shown.output
    broken = CliRunner().invoke(main, ["limits", "--bundle", "nowhere"])
    assert broken.exit_code == 1
    assert "There is no bundle.json in nowhere" in broken.stderr
