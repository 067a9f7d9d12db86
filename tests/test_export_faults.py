"""Exports that cannot be: bad checkpoints, bad images, missing libraries; and the commands."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from export import parity
from export.cli import main
from hmer.bundle import (
    BEAM_FILE,
    BUNDLE_FILE,
    ENCODER_FILE,
    STEP_FILE,
    WEIGHTS_FILE,
    Bundle,
    sha256_of,
)
from hmer.errors import (
    BundleError,
    ContractMismatch,
    CorruptBundle,
    HmerError,
    MissingBundle,
    VocabularyMismatch,
)
from tests import tiny
from training.checkpoint import load_checkpoint

SAMPLES = tiny.ROOT / "client" / "samples"


# Parity


def edit_json(path: Path, **changes: Any) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(document | changes), encoding="utf-8")


def spoil(folder: Path, how: str) -> None:
    weights, document = folder / WEIGHTS_FILE, folder / BUNDLE_FILE
    if how == "missing":
        document.unlink()
    elif how == "contract":
        edit_json(document, contract=99)
    elif how == "vocabulary":
        vocabulary = tiny.VOCABULARY.to_dict()
        edit_json(document, vocabulary=vocabulary | {"tokens": [*tiny.TOKENS[1:], "z"]})
    elif how == "longer vocabulary":
        longer = type(tiny.VOCABULARY)((*tiny.TOKENS, "z"))
        edit_json(document, vocabulary=longer.to_dict())
    elif how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif how in ("truncated with hash", "foreign", "not finite"):
        if how == "foreign":
            save_file({"lm_head.weight": torch.zeros(2, 2)}, weights)
        elif how == "not finite":
            state = tiny.make_network().state_dict()
            state["mix.bias"][0] = float("nan")
            save_file({name: value.contiguous() for name, value in state.items()}, weights)
        else:
            weights.write_bytes(weights.read_bytes()[:-1000])
        entry = {"sha256": sha256_of(weights), "bytes": weights.stat().st_size}
        edit_json(document, files={WEIGHTS_FILE: entry})


@pytest.mark.parametrize(
    ("how", "kind", "complaint"),
    [
        ("missing", MissingBundle, "There is no bundle.json"),
        ("contract", ContractMismatch, "contract version 99"),
        ("vocabulary", VocabularyMismatch, "tokens were changed"),
        ("longer vocabulary", VocabularyMismatch, "23 outputs|22 outputs"),
        ("truncated", CorruptBundle, "truncated or changed"),
        ("truncated with hash", CorruptBundle, "not a whole safetensors file"),
        ("foreign", CorruptBundle, "weights of another network"),
        ("not finite", CorruptBundle, "mix.bias that are not finite"),
    ],
)
def test_a_bad_checkpoint_is_one_sentence(
    checkpoint: Path, tmp_path: Path, how: str, kind: type[HmerError], complaint: str
) -> None:
    bad = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, bad)
    spoil(bad, how)
    with pytest.raises(kind, match=complaint):
        load_checkpoint(bad)
    result = CliRunner().invoke(main, ["onnx", str(bad), "--output", str(tmp_path / "bundle")])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.output
    assert not (tmp_path / "bundle").exists()


def test_graphs_are_no_checkpoint(graphs: Bundle) -> None:
    with pytest.raises(BundleError, match="kind graphs, not checkpoint"):
        load_checkpoint(graphs.folder)


# The command line


def test_export_and_verify_from_the_command_line(
    traced: Bundle, checkpoint: Path, pictures: Path, tmp_path: Path
) -> None:
    output = tmp_path / "bundle"
    call = ["onnx", str(checkpoint), "-o", str(output), "--images", str(pictures)]
    call += ["--k", str(traced.k), "--beam", str(traced.beam)]
    result = CliRunner(env={"HMER_CROHME": None}).invoke(main, [*call, "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout.splitlines()[-1])
    assert [graph["file"] for graph in report["graphs"]] == [ENCODER_FILE, STEP_FILE, BEAM_FILE]
    assert report["graphs"][0]["bytes"] == (output / ENCODER_FILE).stat().st_size
    assert [p["images"] for p in report["parity"]] == [2] * len(report["parity"])

    result = CliRunner(env={"HMER_CROHME": None}).invoke(
        main, ["verify", str(checkpoint), str(output), "--images", str(pictures)]
    )
    assert result.exit_code == 0, result.output
    assert "onnxruntime" in result.stdout

    tiny.make_checkpoint(tmp_path / "other", seed=2)
    result = CliRunner(env={"HMER_CROHME": None}).invoke(
        main, ["verify", str(tmp_path / "other"), str(output), "--images", str(pictures), "--json"]
    )
    assert result.exit_code == 1
    assert result.stderr.startswith("error: The graphs in onnxruntime answer differently")
    report = json.loads(result.stdout)
    answers = {p["runtime"]: p for p in report["parity"] if p["check"] == "answers"}
    assert answers["pytorch"]["passed"]
    assert answers["onnxruntime"]["mismatches"][0]["image"].endswith(".png")


def test_verify_refuses_a_bundle_of_another_network(
    graphs: Bundle, checkpoint: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(graphs.folder, other)
    vocabulary = type(tiny.VOCABULARY)(("z", *tiny.TOKENS[1:]))
    edit_json(other / BUNDLE_FILE, vocabulary=vocabulary.to_dict())
    with pytest.raises(VocabularyMismatch, match="different vocabularies"):
        parity.load_pair(checkpoint, other)
    shutil.copy(graphs.file(BUNDLE_FILE), other)
    settings = tiny.SETTINGS.to_dict() | {"margin": 99}
    edit_json(other / BUNDLE_FILE, preprocess=settings)
    with pytest.raises(BundleError, match="different preprocess settings"):
        parity.load_pair(checkpoint, other)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--images", "nowhere"], "There is no folder nowhere"),
        (["--images", "empty"], "no pictures or ink files in empty"),
        (["--data", "nowhere"], "There is no stroke pack nowhere"),
        (["--images", "broken"], "broken.png cannot be compared on"),
    ],
)
def test_bad_images_are_one_sentence(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "broken.png").write_bytes(b"no picture")
    result = CliRunner(env={"HMER_CROHME": None}).invoke(
        main, ["onnx", str(checkpoint), "-o", "out", *arguments]
    )
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert complaint in result.stderr


def test_a_missing_library_names_the_extra(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n.startswith(("export.onnx_export", "export.checks"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx", None)
    result = CliRunner().invoke(main, ["onnx", str(checkpoint), "-o", str(tmp_path / "bundle")])
    assert result.exit_code == 1
    assert "pip install 'hmer[export]'" in result.stderr


def test_the_command_line_needs_no_torch_until_it_exports() -> None:
    code = "import sys, export.cli; sys.exit('torch' in sys.modules or 'onnx' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tiny.ROOT)


@pytest.mark.parametrize("command", ["onnx", "verify", "repository"])
def test_help_has_an_example(command: str) -> None:
    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == 0
    assert f"hmer-export {command} " in result.output


def test_a_k_out_of_range_is_a_usage_error(checkpoint: Path) -> None:
    assert CliRunner().invoke(main, ["onnx", str(checkpoint), "-o", "x", "--k", "0"]).exit_code == 2
