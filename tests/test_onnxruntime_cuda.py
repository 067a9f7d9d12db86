"""ONNX Runtime on a GPU: a stand-in for the library says what a machine has."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hmer.errors import (
    CorruptBundle,
    InferenceFailed,
    MissingBundle,
    MissingDependency,
    ServerSetupError,
)
from hmer.onnxruntime_cuda import CUDA_PROVIDER, OnnxRuntimeCudaRunner

CPU_PROVIDER = "CPUExecutionProvider"


class Session:
    """A graph that doubles ``x``; ``used`` are the providers that it really runs on."""

    used: tuple[str, ...] = (CUDA_PROVIDER, CPU_PROVIDER)
    asked: Any = None

    def __init__(self, path: str, options: Any, providers: Any) -> None:
        if Path(path).read_bytes() == b"broken":
            raise RuntimeError("Protobuf parsing failed.")
        type(self).asked = providers

    def get_providers(self) -> list[str]:
        return list(self.used)

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="x")]

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name="y")]

    def run(self, names: list[str], feeds: dict[str, Any]) -> list[Any]:
        return [2 * feeds["x"]]


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    found = SimpleNamespace(
        __version__="1.31.1",
        SessionOptions=SimpleNamespace,
        InferenceSession=type("Own", (Session,), {}),
        get_available_providers=lambda: [CUDA_PROVIDER, CPU_PROVIDER],
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", found)
    return found


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "step.onnx"
    path.write_bytes(b"whole")
    return path


def test_it_runs(library: SimpleNamespace, graph: Path) -> None:
    with OnnxRuntimeCudaRunner(graph, device=1) as runner:
        assert (runner.inputs, runner.outputs) == (("x",), ("y",))
        answer = runner.infer({"x": np.arange(3)})["y"]
    assert answer.tolist() == [0, 2, 4]
    ((provider, settings),) = library.InferenceSession.asked
    assert provider == CUDA_PROVIDER
    assert (settings["device_id"], settings["use_tf32"]) == (1, 0)
    with pytest.raises(InferenceFailed, match="closed"):
        runner.infer({"x": np.arange(3)})


def test_a_session_that_fell_back_to_the_cpu(library: SimpleNamespace, graph: Path) -> None:
    library.InferenceSession.used = (CPU_PROVIDER,)
    with pytest.raises(ServerSetupError, match="cannot use GPU 0"):
        OnnxRuntimeCudaRunner(graph)


def test_a_build_for_the_cpu(library: SimpleNamespace, graph: Path) -> None:
    library.get_available_providers = lambda: [CPU_PROVIDER]
    with pytest.raises(MissingDependency, match="onnxruntime-gpu"):
        OnnxRuntimeCudaRunner(graph)


def test_bad_graphs(library: SimpleNamespace, graph: Path) -> None:
    graph.write_bytes(b"broken")
    with pytest.raises(CorruptBundle, match="Protobuf parsing failed"):
        OnnxRuntimeCudaRunner(graph)
    with pytest.raises(MissingBundle):
        OnnxRuntimeCudaRunner(graph.with_name("none.onnx"))
