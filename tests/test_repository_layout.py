"""The files of a repository: what lies where, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from export.config import (
    CONTAINER,
    ONNXRUNTIME,
    TENSORRT,
    RepositoryOptions,
    from_text,
)
from export.repository import assemble
from export.repository_cli import repository
from hmer.bundle import BUNDLE_FILE, Bundle, load_bundle, save_bundle
from hmer.errors import (
    BadParameter,
    ContractMismatch,
    CorruptBundle,
    ExportError,
    MissingBundle,
    ServerSetupError,
    VocabularyMismatch,
)
from hmer.preprocess import PreprocessSettings
from hmer.vocab import Vocabulary
from model_repository.repository import open_repository


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle whose graphs are two short files: nothing here runs them."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "encoder.onnx").write_bytes(b"encoder graph")
    (folder / "decoder_step.onnx").write_bytes(b"step graph")
    network = {"strides": [2, 2, 2, 1, 1], "widths": [2, 3, 4, 6], "attention": 5, "hidden": 7}
    save_bundle(
        Bundle(folder, "graphs", Vocabulary("xy"), PreprocessSettings(), network, k=3),
        ["encoder.onnx", "decoder_step.onnx"],
    )
    return folder


def edit(path: Path, change: Any) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")


def test_layout(bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "deep" / "repository"
    result = assemble(bundle, output, RepositoryOptions())
    assert result.folder == output
    assert result.missing == ()
    # Triton takes every folder beside the models for a model.
    assert {path.name for path in (output / "models").iterdir()} == set(result.models)
    assert set(result.models) == {"recognize", "recognize_stream"}
    for name in result.models:
        config = from_text((output / "models" / name / "config.pbtxt").read_text(encoding="utf-8"))
        assert config.name == name
        assert (output / "models" / name / "1" / "model.py").is_file()
    assert (output / "bundle" / BUNDLE_FILE).read_bytes() == (bundle / BUNDLE_FILE).read_bytes()
    assert (output / "lib" / "model_repository" / "decode" / "model.py").is_file()
    assert (output / "lib" / "hmer" / "decode.py").is_file()
    assert "onnxruntime" in (output / "requirements.txt").read_text(encoding="utf-8").split()
    assert str(tmp_path) not in "".join(
        path.read_text(encoding="utf-8") for path in output.rglob("*.pbtxt")
    )
    repository = open_repository(output)
    assert repository.models == tuple(sorted(result.models))
    # It can be moved, and nothing else is left beside it.
    moved = output.rename(tmp_path / "moved")
    open_repository(moved)
    assert list((tmp_path / "deep").iterdir()) == []


def test_container_layout(bundle: Path, tmp_path: Path) -> None:
    result = assemble(bundle, tmp_path / "onnx", RepositoryOptions(CONTAINER, ONNXRUNTIME))
    models = result.folder / "models"
    assert (models / "encoder" / "1" / "model.onnx").read_bytes() == b"encoder graph"
    assert (models / "decoder_step" / "1" / "model.onnx").read_bytes() == b"step graph"
    assert not (models / "encoder" / "1" / "model.py").exists()
    requirements = (result.folder / "requirements.txt").read_text(encoding="utf-8")
    assert "onnxruntime" not in requirements


def test_a_beam_graph_travels_with_its_model(bundle: Path, tmp_path: Path) -> None:
    (bundle / "decoder_beam.onnx").write_bytes(b"beam graph")
    old = load_bundle(bundle)
    old.beam = 4
    save_bundle(old, ["encoder.onnx", "decoder_step.onnx", "decoder_beam.onnx"])
    served = assemble(bundle, tmp_path / "c", RepositoryOptions(CONTAINER, ONNXRUNTIME))
    graph = served.folder / "models" / "decoder_beam" / "1" / "model.onnx"
    assert graph.read_bytes() == b"beam graph"
    embedded = assemble(bundle, tmp_path / "e", RepositoryOptions(step="bls")).folder
    assert (embedded / "models" / "decoder_beam" / "1" / "model.py").is_file()
    assert (embedded / "lib" / "model_repository" / "decoder_beam" / "model.py").is_file()
    inside = assemble(bundle, tmp_path / "i", RepositoryOptions()).folder
    assert not (inside / "models" / "decoder_beam").exists()
    assert (inside / "bundle" / "decoder_beam.onnx").is_file()


def test_tensorrt_layout(bundle: Path, tmp_path: Path) -> None:
    options = RepositoryOptions(CONTAINER, TENSORRT)
    without = assemble(bundle, tmp_path / "without", options)
    assert len(without.missing) == 2
    engines = tmp_path / "engines"
    engines.mkdir()
    (engines / "encoder.plan").write_bytes(b"one")
    with pytest.raises(ExportError, match=r"no .*decoder_step\.plan"):
        assemble(bundle, tmp_path / "half", options, engines=engines)
    (engines / "decoder_step.plan").write_bytes(b"two")
    with pytest.raises(MissingBundle, match=r"encoder\.plan\.json"):  # see test_engine.py
        assemble(bundle, tmp_path / "full", options, engines=engines)
    with pytest.raises(BadParameter, match="--target tensorrt"):
        assemble(bundle, tmp_path / "odd", RepositoryOptions(), engines=engines)


def test_the_code_is_this_code(bundle: Path, tmp_path: Path) -> None:
    output = assemble(bundle, tmp_path / "r", RepositoryOptions()).folder
    import hmer

    source = Path(hmer.__file__).parent
    for path in source.rglob("*.py"):
        copy = output / "lib" / "hmer" / path.relative_to(source)
        assert copy.read_bytes() == path.read_bytes()
    assert not [p for p in (output / "lib").rglob("*") if p.is_file() and p.suffix != ".py"]


def test_nothing_is_overwritten(bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "r"
    output.mkdir()
    assemble(bundle, output, RepositoryOptions())  # an empty folder is fine
    with pytest.raises(ExportError, match="not empty"):
        assemble(bundle, output, RepositoryOptions())
    (output / "old").touch()
    assemble(bundle, output, RepositoryOptions(slots=2), force=True)
    assert not (output / "old").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").touch()
    with pytest.raises(ExportError, match="not a repository"):
        assemble(bundle, mine, RepositoryOptions(), force=True)
    assert (mine / "thesis.tex").exists()
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="is a file"):
        assemble(bundle, tmp_path / "file", RepositoryOptions(), force=True)


def test_a_failure_leaves_nothing(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("export.repository._copy_code", fail)
    with pytest.raises(ExportError, match="No space left"):
        assemble(bundle, tmp_path / "out" / "r", RepositoryOptions())
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda b: (b / "encoder.onnx").write_bytes(b"other graph!!"), CorruptBundle),
        (lambda b: (b / "encoder.onnx").unlink(), CorruptBundle),
        (lambda b: (b / BUNDLE_FILE).unlink(), MissingBundle),
        (
            lambda b: edit(b / BUNDLE_FILE, lambda d: d["vocabulary"]["tokens"].append("z")),
            VocabularyMismatch,
        ),
        (lambda b: edit(b / BUNDLE_FILE, lambda d: d.update(contract=99)), ContractMismatch),
    ],
)
def test_a_damaged_bundle(bundle: Path, tmp_path: Path, damage: Any, error: Any) -> None:
    served = assemble(bundle, tmp_path / "served", RepositoryOptions()).folder
    damage(bundle)
    with pytest.raises(error):
        assemble(bundle, tmp_path / "r", RepositoryOptions())
    assert not (tmp_path / "r").exists()
    damage(served / "bundle")
    with pytest.raises(error):
        open_repository(served)


def test_folders_that_are_no_repository(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingBundle, match="hmer-export repository"):
        open_repository(tmp_path / "nowhere")
    folder = assemble(bundle, tmp_path / "r", RepositoryOptions()).folder
    edit(folder / "repository.json", lambda d: d.update(contract=0))
    with pytest.raises(ContractMismatch, match="Assemble it again"):
        open_repository(folder)
    (folder / "repository.json").write_text("{", encoding="utf-8")
    with pytest.raises(ServerSetupError, match="cannot be read"):
        open_repository(folder)


def test_command(bundle: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke(
        repository, [str(bundle), "--output", str(tmp_path / "r"), "--slots", "4", "--json"]
    )
    assert run.exit_code == 0, run.output
    document = json.loads(run.stdout)
    assert document["repository"] == str(tmp_path / "r")
    assert (document["step"], document["missing"]) == ("in_process", [])
    again = CliRunner().invoke(repository, [str(bundle), "--output", str(tmp_path / "r")])
    assert again.exit_code == 1
    assert again.stderr.startswith("error: ")
    assert "Traceback" not in again.output
    assert CliRunner().invoke(repository, [str(bundle)]).exit_code == 2


def test_command_says_which_engines_are_missing(bundle: Path, tmp_path: Path) -> None:
    arguments = [str(bundle), "-o", str(tmp_path / "r"), "--host", "container"]
    run = CliRunner().invoke(repository, [*arguments, "--target", "tensorrt"])
    assert run.exit_code == 0
    assert run.stderr.count("warning: ") == 2
    assert "model.plan is still missing" in run.stderr
