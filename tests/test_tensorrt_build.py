"""Building an engine: profiles, types, options, refusals (on a stand-in for TensorRT)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from export import tensorrt_api
from export.tensorrt_build import EngineOptions, build_plan, check_gpu, write_plan
from export.tensorrt_profiles import check_profile, profiles, shapes
from hmer import contract
from hmer.bundle import load_bundle, save_bundle
from hmer.contract import Sizes
from hmer.engine import EngineProfile, check_bundle, read_sidecar, tensors_of
from hmer.errors import BadParameter, ExportError, MissingDependency
from hmer.preprocess import PreprocessSettings, size_class, to_batch
from hmer.slots import LADDER
from tests import fake_tensorrt
from tests.engine_fixtures import L4, make_bundle

SIZES = Sizes(features=6, attention=5, hidden=7, stride=16, k=3, beam=4)
SPECS = contract.models(SIZES)
SETTINGS = PreprocessSettings(multiple=16)
GRAPHS = (contract.ENCODER, contract.DECODER_STEP, contract.DECODER_BEAM)


def build(trt: Any, tmp_path: Path, options: EngineOptions | None = None, **changes: Any) -> Any:
    folder = tmp_path / f"bundle-{len(list(tmp_path.iterdir()))}"
    bundle = make_bundle(folder, **changes)
    chosen = options or EngineOptions()
    return build_plan(trt, bundle, contract.ENCODER, chosen, L4, tmp_path / "cache"), bundle


@pytest.mark.parametrize("version", [*fake_tensorrt.VERSIONS, fake_tensorrt.RTX])
def test_a_plan_by_every_version(version: str, tmp_path: Path) -> None:
    trt = fake_tensorrt.make(version)
    rtx = version == fake_tensorrt.RTX
    options = EngineOptions("tensorrt_rtx", targets=("8.9",)) if rtx else EngineOptions()
    bundle = make_bundle(tmp_path / "bundle", beam=4, precision="bf16")
    for graph in GRAPHS:
        plan = build_plan(trt, bundle, graph, options, None if rtx else L4, tmp_path / "cache")
        path = write_plan(plan, tmp_path)
        info = read_sidecar(path)
        assert info == plan.info
        check_bundle(info, path, bundle)
        assert (info.version, info.precision, info.k, info.beam) == (trt.__version__, "bf16", 3, 4)
        assert info.gpu == (None if rtx else "NVIDIA L4")
        assert info.compute_capability == (None if rtx else "8.9")
        assert info.targets == (("SM89",) if rtx else ())
    assert ("limit", "WORKSPACE", 2 << 30) in trt._calls
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    assert ("network", 0 if typed is None else 1 << int(typed)) in trt._calls
    assert not [call for call in trt._calls if call[0] == "flag"]


@pytest.mark.parametrize("graph", GRAPHS)
def test_profiles_agree_by_names(graph: str) -> None:
    found = profiles(SPECS[graph], SIZES, SETTINGS, 16)
    assert [profile.name for profile in found] == ["full", "line"]
    for profile in found:
        sizes: dict[tuple[str, int], int] = {}
        for tensor in tensors_of(SPECS[graph])[0]:
            for index, shape in enumerate(shapes(profile, tensor.dims)):
                for dim, size in zip(tensor.dims, shape, strict=True):
                    assert sizes.setdefault((str(dim), index), size) == size
                    assert size == dim or isinstance(dim, str)
        assert profile.axes["batch"][::2] == (1, 16)
        assert profile.axes["batch"][1] in LADDER


def test_the_full_profile_takes_whatever_preprocessing_gives() -> None:
    import numpy as np

    full, line = profiles(SPECS[contract.ENCODER], SIZES, SETTINGS, 16)
    for height, width in ((16, 16), (16, 1536), (512, 512), (208, 1248), (512, 1536)):
        batch, _ = to_batch([np.zeros((height, width), np.uint8)])
        given = {"batch": 1, "height": batch.shape[2], "width": batch.shape[3]}
        assert full.holds(given)
    assert not line.holds({"batch": 1, "height": 256, "width": 256})
    for profile in (full, line):  # tuned for sizes that occur
        typical = profile.axes["height"][1], profile.axes["width"][1]
        assert size_class(*typical) == typical
    step = profiles(SPECS[contract.DECODER_STEP], SIZES, SETTINGS, 16)[0]
    assert step.axes["feature_height"] == (1, 5, 32)
    assert step.axes["feature_width"] == (1, 20, 96)


@pytest.mark.parametrize(
    ("axes", "reason"),
    [
        ({"batch": (1, 2, 4), "height": (16, 64, 128)}, "has the axes"),
        ({"batch": (1, 8, 4), "height": (16, 64, 128), "width": (16, 64, 128)}, "not in this"),
        ({"batch": (1, 2, 4), "height": (8, 64, 128), "width": (16, 64, 128)}, "stride 16"),
        ({"batch": (0, 2, 4), "height": (16, 64, 128), "width": (16, 64, 128)}, "not in this"),
    ],
)
def test_profiles_that_the_builder_might_accept(axes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ExportError, match=reason):
        check_profile(EngineProfile("odd", axes), SPECS[contract.ENCODER], SIZES)


def test_a_batch_off_the_ladder() -> None:
    with pytest.raises(BadParameter, match="1, 2, 4, 8, 16, 32"):
        profiles(SPECS[contract.ENCODER], SIZES, SETTINGS, 12)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda g: g.input.pop(), "inputs image, but the contract"),
        (lambda g: setattr(g.input[1].type.tensor_type, "elem_type", 7), "size of encoder is"),
        (lambda g: setattr(g.input[0].type.tensor_type.shape.dim[2], "dim_value", 64), "shape"),
        (lambda g: setattr(g.input[0].type.tensor_type.shape.dim[2], "dim_param", "h"), "names"),
        (lambda g: setattr(g.output[0], "name", "other"), "outputs other"),
    ],
)
def test_graphs_that_are_not_ours(change: Any, reason: str, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    path = bundle.file("encoder.onnx")
    model = onnx.load(path)
    change(model.graph)
    path.write_bytes(model.SerializeToString())
    save_bundle(bundle, ["encoder.onnx", "decoder_step.onnx"])
    trt = fake_tensorrt.make("tensorrt-11.1.0")
    with pytest.raises(ExportError, match=reason):
        build_plan(trt, load_bundle(bundle.folder), "encoder", EngineOptions(), L4, tmp_path)


def test_the_parsers_words(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    bundle.file("encoder.onnx").write_bytes(b"no graph at all")
    trt = fake_tensorrt.make("tensorrt-11.1.0")
    with pytest.raises(ExportError, match=r"refuses encoder\.onnx: Failed to parse.*project's"):
        build_plan(trt, bundle, "encoder", EngineOptions(), L4, tmp_path)


def test_the_builders_words(tmp_path: Path) -> None:
    trt = fake_tensorrt.make("tensorrt-11.1.0")
    trt.__dict__["_plan_error"] = "Cannot compile operation 'x':\n  no kernel."
    with pytest.raises(ExportError, match="build encoder in fp32 for NVIDIA L4: Cannot compile op"):
        build(trt, tmp_path)


def test_a_library_that_cannot_start(tmp_path: Path) -> None:
    trt = fake_tensorrt.make("tensorrt-11.1.0")

    def null(log: Any) -> None:
        log.log(trt.ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    trt.Builder = null
    with pytest.raises(ExportError, match=r"cannot start: CUDA initialization.*nvidia-smi"):
        build(trt, tmp_path)


def test_compatible_plans(tmp_path: Path) -> None:
    trt = fake_tensorrt.make("tensorrt-11.1.0")
    options = EngineOptions(version_compatible=True, hardware_compatible=True, workspace_gib=0.5)
    plan, _ = build(trt, tmp_path, options)
    assert ("flag", "VERSION_COMPATIBLE") in trt._calls
    assert ("build", "AMPERE_PLUS") in trt._calls
    assert ("limit", "WORKSPACE", 1 << 29) in trt._calls
    assert plan.info.version_compatible
    assert plan.info.hardware_compatible


def test_a_flag_that_a_version_does_not_have(tmp_path: Path) -> None:
    trt = fake_tensorrt.make("tensorrt-11.1.0")
    del trt.BuilderFlag.VERSION_COMPATIBLE
    with pytest.raises(ExportError, match=r"tensorrt 11\.1\.0 has no BuilderFlag\.VERSION_COMP"):
        build(trt, tmp_path, EngineOptions(version_compatible=True))


def test_targets_of_tensorrt_for_rtx(tmp_path: Path) -> None:
    trt = fake_tensorrt.make(fake_tensorrt.RTX)
    options = EngineOptions("tensorrt_rtx", targets=("8.0", "12.0"))
    plan, _ = build(trt, tmp_path, options)
    assert [call[1] for call in trt._calls if call[0] == "target"] == ["SM80", "SM120"]
    assert plan.info.targets == ("SM80", "SM120")
    with pytest.raises(ExportError, match=r"has no ComputeCapability\.SM90"):
        build(trt, tmp_path, EngineOptions("tensorrt_rtx", targets=("9.0",)))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"workspace_gib": 0}, "must be positive"),
        ({"targets": ("8.9",)}, "tensorrt_rtx"),
        ({"flavour": "tensorrt_rtx"}, "needs --compute-capability"),
        (
            {"flavour": "tensorrt_rtx", "targets": ("8.9",), "version_compatible": True},
            "no version or hardware",
        ),
    ],
)
def test_options_that_contradict(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadParameter, match=reason):
        EngineOptions(**options)


def test_timing_cache_by_version_and_gpu(tmp_path: Path) -> None:
    trt = fake_tensorrt.make("tensorrt-11.1.0")
    build(trt, tmp_path)
    (path,) = (tmp_path / "cache").iterdir()
    assert path.name == "tensorrt-11.1.0-nvidia-l4-sm8.9.timing"
    build(trt, tmp_path)
    assert trt._caches == [b"", b"+"]
    path.write_bytes(b"stale")  # of another driver: TensorRT refuses it, and starts anew
    build(trt, tmp_path)
    assert trt._caches[2:] == [b"stale", b""]
    other = fake_tensorrt.make("tensorrt-11.4.0")
    build(other, tmp_path)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_cache_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be", encoding="utf-8")
    plan, _ = build(fake_tensorrt.make("tensorrt-11.1.0"), tmp_path)
    assert plan.data


@pytest.mark.parametrize(
    ("capability", "precision", "reason"),
    [
        ("7.5", "bf16", r"7\.5, and bf16 needs 8\.0.*\(fp32, fp16, int8\)"),
        ("7.0", "fp32", "no longer supports"),
        ("8.0", "bf16", None),
        ("12.0", "int8", None),
    ],
)
def test_a_gpu_too_old(capability: str, precision: str, reason: str | None) -> None:
    gpu = replace(L4, compute_capability=capability)
    if reason is None:
        check_gpu(precision, gpu)
        return
    with pytest.raises(ExportError, match=reason):
        check_gpu(precision, gpu)


def test_loading_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for flavour, extra in (("tensorrt", "gpu"), ("tensorrt_rtx", "rtx")):
        monkeypatch.setitem(sys.modules, flavour, None)
        with pytest.raises(MissingDependency, match=rf"hmer\[{extra}\]"):
            tensorrt_api.load(flavour)
    old = fake_tensorrt.make("tensorrt-10.0.1")
    old.__version__ = "8.6.1"
    monkeypatch.setitem(sys.modules, "tensorrt", old)
    with pytest.raises(ExportError, match="too old"):
        tensorrt_api.load("tensorrt")
    with pytest.raises(BadParameter, match="tensorrt_rtx"):
        tensorrt_api.load("openvino")


def test_one_logger_that_lives() -> None:
    trt = fake_tensorrt.make("tensorrt-11.1.0")
    log = tensorrt_api.logger(trt)
    assert tensorrt_api.logger(trt) is log
    log.log(trt.ILogger.Severity.INFO, "chatter")
    log.log(trt.ILogger.Severity.ERROR, "what matters")
    assert log.errors() == ["what matters"]
    assert log.errors() == []
