"""``hmer-bench accuracy``: the forms of its report, and searches with beams."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import benchmarks.accuracy_cli
from benchmarks.cli import main
from hmer.bundle import Bundle
from hmer.recognizer import Alternative, Recognition
from tests.bench_fixtures import Fake, run


def test_the_markdown_is_the_same_report(fake: Fake, pack: Path) -> None:
    text = run("--data", pack, "--url", fake.url, "--markdown").stdout
    assert "| all | 4 | 50.00 | 15.0-85.0 | 75.00 | 75.00 | 75.00 | 12.50 |" in text
    assert "| `b` | `6` | 1 | 1 | 1 | look-alike |" in text


def test_the_page(fake: Fake, pack: Path, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    out = tmp_path / "page.html"
    result = run("--data", pack, "--url", fake.url, "--html", out, "--worst", "1")
    assert result.exit_code == 0, result.output
    page = out.read_text(encoding="utf-8")
    assert "The 1 worst of 2 wrong answers" in page
    assert "label set norm" in page
    result = run("--data", pack, "--url", fake.url, "--html", tmp_path / "no" / "page.html")
    assert result.exit_code == 1
    assert "The page cannot be written" in result.stderr


def test_predictions_score_the_same_again(fake: Fake, pack: Path, tmp_path: Path) -> None:
    out = tmp_path / "predictions.json"
    first = json.loads(
        run("--data", pack, "--url", fake.url, "--json", "--predictions", out).stdout
    )["server"]
    for more in ((), ("--data", str(pack))):
        result = CliRunner().invoke(main, ["rescore", str(out), "--json", *more])
        again = json.loads(result.stdout)
        for key in set(first) - {"where", "wall_s", "errors"}:
            assert again[key] == first[key], key


@dataclass
class Beams:
    """Stands in for ``LocalRecognizer``: notes its options, and has three answers to all."""

    bundle: Path
    options: dict[str, Any]

    def recognize_many(self, inputs: list[bytes], looks: int) -> list[Recognition]:
        self.looks = looks
        others = (Alternative("7", ("7",), 0.2), Alternative("x", ("x",), 0.1))
        return [Recognition("x+y", ("x", "+", "y"), 0.5, others) for _ in inputs]

    def __enter__(self) -> Beams:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def test_beam_search_is_asked_for_and_reported(
    pack: Path, tiny_graphs: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Beams] = []

    def opened(bundle: Path, **options: Any) -> Beams:
        made.append(Beams(bundle, options))
        return made[0]

    monkeypatch.setattr(benchmarks.accuracy_cli, "LocalRecognizer", opened)
    out = tmp_path / "predictions.json"
    result = run(
        "--data", pack, "--bundle", tiny_graphs.folder, "--beam", "4", "--n-best", "3",
        "--length-penalty", "0.8", "--looks", "2", "--json", "--predictions", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    asked = {name: made[0].options[name] for name in ("beam", "n_best", "length_penalty")}
    assert asked == {"beam": 4, "n_best": 3, "length_penalty": 0.8}
    report = json.loads(result.stdout)
    assert made[0].looks == 2
    assert report["decoding"] == "beam 4, length penalty 0.8, 2 looks"
    oracle = report["in_process"]["oracle"]  # x+y is right on a, 7 on d
    assert {n: part["correct"] for n, part in oracle.items()} == {"1": 1, "2": 2, "3": 2}
    entry = json.loads(out.read_text(encoding="utf-8"))[0]
    assert [other["pred"] for other in entry["n_best"]] == ["x + y", "7", "x"]
    result = run("--data", pack, "--bundle", tiny_graphs.folder, "--n-best", "3")
    assert result.exit_code == 1
    assert "n_best" in result.stderr
