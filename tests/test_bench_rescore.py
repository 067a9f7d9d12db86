"""``hmer-bench rescore``: predictions from elsewhere, in the forms that people write."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from benchmarks.cli import main
from benchmarks.foreign import read_predictions
from hmer.errors import DatasetError, MissingInput

X2 = ("x", "^", "{", "2", "}")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["rescore", *map(str, arguments)])


def written(folder: Path, content: Any, name: str = "predictions.json") -> Path:
    path = folder / name
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    path = tmp_path / "test_x.jsonl.gz"
    zigzag = [[[0, 0], [40, 60], [80, 0]], [[0, 30], [80, 35]]]
    labels = {"a": "x + y", "b": "x ^ { 2 }", "c": "7"}
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        for name, label in labels.items():
            stream.write(json.dumps({"id": name, "norm": label, "strokes": zigzag}) + "\n")
    return path


@pytest.mark.parametrize(
    "content",
    [
        [{"id": "b", "gt": "x ^ 2", "pred": "x ^ { 2 }"}],
        [{"img_id": "b", "truth": "x^2", "prediction": "x^{2}"}],
        [{"id": "b", "gt": ["x", "^", "2"], "pred": ["x", "^", "{", "2", "}"]}],
        {"b": {"gt": "x^2", "pred": "x^{2}"}},
        '{"id": "b", "gt": "x^2", "pred": "x^{2}"}\n\n',
        "b\tx ^ 2\tx ^ { 2 }\n",
        "id\tpred\tgt\nb\tx ^ { 2 }\tx ^ 2\n",
        "\ufeffid\tgt\tpred\nb\tx^2\tx^{2}\n",
    ],
)
def test_forms_with_a_truth(tmp_path: Path, content: Any) -> None:
    (entry,) = read_predictions(written(tmp_path, content))
    assert (entry.id, entry.prediction, entry.truth) == ("b", X2, ("x", "^", "2"))
    report = json.loads(run(tmp_path / "predictions.json", "--json").stdout)
    assert (report["n"], report["correct"]) == (1, 1)
    assert (report["label_set"], report["decoding"]) == ("not told", "not told")


@pytest.mark.parametrize(
    "content",
    [
        {"a": "x + y", "b": "x ^ 2"},
        {"b.inkml": "x ^ 2", "folder/a.png": "x+y"},
        '{"id": "a", "pred": "x+y"}\n{"id": "b", "pred": "x^2"}\n',
        "b\tx ^ 2\na\tx + y\n",
        "image\tpred\na\tx + y\nb\tx ^ 2\n",
    ],
)
def test_forms_that_need_the_packs_truths(tmp_path: Path, pack: Path, content: Any) -> None:
    file = written(tmp_path, content)
    result = run(file, "--data", pack, "--json")
    report = json.loads(result.stdout)
    assert (report["n"], report["correct"], report["missing"]) == (3, 2, 1)
    assert report["label_set"] == "norm"
    text = run(file, "--data", pack).stdout
    assert "1 of 3 expressions of the pack have no prediction" in text
    result = run(file)
    assert result.exit_code == 1
    assert "there is no truth ('gt')" in result.stderr


def test_json_lines_and_gzip(tmp_path: Path) -> None:
    lines = '{"id": "a", "gt": "x", "pred": "x"}\n{"id": "b", "gt": "y", "pred": null}\n'
    path = tmp_path / "p.jsonl.gz"
    path.write_bytes(gzip.compress(lines.encode()))
    report = json.loads(run(path, "--json").stdout)
    assert (report["n"], report["correct"], report["missing"]) == (2, 1, 1)


def test_scores_and_n_best_are_used(tmp_path: Path) -> None:
    entries = [
        {"id": "a", "gt": "x", "pred": "y", "score": 0.5, "n_best": ["y", {"pred": "x"}]},
        {"id": "b", "gt": "x", "pred": "x", "score": 0.9, "n_best": ["x"]},
        {"id": "c", "gt": "x", "pred": "x", "score": -3.2},  # no probability: not used
    ]
    report = json.loads(run(written(tmp_path, entries), "--json").stdout)
    assert {n: part["correct"] for n, part in report["oracle"].items()} == {"1": 1, "2": 2}
    assert report["score_calibration"]["n"] == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"id": "a", "gt": "x", "pred": "x"}, {"id": "b", "gt": "x"}],
         "predictions.json, entry 2: no prediction ('pred')"),
        ([{"id": "a", "gt": "x", "pred": 7}], "entry 1: a int where a string of tokens"),
        ([{"id": "a", "gt": "x", "pred": "x"}, "x"], "entry 2: a str where an object"),
        ([{"id": "a", "gt": "x", "pred": "x"}] * 2, "entry 2: the id 'a' was there before, in en"),
        ([{"id": "a", "gt": "x", "pred": "x", "score": "high"}], "entry 1: could not convert"),
        ([{"id": "a", "gt": "", "pred": "x"}], "entry 1: there is no truth"),
        ([], "holds no predictions"),
        ("", "is empty"),
        ('[{"id": "a", "gt": "x"', "is not JSON"),
        ('{"id": "a", "gt": "x", "pred": "x"}\n{"id": \n', "line 2: not JSON"),
        ("a\tx\nb\n", "line 2: 1 columns where 2 were expected (id, pred)"),
        ("a\tx\nb\ty\nb\ty\n", "line 3: the id 'b' was there before, in line 2"),
        ("a\tb\tc\td\n", "line 1: 4 columns"),
    ],
)  # fmt: skip
def test_errors_name_file_and_entry(tmp_path: Path, content: Any, message: str) -> None:
    result = run(written(tmp_path, content), "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    assert message in result.stderr


def test_another_packs_predictions_are_refused(tmp_path: Path, pack: Path) -> None:
    file = written(tmp_path, "a\tx\nnosuch\ty\n", "p.tsv")
    result = run(file, "--data", pack)
    assert result.exit_code == 1
    assert "p.tsv, line 2: the pack has no expression 'nosuch'" in result.stderr
    twice = written(tmp_path, "a\tx\na.inkml\ty\n", "q.tsv")
    assert "'a' was there before, in line 1" in run(twice, "--data", pack).stderr


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingInput):
        read_predictions(tmp_path / "none.json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00x")
    with pytest.raises(DatasetError, match="cannot be read"):
        read_predictions(tmp_path / "binary")


def test_help_has_an_example() -> None:
    assert "hmer-bench rescore predictions.json" in run("--help").stdout
