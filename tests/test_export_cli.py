"""``hmer-export``: what the commands pass on, and what they say about bad input."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from export import images, onnx_export, verify_runners
from export.cli import main
from export.images import HELD_OUT, gather
from export.options import calibration_folder
from hmer import contract
from hmer.bundle import BUNDLE_FILE, ENCODER_FILE, Bundle
from hmer.engine import write_sidecar
from hmer.errors import ExportError
from hmer.runtime import Runner, open_runner
from tests import tiny
from tests.handwriting import write_pack
from tests.test_inspect import engine_info
from training.data import Split

COMMANDS = sorted(main.commands)


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    return write_pack(tmp_path / "test.jsonl", count=5)


def call(*arguments: object) -> Result:
    return CliRunner(env={"HMER_CROHME": None}).invoke(main, [str(a) for a in arguments])


def sentence(result: Result) -> str:
    """The one error of a command that failed as it should."""
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda name: f"hmer-export-{name}")
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == 0
    assert f"hmer-export {command} " in result.output.split("Example")[-1]


def test_the_commands_of_the_contract_are_there() -> None:
    assert {"onnx", "engine", "repository", "verify", "inspect", "all"} <= set(COMMANDS)


# Images


def test_a_pack_is_compared_on_as_a_whole(tmp_path: Path, pack: Path) -> None:
    assert list(gather(tiny.SETTINGS, None, [pack])) == ["w0", "w1", "w2", "w3", "w4"]
    assert list(gather(tiny.SETTINGS, None, [pack], limit=2)) == ["w0", "w2"]
    other = write_pack(tmp_path / "other.jsonl", count=2, seed=1)
    both = gather(tiny.SETTINGS, None, [pack, other])
    assert list(both)[5:] == ["other.jsonl:w0", "other.jsonl:w1"]


def test_a_folder_is_compared_on_by_its_held_out_part_beside_the_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pack(tmp_path / "train.jsonl", count=90).rename(tmp_path / "train.jsonl.gz")
    monkeypatch.setattr(
        images, "split_by_writer_and_label", lambda examples: Split([], list(examples)[:80])
    )
    samples = set(gather(tiny.SETTINGS, None, None))
    found = gather(tiny.SETTINGS, None, [tmp_path])
    assert len(set(found) - samples) == HELD_OUT
    assert set(found) >= samples
    few = set(gather(tiny.SETTINGS, None, [tmp_path], limit=3)) - samples
    assert few == {"w0", "w26", "w53"}


def test_calibration_takes_the_training_folder_unless_told(tmp_path: Path, pack: Path) -> None:
    assert calibration_folder(None, (pack, tmp_path)) == tmp_path
    assert calibration_folder(None, (pack,)) is None
    assert calibration_folder(pack, (tmp_path,)) == pack


def test_onnx_passes_its_options_on(
    checkpoint: Path, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def export_bundle(checkpoint: Path, output: Path, **options: Any) -> None:
        seen.update(options, checkpoint=checkpoint, output=output)
        raise ExportError("Enough.")

    monkeypatch.setattr(onnx_export, "export_bundle", export_bundle)
    arguments = ["--precision", "int8", "--beam", "5", "--k", "2", "--calibration-data", pack]
    result = call("onnx", checkpoint, "-o", tmp_path / "x", "--data", pack, *arguments)
    assert sentence(result) == "error: Enough."
    assert (seen["precision"], seen["beam"], seen["k"], seen["data"]) == ("int8", 5, 2, pack)
    assert seen["accept_loss"] is False
    assert len(seen["images"]) == 5


# Verify


def test_verify_on_a_pack(checkpoint: Path, graphs: Bundle, pack: Path) -> None:
    result = call("verify", checkpoint, graphs.folder, "--data", pack, "--sample", 2, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["passed"]
    assert document["images"] == 5
    assert document["precision"] == "fp32"
    checks = {(p["runtime"], p["check"]): p["images"] for p in document["parity"]}
    assert checks["onnxruntime", "answers"] == 5
    assert checks["onnxruntime", "beam"] == 2
    result = call(
        "verify", checkpoint, graphs.folder, "--data", pack, "--sample", 0, "--runner", "pytorch"
    )
    assert [line.split()[0] for line in result.stdout.splitlines()[2:]] == ["pytorch"]


def test_verify_asks_engines(
    checkpoint: Path,
    graphs: Bundle,
    pack: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The device is a stand-in that answers with ONNX Runtime, up to 16 rows."""
    engines = tmp_path / "engines"
    engines.mkdir()
    for name in (contract.ENCODER, contract.DECODER_STEP, contract.DECODER_BEAM):
        plan = engines / f"{name}.plan"
        plan.write_bytes(name.encode())
        write_sidecar(plan, engine_info(graphs, name, plan))
    rows: list[int] = []

    def opened(target: str, path: Path, *arguments: Any) -> Runner:
        assert (target, path.parent) == ("tensorrt", engines)
        runner = open_runner("onnxruntime", graphs.file(f"{path.stem}.onnx"))
        infer = runner.infer

        def counted(feeds: Any) -> Any:
            rows.append(max(len(array) for array in feeds.values()))
            return infer(feeds)

        monkeypatch.setattr(runner, "infer", counted)
        return runner

    monkeypatch.setattr(verify_runners, "open_runner", opened)
    pack = write_pack(tmp_path / "more.jsonl", count=20)
    call_ = ["verify", checkpoint, graphs.folder, "--data", pack, "--engines", engines]
    result = call(*call_, "--runner", "tensorrt", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert {p["check"] for p in document["parity"]} == {"answers", "padding", "batch", "beam"}
    assert max(rows) == 16
    assert "needs --engines" in sentence(call(*call_[:-2], "--runner", "tensorrt"))
    plan = engines / "encoder.plan"
    write_sidecar(plan, replace(engine_info(graphs, "encoder", plan), onnx_sha256="0" * 64))
    complaint = sentence(call(*call_, "--runner", "tensorrt"))
    assert "was not built from" in complaint


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ("bytes", "was truncated or changed"),
        ("contract", "contract version 99"),
        ("a file", "is a file. Give the folder"),
        ("a checkpoint", "kind checkpoint, not graphs"),
        ("nothing", "There is no bundle.json"),
    ],
)
def test_verify_refuses_a_bundle_that_does_not_fit(
    checkpoint: Path, graphs: Bundle, tmp_path: Path, how: str, complaint: str
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(graphs.folder, folder)
    bundle = folder
    if how == "bytes":
        content = bytearray((folder / ENCODER_FILE).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / ENCODER_FILE).write_bytes(content)
    elif how == "contract":
        values = json.loads((folder / BUNDLE_FILE).read_text(encoding="utf-8"))
        (folder / BUNDLE_FILE).write_text(json.dumps(values | {"contract": 99}), encoding="utf-8")
    else:
        bundle = {
            "a file": folder / ENCODER_FILE, "a checkpoint": checkpoint, "nothing": tmp_path
        }[how]  # fmt: skip
    assert complaint in sentence(call("verify", checkpoint, bundle))


def test_verify_reports_before_it_fails(graphs: Bundle, pack: Path, tmp_path: Path) -> None:
    tiny.make_checkpoint(tmp_path / "other", seed=2)
    result = call("verify", tmp_path / "other", graphs.folder, "--data", pack, "--sample", 0)
    assert "answer differently from the checkpoint on" in sentence(result)
    assert "FAILED" in result.stdout
    assert "onnxruntime answers: w0, step " in result.stdout
    assert "(margin " in result.stdout


def test_bf16_for_onnx_runtime_is_refused_at_once(checkpoint: Path, tmp_path: Path) -> None:
    result = call(
        "all", checkpoint, "-o", tmp_path / "x", "--precision", "bf16", "--target", "onnxruntime"
    )
    assert "no operators for bf16 on a CPU" in sentence(result)
