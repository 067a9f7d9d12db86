"""``hmer-export engine`` and ``aot-compile`` from the command line (on stand-ins)."""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from export import engines as engines_module
from export.cli import main
from export.tensorrt_aot import TARGETS
from hmer.bundle import Bundle
from hmer.engine import read_sidecar
from hmer.gpu import Gpu
from tests import fake_tensorrt
from tests.engine_fixtures import L4, make_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle", precision="bf16")


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A machine with an L4, TensorRT 11.1 and TensorRT for RTX, as stand-ins."""
    trt = fake_tensorrt.make("tensorrt-11.1.0")
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake_tensorrt.make(fake_tensorrt.RTX))
    monkeypatch.setattr(engines_module, "find_gpu", lambda: L4)
    monkeypatch.setenv("HMER_CACHE", str(tmp_path / "cache"))
    return trt


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_engines_of_a_bundle(bundle: Bundle, tmp_path: Path) -> None:
    output = tmp_path / "engines"
    found = run("engine", bundle.folder, "--output", output)
    assert found.exit_code == 0, found.output
    assert "[1/2] tensorrt 11.1.0 builds encoder in bf16 for NVIDIA L4" in found.stderr
    assert "encoder.plan" in found.stdout
    assert "full, line" in found.stdout
    assert "hmer-export repository" in found.stdout
    names = sorted(path.name for path in output.iterdir())
    assert names == [
        *("decoder_step.plan", "decoder_step.plan.json", "encoder.plan", "encoder.plan.json")
    ]
    assert read_sidecar(output / "encoder.plan").precision == "bf16"
    assert list((tmp_path / "cache").iterdir())


def test_json_is_one_document(bundle: Bundle, tmp_path: Path) -> None:
    found = run(
        *("engine", bundle.folder, "-o", tmp_path / "e", "--json", "--max-batch", 32),
        *("--workspace-gib", 0.5, "--version-compatible", "--hardware-compatible"),
    )
    assert found.exit_code == 0
    engine = json.loads(found.stdout)["engines"][0]
    assert engine["plan"] == str(tmp_path / "e" / "encoder.plan")
    assert engine["options"] == {
        **{"max_batch": 32, "workspace_gib": 0.5},
        **{"version_compatible": True, "hardware_compatible": True},
    }


def refused(*arguments: Any) -> str:
    found = run("engine", *arguments)
    assert found.exit_code == 1, found.output
    assert found.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in found.output
    return found.stderr


def test_output_that_is_in_use(bundle: Bundle, tmp_path: Path) -> None:
    output = tmp_path / "engines"
    output.mkdir()
    (output / "notes.txt").write_text("mine", encoding="utf-8")
    assert "not empty" in refused(bundle.folder, "-o", output)
    assert "more than engines (notes.txt)" in refused(bundle.folder, "-o", output, "--force")
    assert "is a file" in refused(bundle.folder, "-o", output / "notes.txt")
    (output / "notes.txt").unlink()
    assert run("engine", bundle.folder, "-o", output).exit_code == 0
    assert run("engine", bundle.folder, "-o", output, "--force").exit_code == 0


def test_without_a_gpu(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines_module, "find_gpu", lambda: None)
    assert "no NVIDIA GPU here" in refused(bundle.folder, "-o", tmp_path / "e")
    assert not (tmp_path / "e").exists()


def test_a_gpu_too_old(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turing = Gpu("0", "GPU-1", "Tesla T4", "7.5", 15360, "610.43")
    monkeypatch.setattr(engines_module, "find_gpu", lambda: turing)
    assert "Tesla T4 has compute capability 7.5, and bf16 needs 8.0" in refused(
        bundle.folder, "-o", tmp_path / "e"
    )


def test_without_the_library(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert "pip install 'hmer[gpu]'" in refused(bundle.folder, "-o", tmp_path / "e")


def test_a_disk_that_fills_up(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.name == "decoder_step.plan":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    (tmp_path / "home").mkdir()
    message = refused(bundle.folder, "-o", tmp_path / "home" / "engines")
    assert "No space left on device" in message
    assert not list((tmp_path / "home").iterdir())


def test_a_failed_build_keeps_the_old_engines(bundle: Bundle, tmp_path: Path, machine: Any) -> None:
    output = tmp_path / "engines"
    assert run("engine", bundle.folder, "-o", output).exit_code == 0
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    machine.__dict__["_plan_error"] = "out of memory"
    assert "out of memory" in refused(bundle.folder, "-o", output, "--force")
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    assert "bundle.json" in refused(tmp_path, "-o", tmp_path / "e")


def test_rtx_needs_no_gpu(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines_module, "find_gpu", lambda: None)
    arguments = (bundle.folder, "-o", tmp_path / "e", "--flavour", "tensorrt_rtx")
    if not any(path.is_file() for path in [Path("/usr/bin/nvidia-smi")]):
        assert "needs --compute-capability" in refused(*arguments)
    found = run("engine", *arguments, "--compute-capability", "8.9")
    assert found.exit_code == 0
    assert read_sidecar(tmp_path / "e" / "encoder.plan").targets == ("SM89",)


def test_aot_table(bundle: Bundle) -> None:
    found = run("aot-compile", bundle.folder)
    assert found.exit_code == 0, found.output
    lines = [line for line in found.stdout.splitlines() if line.startswith("| bundle |")]
    assert len(lines) == 1 + 2 * len(TARGETS)
    assert "| bundle | encoder | bf16 | 3 | SM80 | ok |" in found.stdout
    assert "never run" in found.stdout


def test_aot_refusals(bundle: Bundle) -> None:
    sys.modules["tensorrt_rtx"].__dict__["_plan_error"] = "no kernel"
    found = run("aot-compile", bundle.folder, "--compute-capability", "8.9", "--json")
    assert found.exit_code == 1
    document = json.loads(found.stdout)
    assert document["check"] == "tensorrt_rtx AOT compile"
    assert [row["ok"] for row in document["rows"]] == [False, False]
    assert "error: 2 of 2 were refused, first encoder for SM89" in found.stderr


@pytest.mark.parametrize("command", ["engine", "aot-compile"])
def test_help_has_an_example(command: str) -> None:
    found = run(command, "--help")
    assert found.exit_code == 0
    assert f"hmer-export {command} hmer/pretrained" in found.stdout
