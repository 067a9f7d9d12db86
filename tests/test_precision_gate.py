"""The gate of a precision: measured on training data, refused above 0.3 points, kept in details."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from export import gate, onnx_export, precision_table
from export.cli import main
from export.gate import Loss, measure_loss, refuse_loss
from export.onnx_export import GraphSummary, export_bundle
from export.precision_table import TESTS, measure, tables
from export.selection import Selection, Selections, selections
from export.verify_types import Answer
from hmer.bundle import ENCODER_FILE, STEP_FILE, Bundle
from hmer.errors import BadParameter, DatasetError, ExportError
from hmer.vocab import EOS_ID
from tests import tiny
from tests.export_fixtures import in_precision, spare_tracing
from tests.handwriting import write_pack
from training.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return in_precision("int8", tmp_path_factory.mktemp("int8") / "graphs")


def training_pack(path: Path) -> Path:
    """Writings of so many writers that some are held out."""
    lines = write_pack(path, count=120).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) | {"writer": f"w{n // 2}"} for n, line in enumerate(lines)]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return path


def loss(found: float | None, differing: int = 1, reference: float | None = 0.5) -> Loss:
    return Loss("int8", "400 held-out writings", 400, differing, reference, found, False)


def test_points() -> None:
    assert loss(0.4975).points == pytest.approx(0.25)
    assert loss(0.51).points == pytest.approx(-1.0)
    # Without labels every other answer may be a lost one.
    assert loss(None, 3, None).points == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("measured", "complaint"),
    [
        (loss(0.4960), r"int8 loses 0\.40 points of ExpRate, and 0\.3 are allowed.*--accept-loss"),
        (loss(None, 2, None), r"loses at most 0\.50 points.*with labels"),
    ],
)
def test_too_great_a_loss_is_refused_unless_asked_for(measured: Loss, complaint: str) -> None:
    lines: list[str] = []
    with pytest.raises(ExportError, match=complaint):
        refuse_loss(measured, accept=False, say=lines.append)
    refuse_loss(measured, accept=True, say=lines.append)
    assert len(lines) == 2
    assert "answers differ from float32" in lines[0]
    refuse_loss(loss(0.4971), accept=False)


def test_exprate_is_of_the_truths(int8: Bundle) -> None:
    truths = {"a": ("x",), "b": ("1", "+", "2")}
    right, wrong = int8.vocabulary.encode(["x"]), int8.vocabulary.encode(["1", "-", "2"])
    answers = {"a": Answer((*right, EOS_ID), (0.0, 0.0)), "b": Answer(tuple(wrong), (0.0,) * 3)}
    assert gate.exprate(answers, truths, int8.vocabulary) == 0.5


def test_the_loss_of_int8_is_measured_on_the_images_given(int8: Bundle, checkpoint: Path) -> None:
    model = load_checkpoint(checkpoint)[1]
    images = tiny.named_images(10, seed=2)
    unlabelled = measure_loss(model, int8, Selection("pictures", images))
    assert (unlabelled.images, unlabelled.reference) == (10, None)
    truths = dict.fromkeys(images, ("x", "+", "y"))
    labelled = measure_loss(model, int8, Selection("writings", images, truths))
    assert labelled.differing == unlabelled.differing
    assert labelled.reference is not None
    with pytest.raises(ExportError, match="nothing to judge int8 on"):
        measure_loss(model, int8, Selection("nobody's writings", {}))


def test_an_unchanged_network_loses_nothing(graphs: Bundle, checkpoint: Path) -> None:
    found = measure_loss(
        load_checkpoint(checkpoint)[1], graphs, Selection("p", tiny.named_images(10, seed=2))
    )
    assert (found.differing, found.points) == (0, 0.0)


def test_calibration_and_judgement_share_no_writer(tmp_path: Path) -> None:
    chosen = selections(tiny.SETTINGS, training_pack(tmp_path / "train.jsonl"))
    assert len(chosen.calibration.images) > 20
    assert 0 < len(chosen.judged.images) < 20
    assert chosen.calibration.images.keys().isdisjoint(chosen.judged.images)
    assert set(chosen.judged.truths) == set(chosen.judged.images)
    assert "held-out" in chosen.judged.source
    assert all(image.dtype == np.uint8 for image in chosen.calibration.images.values())
    samples = selections(tiny.SETTINGS, None)
    assert samples.judged.truths == {}
    assert samples.judged is samples.calibration


def test_an_export_is_refused_and_leaves_nothing(
    int8: Bundle, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spare_tracing(monkeypatch, int8)
    judged = Selection("pictures", tiny.named_images(4))
    monkeypatch.setattr(onnx_export, "selections", lambda *_: Selections(judged, judged))
    bad = Loss("int8", "pictures", 4, 4, 0.5, 0.25, False)
    monkeypatch.setattr(onnx_export, "measure_loss", lambda *_: bad)
    arguments: dict[str, Any] = {"k": 2, "beam": 0, "images": judged.images}
    arguments |= {"precision": "int8", "runtimes": ["onnxruntime"]}
    with pytest.raises(ExportError, match=r"int8 loses 25\.00 points"):
        export_bundle(checkpoint, tmp_path / "out" / "bundle", **arguments)
    assert list((tmp_path / "out").iterdir()) == []
    result = export_bundle(checkpoint, tmp_path / "out" / "bundle", **arguments, accept_loss=True)
    assert result.bundle.precision == "int8"
    assert result.bundle.details["export"]["loss"]["points"] == 25.0
    assert result.bundle.details["export"]["calibration"] == "pictures"
    assert result.to_dict()["loss"]["differing"] == 4


def test_a_disk_that_fills_up_leaves_nothing(
    traced: Bundle, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.name == STEP_FILE:
            write(path, data[:100])
            raise OSError(28, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    output = tmp_path / "out" / "bundle"
    with pytest.raises(ExportError, match=r"bundle cannot be written: No space left.*Nothing"):
        export_bundle(checkpoint, output, k=3, beam=0, images=tiny.named_images(1))
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"precision": "fp8"}, "no precision 'fp8'"),
        ({"beam": 65}, "beam is 65"),
        ({"k": 17}, "k is 17"),
        ({"storage": "int4"}, "storage 'int4' is unknown"),
    ],
)
def test_impossible_options(
    checkpoint: Path, tmp_path: Path, arguments: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(BadParameter, match=complaint):
        export_bundle(checkpoint, tmp_path / "bundle", images={}, **arguments)


# The table


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder laid out as CROHME's, of a few shapes."""
    folder = tmp_path / "data"
    folder.mkdir()
    packs = {"train.jsonl.gz": training_pack(tmp_path / "train.jsonl")}
    for seed, name in enumerate(TESTS.values()):
        packs[name] = write_pack(tmp_path / f"{seed}.jsonl", count=40, seed=seed)
    for name, pack in packs.items():
        (folder / name).write_bytes(gzip.compress(pack.read_bytes()))
    return folder


@pytest.fixture
def made(int8: Bundle, graphs: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table gets graphs that were traced before."""

    def write_graphs(model: Any, bundle: Bundle, *_: Any) -> list[GraphSummary]:
        summaries = []
        for file in (ENCODER_FILE, STEP_FILE):  # int8 leaves the decoder in fp32
            folder = graphs if bundle.precision == "fp32" and file == ENCODER_FILE else int8
            content = folder.file(file).read_bytes()
            bundle.file(file).write_bytes(content)
            summaries.append(GraphSummary(file, len(content), 20, 1, {}, 0.0))
        return summaries

    monkeypatch.setattr(precision_table, "write_graphs", write_graphs)


def test_the_table_compares_with_fp32(made: None, checkpoint: Path, data: Path) -> None:
    rows = measure(checkpoint, data, precisions=["int8"], limit=6, k=2)
    assert [row.precision for row in rows] == ["fp32", "int8"]
    for row in rows:
        assert list(row.tests) == list(TESTS)
        for found in row.tests.values():
            assert found.images == 6
            assert found.tokens >= 6
    assert {found.edits for found in rows[0].tests.values()} == {0}
    assert rows[0].times[ENCODER_FILE]["onnxruntime"] == 1.0
    assert rows[0].loss is None
    assert rows[1].loss is not None
    ratio = rows[1].times[STEP_FILE]["onnxruntime"]
    assert ratio is not None
    assert ratio > 0
    text = "\n".join(table.text() for table in tables(rows))
    assert "int8" in text
    assert "CROHME 2016" in text


def test_the_command_writes_json_and_markdown(
    made: None, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    call = ["precision", str(checkpoint), "--data", str(data), "--limit", "2", "--k", "2"]
    target = tmp_path / "table.md"
    result = CliRunner().invoke(
        main, [*call, "--precision", "int8", "--markdown", str(target), "--json"]
    )
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout.splitlines()[-1])
    assert [row["precision"] for row in document["rows"]] == ["fp32", "int8"]
    assert "| int8 | CROHME 2014 | 2 |" in target.read_text(encoding="utf-8")
    (data / TESTS["CROHME 2016"]).unlink()
    missing = CliRunner().invoke(main, call)
    assert missing.exit_code == 1
    assert missing.stderr.startswith("error: There is no stroke pack")


def test_data_that_is_no_folder(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(BadParameter, match="is no folder"):
        measure(checkpoint, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no stroke pack"):
        measure(checkpoint, tmp_path / "empty")
