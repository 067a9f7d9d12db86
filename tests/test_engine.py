"""Sidecars of engines: what they tell, and whom they refuse, in words that say what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from export.config import CONTAINER, ONNXRUNTIME, TENSORRT, RepositoryOptions, from_text
from export.repository import assemble
from hmer import contract
from hmer.engine import (
    EngineInfo,
    check_bundle,
    check_gpu,
    check_runtime,
    loads_in,
    read_sidecar,
    sidecar_of,
    write_sidecar,
)
from hmer.engine_images import DEFAULT, IMAGES, check_image, image_named
from hmer.errors import (
    BundleError,
    ContractMismatch,
    CorruptBundle,
    ExportError,
    MissingBundle,
    VocabularyMismatch,
)
from hmer.vocab import Vocabulary
from model_repository import container
from model_repository.repository import open_repository
from model_repository.serve import main as serve
from tests.engine_fixtures import make_bundle, make_engines

NEW, OLD = "nvcr.io/nvidia/tritonserver:26.07-py3", "nvcr.io/nvidia/tritonserver:26.03-py3"


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return make_engines(tmp_path / "engines", make_bundle(tmp_path / "bundle")) / "encoder.plan"


def changed(plan: Path, **changes: Any) -> EngineInfo:
    return replace(read_sidecar(plan), **changes)


def test_a_sidecar_reads_back(plan: Path) -> None:
    info = read_sidecar(plan)
    document = json.loads(sidecar_of(plan).read_text(encoding="utf-8"))
    assert document["format"] == "hmer-engine"
    assert document["gpu"] == "NVIDIA L4"
    assert document["profiles"][0]["axes"]["batch"] == [1, 1, 16]
    write_sidecar(plan, info)
    assert read_sidecar(plan) == info


def _edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(plan: Path) -> None:
        path = sidecar_of(plan)
        document = json.loads(path.read_text(encoding="utf-8"))
        change(document)
        path.write_text(json.dumps(document), encoding="utf-8")

    return apply


@pytest.mark.parametrize(
    ("damage", "kind", "reason"),
    [
        (lambda p: p.unlink(), MissingBundle, "Build it on the machine"),
        (lambda p: sidecar_of(p).unlink(), MissingBundle, "keep both files together"),
        (lambda p: p.write_bytes(b"x"), CorruptBundle, "truncated, changed"),
        (lambda p: sidecar_of(p).write_text("{"), CorruptBundle, "cannot be read"),
        (_edit(lambda d: d.update(format="x")), CorruptBundle, "not describe an engine"),
        (_edit(lambda d: d.pop("profiles")), CorruptBundle, "KeyError"),
        (_edit(lambda d: d.update(flavour="other")), CorruptBundle, "flavour 'other'"),
        (_edit(lambda d: d.update(contract=99)), ContractMismatch, "contract version 99"),
    ],
)
def test_broken_sidecars(
    damage: Callable[[Path], Any], kind: type[Exception], reason: str, plan: Path
) -> None:
    damage(plan)
    with pytest.raises(kind, match=reason):
        read_sidecar(plan)


def test_an_engine_of_another_bundle(plan: Path, tmp_path: Path) -> None:
    info = read_sidecar(plan)
    check_bundle(info, plan, make_bundle(tmp_path / "same"))
    with pytest.raises(VocabularyMismatch, match="another vocabulary"):
        check_bundle(info, plan, make_bundle(tmp_path / "words", vocabulary=Vocabulary("ab")))
    other = make_bundle(tmp_path / "other")
    other.file("encoder.onnx").write_bytes(b"other weights")
    with pytest.raises(BundleError, match=r"another hash.*hmer-export engine"):
        check_bundle(info, plan, other)
    with pytest.raises(BundleError, match="other tensors"):
        check_bundle(info, plan, make_bundle(tmp_path / "half", precision="fp16"))
    with pytest.raises(BundleError, match="does not have"):
        check_bundle(replace(info, graph="decoder_beam"), plan, make_bundle(tmp_path / "beamless"))


@pytest.mark.parametrize(
    ("built", "running", "compatible", "loads"),
    [
        ("11.1.0.106", "11.1.0.106", False, True),
        ("11.1.0.106", "11.1.0.107", False, False),
        ("10.16.1.11", "10.16", False, True),  # as much as is known
        ("10.16.1.11", "11.1.0.106", False, False),
        ("10.16.1.11", "11.1.0.106", True, True),
        ("11.1.0.106", "10.16.1.11", True, False),  # forward only
        ("10.14.1.48.post1", "10.14.1.48", False, True),
    ],
)
def test_versions(built: str, running: str, compatible: bool, loads: bool, plan: Path) -> None:
    info = changed(plan, version=built, options={"version_compatible": compatible})
    assert loads_in(info, running) is loads
    if not loads:
        with pytest.raises(BundleError, match=rf"built by TensorRT {built}, and this is {running}"):
            check_runtime(info, plan, running, None)


def test_gpus(plan: Path) -> None:
    info = read_sidecar(plan)
    check_gpu(info, plan, "8.9")
    check_gpu(info, plan, None)
    with pytest.raises(BundleError, match=r"NVIDIA L4 .*8\.9\).*9\.0.*on this machine"):
        check_gpu(info, plan, "9.0")
    anywhere = replace(info, options={"hardware_compatible": True})
    check_gpu(anywhere, plan, "9.0")
    with pytest.raises(BundleError):
        check_gpu(anywhere, plan, "7.5")
    rtx = replace(info, flavour="tensorrt_rtx", targets=("SM89", "SM120"))
    check_gpu(rtx, plan, "12.0")
    with pytest.raises(BundleError, match=r"--compute-capability 8\.6"):
        check_gpu(rtx, plan, "8.6")


def test_images(plan: Path) -> None:
    assert image_named(NEW) is image_named("26.07-py3") is DEFAULT
    assert image_named("26.99-py3") is None
    assert all(image.source.startswith("read: ") for image in IMAGES)
    check_image(changed(plan, version="11.1.0.106"), plan, DEFAULT)
    with pytest.raises(BundleError, match=rf"10\.16\.1\.11, but {NEW} carries 11\.1.*{OLD}"):
        check_image(changed(plan, version="10.16.1.11"), plan, DEFAULT)
    with pytest.raises(BundleError, match=r"carries TensorRT 10\.9\.0\.34 .*support-matrix"):
        check_image(changed(plan, version="10.9.0.34"), plan, DEFAULT)
    with pytest.raises(BundleError, match=r"TensorRT for RTX.*nvcr\.io/nvidia/tensorrt:26\.07"):
        check_image(changed(plan, flavour="tensorrt_rtx"), plan, DEFAULT)


def served(tmp_path: Path, version: str = "11.1.0.106", **changes: Any) -> Path:
    bundle = make_bundle(tmp_path / "served-bundle", beam=4)
    engines = make_engines(tmp_path / "served-engines", bundle, version="tensorrt-11.1.0")
    for path in engines.glob("*.plan"):
        write_sidecar(path, replace(read_sidecar(path), version=version, **changes))
    options = RepositoryOptions(CONTAINER, TENSORRT)
    result = assemble(bundle.folder, tmp_path / "served", options, engines=engines)
    assert result.missing == ()
    return result.folder


def test_a_repository_with_engines(tmp_path: Path) -> None:
    folder = served(tmp_path)
    repository = open_repository(folder)
    assert set(repository.engines) == {"encoder", "decoder_step", "decoder_beam"}
    config = from_text((folder / "models/encoder/config.pbtxt").read_text(encoding="utf-8"))
    assert list(config.instance_group[0].profile) == ["0", "1"]
    run = CliRunner().invoke(serve, ["--repository", str(folder), "--print-docker"])
    assert (run.exit_code, run.stderr) == (0, "")
    assert f"{NEW} sh -c" in run.stdout
    assert "version-compatible" not in run.stdout


def test_serve_refuses_the_wrong_image(tmp_path: Path) -> None:
    folder = served(tmp_path, version="10.16.1.11")
    arguments = ["--repository", str(folder), "--print-docker"]
    run = CliRunner().invoke(serve, arguments)
    assert run.exit_code == 1
    assert run.stderr.startswith("error: ")
    assert f"--image {OLD}" in run.stderr
    run = CliRunner().invoke(serve, [*arguments, "--image", OLD])
    assert run.exit_code == 0
    assert f"{OLD} sh -c" in run.stdout
    run = CliRunner().invoke(serve, [*arguments, "--image", "my/triton:1"])
    assert run.exit_code == 0
    assert "the engines need 10.16.1.11" in run.stderr


def test_the_container_lets_triton_run_version_compatible_engines(tmp_path: Path) -> None:
    folder = served(tmp_path, "10.16.1.11", options={"version_compatible": True})
    line = container.command(open_repository(folder), ["--allow-http=false"])
    assert "--backend-config=tensorrt,version-compatible=true" in line
    assert line[-1] == "--allow-http=false"
    plain = container.command(open_repository(served(tmp_path / "plain", "10.16.1.11")), [])
    assert not any("version-compatible" in part for part in plain)


def test_serve_refuses_missing_engines(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    options = RepositoryOptions(CONTAINER, TENSORRT)
    folder = assemble(bundle.folder, tmp_path / "served", options).folder
    run = CliRunner().invoke(serve, ["--repository", str(folder), "--print-docker"])
    assert run.exit_code == 1
    assert "hmer-export engine" in run.stderr
    other = RepositoryOptions(CONTAINER, ONNXRUNTIME)
    folder = assemble(bundle.folder, tmp_path / "cpu", other).folder
    assert CliRunner().invoke(serve, ["--repository", str(folder), "--print-docker"]).exit_code == 0


def test_assembly_refuses_engines_that_do_not_fit(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    options = RepositoryOptions(CONTAINER, TENSORRT)
    engines = make_engines(tmp_path / "engines", bundle)

    def refused(kind: type[Exception], reason: str, options: RepositoryOptions = options) -> None:
        with pytest.raises(kind, match=reason):
            assemble(bundle.folder, tmp_path / "served", options, engines=engines)
        assert not (tmp_path / "served").exists()

    more = replace(options, slots=32)
    refused(ExportError, "at most 16 rows, .* decoder_step up to 32.*--slots 16", more)
    plan = engines / "encoder.plan"
    good = read_sidecar(plan)
    write_sidecar(plan, replace(good, graph=contract.DECODER_STEP, onnx_sha256="0"))
    refused(BundleError, "another hash")
    write_sidecar(plan, replace(good, flavour="tensorrt_rtx"))
    refused(ExportError, "Triton needs encoder for tensorrt")
    sidecar_of(plan).unlink()
    refused(MissingBundle, "has no encoder.plan.json")


def test_a_repository_whose_engine_was_changed(tmp_path: Path) -> None:
    folder = served(tmp_path)
    (folder / "models/decoder_step/1/model.plan").write_bytes(b"another plan")
    with pytest.raises(CorruptBundle, match=r"model\.plan is not the file"):
        open_repository(folder)
