"""``hmer-export all``: from a checkpoint to a repository, or nothing and a sentence."""

from __future__ import annotations

import errno
import json
import shutil
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner, Result

from export import all_stages, engines, onnx_export, verify_runners
from export.cli import main
from export.inspect_path import page_of
from hmer import contract
from hmer.bundle import Bundle, load_bundle
from hmer.engine import write_sidecar
from hmer.gpu import Gpu
from hmer.runtime import Runner, open_runner
from tests import tiny
from tests.test_inspect import engine_info

SAMPLES = tiny.ROOT / "client" / "samples"
L4 = Gpu("0", "GPU-1", "NVIDIA L4", "8.9", 24_000, "570.1")


@pytest.fixture(autouse=True)
def without_a_gpu(traced: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(all_stages, "find_gpu", lambda: None)


def run(checkpoint: Path, output: Path, pictures: Path, *more: str) -> Result:
    call = ["all", str(checkpoint), "-o", str(output), "--k", "3", "--beam", "6"]
    runner = CliRunner(env={"HMER_CROHME": None})
    return runner.invoke(main, [*call, "--images", str(pictures), *more])


def test_a_repository_and_its_summary(checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "made" / "repository"
    result = run(checkpoint, output, pictures)
    assert result.exit_code == 0, result.output
    rows = [line for line in result.stdout.splitlines() if line.startswith("bundle/")]
    assert [row.split()[0] for row in rows] == [
        *("bundle/encoder.onnx", "bundle/decoder_step.onnx", "bundle/decoder_beam.onnx")
    ]
    for row in rows:
        assert row.split()[3:6] == ["fp32", "20", "-"]
        assert "2 equal in onnxruntime" in row
    assert f"Serve it: hmer-serve --repository {output}" in result.stdout
    assert "[1/2] Exporting" in result.stderr
    assert "[2/2] Assembling" in result.stderr
    page = page_of(output)
    assert page.kind == "repository"
    bundle = load_bundle(output / "bundle")
    assert (bundle.k, bundle.beam) == (3, 6)
    assert [p.name for p in output.parent.iterdir()] == ["repository"]


def test_the_json_document_says_the_same(checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    result = run(checkpoint, tmp_path / "repository", pictures, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["repository"] == str(tmp_path / "repository")
    assert document["missing"] == document["todo"] == []
    assert {row["opset"] for row in document["files"]} == {20}
    assert all(entry["passed"] for entry in document["parity"])
    for row in document["files"]:
        assert row["bytes"] == (tmp_path / "repository" / row["file"]).stat().st_size


def test_without_a_gpu_tensorrt_says_what_to_run_where(
    checkpoint: Path, pictures: Path, tmp_path: Path
) -> None:
    result = run(checkpoint, tmp_path / "served", pictures, "--target", "tensorrt")
    assert result.exit_code == 0, result.output
    assert "There is no NVIDIA GPU here, so no engine is built." in result.stderr
    assert "hmer-export engine served/bundle --output engines" in result.stdout
    assert "--target tensorrt --engines engines --output served-served" in result.stdout
    assert "model.plan" not in result.stdout
    assert not list((tmp_path / "served").rglob("*.plan"))


def test_a_gpu_that_is_too_old_is_refused_before_any_work(
    checkpoint: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Gpu("0", "GPU-1", "NVIDIA T4", "7.5", 16_000, "570.1")
    monkeypatch.setattr(all_stages, "find_gpu", lambda: old)
    result = run(
        checkpoint, tmp_path / "served", pictures, "--target", "tensorrt", "--precision", "bf16"
    )
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert "T4" in result.stderr
    assert "bf16" in result.stderr
    assert not (tmp_path / "served").exists()


def test_with_a_gpu_engines_are_built_compared_and_served(
    checkpoint: Path,
    graphs: Bundle,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The builder and the device are stand-ins; everything between them is real."""

    def build_engines(bundle: Path, output: Path, *_: object, **__: object) -> None:
        output.mkdir()
        for path in bundle.glob("*.onnx"):
            plan = output / f"{path.stem}.plan"
            plan.write_bytes(path.read_bytes()[:50])
            write_sidecar(plan, engine_info(load_bundle(bundle), path.stem, plan))

    def opened(target: str, path: Path, *arguments: Any) -> Runner:
        if target == "tensorrt":
            return open_runner("onnxruntime", graphs.file(f"{path.stem}.onnx"))
        return open_runner(target, path, *arguments)

    monkeypatch.setattr(all_stages, "find_gpu", lambda: L4)
    library = ModuleType("tensorrt")
    library.__spec__ = ModuleSpec("tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt", library)
    monkeypatch.setattr(engines, "build_engines", build_engines)
    monkeypatch.setattr(verify_runners, "open_runner", opened)
    monkeypatch.setattr(onnx_export, "check_parity", lambda *_, **__: [])
    result = run(checkpoint, tmp_path / "served", pictures, "--target", "tensorrt", "--json")
    assert result.exit_code == 0, result.output
    assert "[2/3] Building engines on NVIDIA L4" in result.stderr
    document = json.loads(result.stdout)
    plans = [row for row in document["files"] if row["file"].endswith(".plan")]
    assert {row["file"] for row in plans} == {
        f"models/{name}/1/model.plan"
        for name in (contract.ENCODER, contract.DECODER_STEP, contract.DECODER_BEAM)
    }
    assert {row["parity"] for row in plans} == {"2 equal in tensorrt"}
    assert {tuple(row["profiles"]) for row in plans} == {("full",)}
    assert {entry["check"] for entry in document["parity"]} == {
        *("answers", "padding", "batch", "beam")
    }
    assert document["missing"] == document["todo"] == []


# Bad input


def test_an_output_that_is_not_empty_is_refused_before_any_work(
    checkpoint: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(all_stages, "export_bundle", pytest.fail)
    result = run(checkpoint, pictures, pictures)
    assert result.exit_code == 1
    assert "is not empty. Give another folder" in result.stderr
    result = run(checkpoint, pictures, pictures, "--force")
    assert "is not a repository that this command wrote" in result.stderr
    assert len(list(pictures.iterdir())) == 2


class Full:
    """A disk with room for so many more files: then half a file is written, and an error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, files: int) -> None:
        self.left = files
        self.hit = False
        write_bytes, write_text, copyfile = Path.write_bytes, Path.write_text, shutil.copyfile

        def bytes_to(path: Path, data: bytes) -> int:
            return self.take(path) or write_bytes(path, data)

        def text_to(path: Path, data: str, **options: Any) -> int:
            return self.take(path) or write_text(path, data, **options)

        def copy_to(source: Any, target: Any, **options: Any) -> Any:
            return self.take(Path(target)) or copyfile(source, target, **options)

        monkeypatch.setattr(Path, "write_bytes", bytes_to)
        monkeypatch.setattr(Path, "write_text", text_to)
        monkeypatch.setattr(shutil, "copyfile", copy_to)

    def take(self, path: Path) -> None:
        self.left -= 1
        if self.left < 0:
            self.hit = True
            with path.open("wb") as stream:
                stream.write(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))


@pytest.mark.parametrize("command", ["onnx", "all"])
@pytest.mark.parametrize("files", [0, 2, 3, 4, 9, 30])
def test_a_disk_that_fills_up_leaves_nothing_behind(
    checkpoint: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    files: int,
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    call = [command, str(checkpoint), "-o", str(home / "out"), "--k", "3", "--beam", "6"]
    call += ["--images", str(pictures)]
    with monkeypatch.context() as patch:
        disk = Full(patch, files)
        result = CliRunner(env={"HMER_CROHME": None}).invoke(main, call)
    if not disk.hit:  # an export is four files
        assert command == "onnx"
        assert files >= 4
        assert result.exit_code == 0, result.output
        return
    assert result.exit_code == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "No space left on device" in errors[0]
    assert "Traceback" not in result.output
    assert list(home.iterdir()) == []


def test_a_full_disk_keeps_the_repository_that_is_there(
    checkpoint: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "home" / "repository"
    assert run(checkpoint, output, pictures).exit_code == 0
    before = sorted(str(path) for path in output.rglob("*"))
    with monkeypatch.context() as patch:
        Full(patch, 20)
        result = run(checkpoint, output, pictures, "--force")
    assert result.exit_code == 1
    assert sorted(str(path) for path in output.rglob("*")) == before
    assert page_of(output).kind == "repository"
    assert [path.name for path in output.parent.iterdir()] == ["repository"]


def test_auto_tells_what_it_measured(checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "repository"
    result = run(checkpoint, output, pictures, "--target", "auto")
    assert result.exit_code == 0, result.output
    assert "Chosen: " in result.stdout
    page = page_of(output).to_dict()
    assert page["measured_choice"]["encoder"].split()[0] == page["repository"]["target"]
    assert page["measured_choice"]["rows"]
