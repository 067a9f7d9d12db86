"""What this machine does at best: products of matrices, convolutions, reading memory.

Small ONNX graphs that do nothing else run in the same runtimes as the network; of several sizes
and runtimes the best counts, for a limit is what anything reached.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from export.targets import openvino_has_bf16
from hmer.errors import HmerError, MissingDependency
from hmer.runtime import ONNXRUNTIME, OPENVINO, open_runner

GEMM, CONVOLUTION = "gemm", "conv3x3"
FP32, BF16, INT8 = "fp32", "bf16", "int8"
_LAYERS = 4
_GEMM_SIDES = (512, 1024)
_CONVOLUTIONS = ((64, 48, 160), (128, 24, 80), (256, 16, 48))  # channels, height, width
_MEMORY = 256 << 20  # bytes: no cache holds them


@dataclass(frozen=True)
class Peak:
    """Operations a second (10^9; a multiplication and an addition are two), and what reached it."""

    work: str
    precision: str
    threads: int
    gflops: float
    by: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dict(vars(self))


def best_seconds(run: Callable[[], object], budget: float, least: int = 3) -> float:
    """The shortest of the calls that fit into ``budget`` seconds, after one that is not timed."""
    run()
    best, spent, calls = float("inf"), 0.0, 0
    while calls < least or spent < budget:
        began = time.perf_counter()
        run()
        took = time.perf_counter() - began
        best, spent, calls = min(best, took), spent + took, calls + 1
    return best


def peaks(threads: int, budget: float = 0.3) -> list[Peak]:
    """Every kind of work in every precision that this CPU has, ``budget`` seconds a try.

    bf16 only where OpenVINO says that the CPU has it, at whatever speed. A runtime that is not
    installed is left out. Raises ``MissingDependency`` without onnx.
    """
    tries = [
        (GEMM, FP32, ONNXRUNTIME),
        (GEMM, FP32, OPENVINO),
        (CONVOLUTION, FP32, ONNXRUNTIME),
        (CONVOLUTION, FP32, OPENVINO),
        (CONVOLUTION, INT8, ONNXRUNTIME),
        (CONVOLUTION, INT8, OPENVINO),
    ]
    if _has_bf16():
        tries += [(GEMM, BF16, OPENVINO), (CONVOLUTION, BF16, OPENVINO)]
    found: dict[tuple[str, str], Peak] = {}
    with tempfile.TemporaryDirectory() as folder:
        for work, precision, target in tries:
            for size in _GEMM_SIDES if work == GEMM else _CONVOLUTIONS:
                path = Path(folder) / f"{work}-{precision}-{size}.onnx"
                flops, feed = write_graph(path, work, precision, size)
                try:
                    gflops = _gflops(path, target, precision, threads, flops, feed, budget)
                except HmerError:
                    continue
                peak = Peak(work, precision, threads, gflops, f"{target}, {size}")
                if gflops > found.get((work, precision), Peak("", "", 0, 0.0, "")).gflops:
                    found[work, precision] = peak
    return list(found.values())


def bandwidth(threads: int, bytes_: int = _MEMORY, budget: float = 0.3) -> float:
    """10^9 bytes a second that ``threads`` threads read together, each its part of ``bytes_``.

    With less than a cache holds it is the cache that is read.
    """
    parts = [np.ones(max(1, bytes_ // 4 // threads), np.float32) for _ in range(threads)]
    # Few bytes are read several times a call, so that the call itself does not count.
    times = max(1, (64 << 20) // bytes_)

    def read(part: Any) -> None:
        for _ in range(times):
            np.dot(part, part)  # reads it once: both operands are the same bytes

    with ThreadPoolExecutor(threads) as pool:
        seconds = best_seconds(lambda: list(pool.map(read, parts)), budget)
    return sum(part.nbytes for part in parts) * times / seconds / 1e9


def write_graph(path: Path, work: str, precision: str, size: Any) -> tuple[int, Any]:
    """A graph that does only ``work``; its operations and its input."""
    if work == GEMM:
        nodes, weights, shape, flops = _gemm(size)
    else:
        nodes, weights, shape, flops = _convolutions(size, precision == INT8)
    onnx = _onnx()
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        work,
        [onnx.helper.make_tensor_value_info("x", kind, shape)],
        [onnx.helper.make_tensor_value_info("y", kind, shape)],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    model.ir_version = 9
    path.write_bytes(model.SerializeToString())
    rng = np.random.default_rng(0)
    return flops, rng.standard_normal(shape).astype(np.float32)


def _gemm(side: int) -> tuple[list[Any], dict[str, Any], tuple[int, ...], int]:
    weight = np.random.default_rng(1).standard_normal((side, side)).astype(np.float32)
    node = _onnx().helper.make_node("MatMul", ["x", "w"], ["y"])
    return [node], {"w": weight / side}, (side, side), 2 * side**3


def _convolutions(
    size: tuple[int, int, int], int8: bool
) -> tuple[list[Any], dict[str, Any], tuple[int, ...], int]:
    """Several layers, so that a runtime's own layout of the picture is made once for all."""
    make, (channels, height, width) = _onnx().helper.make_node, size
    rng = np.random.default_rng(1)
    weights: dict[str, Any] = {"scale": np.float32(0.05), "zero": np.int8(0)}
    nodes = []
    value = "x"
    for layer in range(_LAYERS):
        shape = (channels, channels, 3, 3)
        name = f"w{layer}"
        if int8:
            weights[name] = rng.integers(-127, 128, shape).astype(np.int8)
            scales = {f"{name}_scale": np.float32(0.001)}
            weights |= scales
            quantised = [f"q{layer}", f"d{layer}", f"dw{layer}"]
            nodes += [
                make("QuantizeLinear", [value, "scale", "zero"], [quantised[0]]),
                make("DequantizeLinear", [quantised[0], "scale", "zero"], [quantised[1]]),
                make("DequantizeLinear", [name, f"{name}_scale", "zero"], [quantised[2]]),
            ]
            inputs = quantised[1:]
        else:
            weights[name] = (rng.standard_normal(shape) * 0.02).astype(np.float32)
            inputs = [value, name]
        value = "y" if layer == _LAYERS - 1 else f"v{layer}"
        nodes.append(make("Conv", inputs, [value], pads=[1, 1, 1, 1], kernel_shape=[3, 3]))
    if not int8:
        weights = {name: value for name, value in weights.items() if name.startswith("w")}
    flops = _LAYERS * 2 * channels * channels * 9 * height * width
    return nodes, weights, (1, channels, height, width), flops


def _gflops(
    path: Path, target: str, precision: str, threads: int, flops: int, feed: Any, budget: float
) -> float:
    asked = precision if precision == BF16 else FP32
    with open_runner(target, path, threads, asked) as runner:
        return flops / best_seconds(lambda: runner.infer({"x": feed}), budget) / 1e9


def _has_bf16() -> bool:
    try:
        return openvino_has_bf16()
    except ImportError:
        return False


def _onnx() -> Any:
    try:
        import_module("onnx.helper")
        import_module("onnx.numpy_helper")
        return import_module("onnx")
    except ImportError as error:
        raise MissingDependency("Measuring peaks needs onnx: pip install 'hmer[bench]'") from error
