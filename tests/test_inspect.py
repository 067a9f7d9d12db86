"""Inspect: a page about every artefact, for people and as JSON; a sentence about anything else."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper
from safetensors.torch import save_file

from export.cli import main
from export.config import RepositoryOptions
from export.inspect_page import Page, Section
from export.inspect_path import page_of
from export.repository import assemble
from hmer import __version__, contract
from hmer.bundle import BUNDLE_FILE, ENCODER_FILE, STEP_FILE, Bundle, sha256_of
from hmer.engine import EngineInfo, EngineProfile, tensors_of, write_sidecar
from hmer.errors import (
    ContractMismatch,
    CorruptBundle,
    ExportError,
    HmerError,
    MissingBundle,
    MissingDependency,
)
from tests import tiny


def document_of(path: Path) -> dict[str, Any]:
    """What the command prints as JSON; the text page is checked to hold the summary."""
    runner = CliRunner()
    text = runner.invoke(main, ["inspect", str(path)])
    assert text.exit_code == 0, text.output
    result = runner.invoke(main, ["inspect", str(path), "--json"])
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    assert text.stdout.startswith(f"{document['path']}: {document['summary']}")
    for command in document["next"]:
        assert command in text.stdout
    return document


def test_a_checkpoint(checkpoint: Path) -> None:
    found = document_of(checkpoint)
    assert found["kind"] == "checkpoint"
    assert found["vocabulary"]["tokens"] == len(tiny.VOCABULARY)
    assert found["vocabulary"]["sha256"] == tiny.VOCABULARY.fingerprint
    assert found["preprocess"] == tiny.SETTINGS.to_dict()
    assert found["network"]["stride"] == tiny.CONFIG.stride
    weights = sum(value.numel() for value in tiny.make_network().state_dict().values())
    assert found["weights"]["values"] == weights
    assert found["details"]["note"] == "random weights, for tests"
    assert found["next"] == [f"hmer-export onnx {checkpoint} --output bundle"]
    assert document_of(checkpoint / BUNDLE_FILE)["path"] == str(checkpoint)


def test_exported_graphs(graphs: Bundle) -> None:
    found = document_of(graphs.folder)
    assert found["kind"] == "graphs"
    assert found["graphs"]["precision"] == "fp32"
    assert found["graphs"]["tokens_a_call"] == 3
    assert found["graphs"]["candidates_of_beam"] == graphs.beam
    rows = {row["model"]: row for row in found["graphs"]["rows"]}
    assert set(rows) == {contract.ENCODER, contract.DECODER_STEP, contract.DECODER_BEAM}
    assert rows[contract.ENCODER]["bytes"] == graphs.file(ENCODER_FILE).stat().st_size
    files = {row["file"]: row["sha256"] for row in found["bundle"]["rows"]}
    assert files[STEP_FILE] == sha256_of(graphs.file(STEP_FILE))
    assert found["bundle"]["hashes_verified"] is True
    assert {row["differing"] for row in found["export"]["rows"]} == {0}
    assert "hmer-export repository" in found["next"][1]


@pytest.mark.parametrize("file", [ENCODER_FILE, STEP_FILE, "decoder_beam.onnx"])
def test_a_graph(graphs: Bundle, file: str) -> None:
    found = document_of(graphs.file(file))
    model = onnx.load(graphs.file(file))
    assert found["graph"]["model"] == model.graph.name
    assert sum(found["graph"]["operators"].values()) == len(model.graph.node)
    axes = {row["name"]: row["axes"] for row in found["inputs"]["rows"]}
    spec = contract.models(graphs.sizes)[model.graph.name]
    assert axes == {tensor.name: ["batch", *tensor.dims] for tensor in spec.inputs}
    assert {row["dtype"] for row in found["outputs"]["rows"]} == {t.dtype for t in spec.outputs}
    assert found["bundle"]["hash_verified"] is True
    assert found["graph"].get("k") == (3 if file == STEP_FILE else None)
    assert found["graph"].get("beam") == (graphs.beam if file == "decoder_beam.onnx" else None)


def test_a_graph_without_its_bundle_is_said_to_be_alone(graphs: Bundle, tmp_path: Path) -> None:
    shutil.copy(graphs.file(ENCODER_FILE), tmp_path)
    found = document_of(tmp_path / ENCODER_FILE)
    assert "nothing vouches" in found["bundle"]["note"]
    assert found["graph"]["precision"] is None


def engine_info(graphs: Bundle, name: str, plan: Path, **changes: Any) -> EngineInfo:
    """A sidecar as the engine builder writes it, for a plan of made-up bytes."""
    inputs, outputs = tensors_of(contract.models(graphs.sizes)[name])
    values: dict[str, Any] = {
        "graph": name, "flavour": "tensorrt", "version": "10.14.1.48", "gpu": "NVIDIA L4",
        "compute_capability": "8.9", "targets": (), "precision": graphs.precision,
        "k": graphs.k, "beam": graphs.beam,
        "onnx_sha256": sha256_of(graphs.file(f"{name}.onnx")),
        "plan_sha256": sha256_of(plan), "plan_bytes": plan.stat().st_size,
        "vocabulary_sha256": graphs.vocabulary.fingerprint,
        "contract": contract.CONTRACT_VERSION, "hmer": __version__,
        "profiles": (EngineProfile("full", {"batch": (1, 4, 16), "height": (32, 80, 512)}),),
        "inputs": inputs, "outputs": outputs, "options": {"workspace_gib": 2.0}, "seconds": 3.5,
    }  # fmt: skip
    return EngineInfo(**values | changes)


def test_an_engine_and_a_folder_of_engines(graphs: Bundle, tmp_path: Path) -> None:
    for name in (contract.ENCODER, contract.DECODER_STEP):
        plan = tmp_path / f"{name}.plan"
        plan.write_bytes(name.encode() * 9)
        write_sidecar(plan, engine_info(graphs, name, plan))
    found = document_of(tmp_path / "encoder.plan")
    assert found["engine"]["version"] == "10.14.1.48"
    assert found["engine"]["compute_capability"] == "8.9"
    assert found["profiles"]["rows"][0] == {
        "profile": "full", "axis": "batch", "min": 1, "typical": 4, "max": 16
    }  # fmt: skip
    assert found["inputs"]["rows"][0]["name"] == "image"
    assert "--engines" in found["next"][0]
    assert document_of(tmp_path / "encoder.plan.json")["path"] == str(tmp_path / "encoder.plan")
    folder = document_of(tmp_path)
    assert [row["model"] for row in folder["engines"]["rows"]] == ["decoder_step", "encoder"]
    (tmp_path / "encoder.plan").write_bytes(b"other")
    refused(tmp_path / "encoder.plan", CorruptBundle, "is not the file that")
    (tmp_path / "encoder.plan.json").unlink()
    refused(tmp_path / "encoder.plan", MissingBundle, "has no encoder.plan.json beside it")


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_a_repository(graphs: Bundle, tmp_path: Path, target: str) -> None:
    host = "container" if target == "tensorrt" else "embedded"
    options = RepositoryOptions(host=host, target=target, processes="many")
    assemble(graphs.folder, tmp_path / "repository", options)
    found = document_of(tmp_path / "repository")
    assert found["repository"]["target"] == target
    rows = {row["model"]: row for row in found["models"]["rows"]}
    assert rows["recognize"]["runs_on"] == "python"
    assert rows["decode"]["runs_on"] == "python"
    assert rows["encoder"]["missing"] == (target == "tensorrt")
    assert found["vocabulary"]["tokens"] == len(tiny.VOCABULARY)
    if target == "tensorrt":
        assert rows["encoder"]["runs_on"] == "tensorrt_plan"
        assert found["next"][0].startswith("hmer-export engine ")
    else:
        assert found["next"] == [f"hmer-serve --repository {tmp_path / 'repository'}"]


def test_a_training_run(checkpoint: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    progress = {"step": 700, "epoch": 2, "best_score": 0.25, "identity": {"seed": 3}}
    save_file(
        {"network/w": torch.zeros(3, 4)}, run / "state.safetensors",
        metadata={"progress": json.dumps(progress)},
    )  # fmt: skip
    (run / "metrics.jsonl").write_text('{"step": 699, "loss": 1.5}\n{"step": 7', encoding="utf-8")
    found = document_of(run)
    assert found["kind"] == "run"
    assert found["progress"]["step"] == 700
    assert found["identity"] == {"seed": 3}
    assert found["state"]["values"] == 12
    assert found["last_metrics"]["loss"] == 1.5
    shutil.copytree(checkpoint, run / "best")
    found = document_of(run)
    assert found["best"]["usable"] is True
    assert found["next"][0] == f"hmer-export onnx {run / 'best'} --output bundle"
    (run / "best" / "model.safetensors").write_bytes(b"")
    assert document_of(run)["best"]["usable"] is False


# Bad input


def refused(path: Path, kind: type[HmerError], complaint: str) -> None:
    """The page is refused with ``kind``, and the command with one sentence."""
    with pytest.raises(kind, match=complaint):
        page_of(path)
    result = CliRunner().invoke(main, ["inspect", str(path)])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_what_is_nothing_of_this_project(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", MissingBundle, "There is nothing at")
    refused(tmp_path, ExportError, "a folder of nothing that can be explained")
    text = tmp_path / "notes.txt"
    text.write_text("hello", encoding="utf-8")
    refused(text, ExportError, "no file that can be explained")
    with gzip.open(tmp_path / "x.onnx", "wb") as stream:
        stream.write(b"not a graph")
    refused(tmp_path / "x.onnx", CorruptBundle, "not a whole ONNX file")
    (tmp_path / "empty.onnx").touch()
    refused(tmp_path / "empty.onnx", ExportError, "an unnamed program made it")
    (tmp_path / "state.safetensors").write_bytes(b"\x99" * 20)
    refused(tmp_path, CorruptBundle, "not a whole safetensors file")


def test_a_graph_of_somebody_else(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1, 3])
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 3])
    graph = helper.make_graph(
        [helper.make_node("Relu", ["pixels"], ["logits"])], "g", [value], [out]
    )
    onnx.save(helper.make_model(graph, producer_name="keras"), tmp_path / "g.onnx")
    refused(tmp_path / "g.onnx", ExportError, "keras made it, and its inputs are pixels")


def test_a_graph_of_another_contract(graphs: Bundle, tmp_path: Path) -> None:
    model = onnx.load(graphs.file(ENCODER_FILE))
    model.graph.input[1].name = "shape"
    onnx.save(model, tmp_path / ENCODER_FILE)
    refused(tmp_path / ENCODER_FILE, ContractMismatch, "image, shape, .* instead of image, size")


@pytest.mark.parametrize(
    ("how", "kind", "complaint"),
    [
        ("bytes", CorruptBundle, "truncated or changed"),
        ("contract", ContractMismatch, "contract version 99"),
        ("no file", CorruptBundle, "is missing"),
    ],
)
def test_a_spoiled_bundle(
    graphs: Bundle, tmp_path: Path, how: str, kind: type[HmerError], complaint: str
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(graphs.folder, folder)
    graph, document = folder / ENCODER_FILE, folder / BUNDLE_FILE
    if how == "bytes":
        model = onnx.load(graph)
        tensor = next(t for t in model.graph.initializer if len(t.raw_data) > 100)
        tensor.raw_data = bytes(len(tensor.raw_data))
        onnx.save(model, graph)
        refused(graph, kind, complaint)
    elif how == "no file":
        graph.unlink()
    else:
        values = json.loads(document.read_text(encoding="utf-8"))
        document.write_text(json.dumps(values | {"contract": 99}), encoding="utf-8")
    refused(folder, kind, complaint)


def test_a_spoiled_repository(graphs: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    assemble(graphs.folder, folder, RepositoryOptions())
    (folder / "models" / "recognize" / "config.pbtxt").write_text("nonsense {", encoding="utf-8")
    refused(folder, CorruptBundle, "config.pbtxt cannot be read")
    shutil.rmtree(folder / "models")
    refused(folder, HmerError, "There is no folder")
    document = folder / "repository.json"
    values = json.loads(document.read_text(encoding="utf-8"))
    document.write_text(json.dumps(values | {"contract": 0}), encoding="utf-8")
    refused(folder, ContractMismatch, "contract version 0")
    document.write_text("{}", encoding="utf-8")
    refused(folder, CorruptBundle, "does not describe a repository")


def test_without_onnx_a_graph_names_the_extra_and_a_bundle_still_has_a_page(
    graphs: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    refused(graphs.file(ENCODER_FILE), MissingDependency, r"pip install 'hmer\[export\]'")
    found = document_of(graphs.folder)
    assert "hmer[export]" in found["graphs"]["note"]
    assert found["graphs"]["tokens_a_call"] == 3


def test_without_safetensors_a_checkpoint_still_has_a_page(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    found = document_of(checkpoint)
    assert "hmer[train]" in found["weights"]["note"]
    assert found["vocabulary"]["tokens"] == len(tiny.VOCABULARY)


def test_inspect_needs_no_torch(checkpoint: Path, graphs: Bundle) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from export.inspect_path import page_of\n"
        "for path in sys.argv[1:]: page_of(Path(path)).text()\n"
    )
    paths = [str(checkpoint), str(graphs.folder), str(graphs.file(ENCODER_FILE))]
    subprocess.run([sys.executable, "-c", code, *paths], check=True, cwd=tiny.ROOT)


def test_a_page_wraps_long_values_and_shows_sizes_in_their_unit() -> None:
    page = Page("x", "p", "s.", [Section("T", {"many": ["word"] * 60, "bytes": 2_500})], [])
    lines = page.text().splitlines()
    assert max(len(line) for line in lines) < 100
    assert sum(line.count("word") for line in lines) == 60
    assert "  bytes  2.50 kB" in lines
