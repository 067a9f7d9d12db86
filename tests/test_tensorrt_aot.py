"""tensorrt_rtx AOT compile: NVIDIA's own parser and builder on real graphs, without a GPU.

It shows that they accept the graphs with these types and profiles. Nothing here can run one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from export.engines import graphs_of
from export.tensorrt_aot import TARGETS, aot_compile
from export.tensorrt_api import logger
from export.tensorrt_build import EngineOptions, build_plan, write_plan
from hmer.bundle import GRAPHS, Bundle, load_bundle, save_bundle
from hmer.engine import check_bundle, read_sidecar
from hmer.errors import ExportError
from tests import fake_tensorrt

SHIPPED = Path(__file__).resolve().parent.parent / "hmer" / "pretrained"
RTX = {"flavour": "tensorrt_rtx", "targets": ("8.9",)}


@pytest.fixture(scope="module")
def trt() -> Any:
    return pytest.importorskip(
        "tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'hmer[rtx]'"
    )


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    return load_bundle(SHIPPED, GRAPHS)


@pytest.mark.parametrize("target", TARGETS)
def test_shipped_graphs(trt: Any, shipped: Bundle, target: str) -> None:
    rows = list(aot_compile(trt, shipped, [target]))
    assert [row.graph for row in rows] == list(graphs_of(shipped))
    assert [row.error for row in rows] == [""] * len(rows)
    assert all(row.bytes > 1_000_000 for row in rows)


def test_a_plan_and_its_sidecar(trt: Any, shipped: Bundle, tmp_path: Path) -> None:
    plan = build_plan(trt, shipped, "decoder_step", EngineOptions(**RTX, max_batch=32), None)
    path = write_plan(plan, tmp_path)
    info = read_sidecar(path)
    check_bundle(info, path, shipped)
    assert info.version == trt.__version__
    assert [tensor.name for tensor in info.inputs][:3] == ["values", "keys", "feature_size"]
    assert info.profiles[0].axes["batch"] == (1, 1, 32)


def test_a_gpu_that_cannot_do_it(trt: Any, shipped: Bundle) -> None:
    (row,) = aot_compile(trt, shipped, ["7.5"], graphs=["encoder"])
    assert "FP32 GEMM is not supported" in row.error
    (row,) = aot_compile(trt, shipped, ["9.9"], graphs=["encoder"])
    assert "has no ComputeCapability.SM99" in row.error


def test_an_operator_that_tensorrt_refuses(trt: Any, shipped: Bundle, tmp_path: Path) -> None:
    for name in ("encoder.onnx", "decoder_step.onnx"):
        model = onnx.load(shipped.file(name))
        model.graph.node[0].op_type = "NoSuchOperator"
        (tmp_path / name).write_bytes(model.SerializeToString())
    broken = Bundle(
        tmp_path, GRAPHS, shipped.vocabulary, shipped.preprocess, shipped.network, k=shipped.k
    )
    save_bundle(broken, ["encoder.onnx", "decoder_step.onnx"])
    with pytest.raises(ExportError, match=r"refuses encoder\.onnx: .*NoSuchOperator"):
        build_plan(trt, broken, "encoder", EngineOptions(**RTX), None)


def test_the_stored_names_are_those_of_the_library(trt: Any) -> None:
    """``tests/tensorrt_api`` is what the other tests trust."""
    if trt.__version__ != "1.7.1.116":
        pytest.skip(f"the stored names are of 1.7.1.116, and this is {trt.__version__}")
    stored = fake_tensorrt.names_of(fake_tensorrt.RTX)
    for kind, names in stored.items():
        holder = trt if kind == "module" else getattr(trt, kind)
        assert {name for name in names if not hasattr(holder, name)} == set()
    assert {name for name in dir(trt.Builder) if not name.startswith("_")} <= stored["Builder"]


def test_the_real_logger_keeps_what_was_said(trt: Any, shipped: Bundle) -> None:
    log = logger(trt)
    assert logger(trt) is log
    log.errors()
    network = trt.Builder(log).create_network(0)  # the parser does not keep it alive
    parser = trt.OnnxParser(network, log)
    assert not parser.parse(b"no graph")
    assert log.errors()
