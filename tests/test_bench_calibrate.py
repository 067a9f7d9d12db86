"""``hmer-bench calibrate`` and the held-out part, with a recogniser whose answers are given."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import benchmarks.accuracy_cli
import benchmarks.calibrate_cli
from benchmarks.cli import main
from benchmarks.crohme import held_out, read_pack
from hmer.bundle import Bundle, load_bundle
from hmer.calibration import Calibration
from hmer.errors import BlankImage, DatasetError, HmerError
from hmer.recognizer import Recognition

STROKES = [[[0, 0], [9, 9]]]


def write_pack(path: Path, count: int, writers: int) -> Path:
    """Labels of 1 to 8 letters, all different; the number at the end tells which."""
    with path.open("w", encoding="utf-8") as stream:
        for index in range(count):
            label = "x " * (index % 8) + " ".join(f"{index:04d}")
            record = {"id": f"e{index}", "writer": f"w{index % writers}", "norm": label}
            stream.write(json.dumps({**record, "strokes": [[[index, 0], [9, 9]]]}) + "\n")
    return path


class Oracle:
    """Answers with a score s that is right in a share s^(1/3) of all: far too modest."""

    def __init__(self, *arguments: object, **options: object) -> None:
        pass

    def __enter__(self) -> Oracle:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def recognize_many(
        self, inputs: Sequence[bytes], looks: int = 1
    ) -> list[Recognition | HmerError]:
        return [self.answer(data) for data in inputs]

    @staticmethod
    def answer(data: bytes) -> Recognition | HmerError:
        index = int(json.loads(data)["strokes"][0][0][0])
        if index == 7:
            return BlankImage("blank")
        chance = random.Random(index)
        p = chance.random()
        truth = ["x"] * (index % 8) + list(f"{index:04d}")
        tokens = truth if chance.random() < p else ["y", *truth]
        return Recognition("", tuple(tokens), p**3)


@pytest.fixture
def bundle(tiny_graphs: Bundle, tmp_path: Path) -> Bundle:
    """A copy, to be written to."""
    shutil.copytree(tiny_graphs.folder, tmp_path / "bundle")
    return load_bundle(tmp_path / "bundle")


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    return write_pack(tmp_path / "train.jsonl", 4000, writers=40)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["calibrate", *map(str, arguments)])


@pytest.fixture(autouse=True)
def oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarks.calibrate_cli, "LocalRecognizer", Oracle)


def test_held_out_is_what_training_holds_out(pack: Path) -> None:
    from training.data import Example, split_by_writer_and_label

    expressions = read_pack(pack)
    chosen = held_out(expressions)
    examples = [Example(e.id, e.writer, e.truth, []) for e in expressions]
    split = split_by_writer_and_label(examples, 0.05, 0)
    assert [e.id for e in chosen] == [e.name for e in split.held_out]
    assert 0 < len(chosen) < 1000
    writers = {e.writer for e in chosen}
    assert not writers & {e.writer for e in split.train}


def test_a_pack_without_writers_has_no_held_out_part(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "one.jsonl", 10, writers=1)
    with pytest.raises(DatasetError, match="No writer of this pack is held out"):
        held_out(read_pack(pack))


def test_the_held_out_part_of_crohme(crohme: Path) -> None:
    assert len(held_out(read_pack(crohme / "train.jsonl.gz"))) == 196


def test_errors_before_and_after(bundle: Bundle, pack: Path, tmp_path: Path) -> None:
    result = run("--bundle", bundle.folder, "--data", pack, "--whole", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["n"], report["failed"], report["decoding"]) == (3999, 1, "greedy")
    assert report["right"] == pytest.approx(2000, abs=100)
    # mean |p^3 - p| over uniform p: 1/4
    assert report["before"]["ece_equal_mass"] == pytest.approx(0.25, abs=0.02)
    assert report["after_cross_validated"]["ece_equal_mass"] < 0.05
    assert report["after_cross_validated"]["brier"] < report["before"]["brier"]
    assert load_bundle(bundle.folder).details.get("calibration") is None  # without --write


def test_only_the_held_out_part_is_fitted_on(bundle: Bundle, pack: Path) -> None:
    report = json.loads(run("--bundle", bundle.folder, "--data", pack, "--json").stdout)
    assert report["n"] + report["failed"] == len(held_out(read_pack(pack)))
    assert report["data"] == "train.jsonl, held-out part"


def test_a_test_set_is_measured_and_not_fitted_on(
    bundle: Bundle, pack: Path, tmp_path: Path
) -> None:
    other = write_pack(tmp_path / "test.jsonl", 300, writers=1)
    arguments = ("--bundle", bundle.folder, "--data", pack, "--whole", "--json")
    alone, both = run(*arguments), run(*arguments, "--test", other)
    first, second = json.loads(alone.stdout), json.loads(both.stdout)
    assert second["calibration"] == first["calibration"]
    assert second["test"]["data"] == "test.jsonl"
    assert second["test"]["after"]["n"] == 299
    assert second["test"]["after"]["ece_equal_mass"] < second["test"]["before"]["ece_equal_mass"]
    text = run(*arguments[:-1], "--test", other).stdout
    assert "test.jsonl: 299 answers, not fitted on" in text
    assert "confidence = 1 / (1 + exp(-(" in text


def test_write_keeps_it_and_the_bundle_stays_whole(
    bundle: Bundle, pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run("--bundle", bundle.folder, "--data", pack, "--whole", "--write", "--no-length")
    assert result.exit_code == 0, result.output
    kept = load_bundle(bundle.folder)
    assert kept.details["note"] == bundle.details["note"]
    assert (kept.k, kept.vocabulary.tokens) == (bundle.k, bundle.vocabulary.tokens)
    calibration = Calibration.from_details(kept.details)
    assert calibration is not None
    assert calibration.length == 0.0
    assert calibration.origin["n"] == 3999
    # of the answers with score 0.5^3, about half are right
    assert calibration.of_score(0.125, 5) == pytest.approx(0.5, abs=0.1)

    monkeypatch.setattr(benchmarks.accuracy_cli, "LocalRecognizer", Oracle)
    out = pack.with_name("predictions.json")
    result = CliRunner().invoke(
        main,
        ["accuracy", "--data", str(pack), "--bundle", str(bundle.folder), "--held-out", "--json",
         "--limit", "50", "--predictions", str(out)],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["data"], report["n"]) == ("train.jsonl, held-out part", 50)
    figures: dict[str, Any] = report["in_process"]
    assert figures["confidence_calibration"]["brier"] < figures["score_calibration"]["brier"]
    for entry in json.loads(out.read_text(encoding="utf-8")):
        expected = calibration.of_score(entry["score"], len(entry["pred"].split()))
        assert math.isclose(entry["confidence"], expected, abs_tol=0.02)


def test_the_plot_is_the_same_svg_each_time(bundle: Bundle, pack: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plots = [tmp_path / "a.svg", tmp_path / "b.svg"]
    for plot in plots:
        result = run("--bundle", bundle.folder, "--data", pack, "--plot", plot)
        assert result.exit_code == 0, result.output
    first, second = (plot.read_text(encoding="utf-8") for plot in plots)
    assert first == second
    assert "<svg" in first
    assert "train.jsonl, held-out part" in first


def test_too_few_answers(bundle: Bundle, tmp_path: Path) -> None:
    few = write_pack(tmp_path / "few.jsonl", 12, writers=1)
    result = run("--bundle", bundle.folder, "--data", few, "--whole")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: A calibration needs at least 20 answers")


def test_help_has_an_example() -> None:
    assert "hmer-bench calibrate --bundle" in run("--help").stdout
