"""The client's overhead: both ways send and read the same, and are told apart in the figures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import overhead
from benchmarks.cli import main
from benchmarks.overhead import GRPC, HTTP, SHARED, WIRES, Row, check, measure, ours, raw
from benchmarks.overhead_server import ANSWER, http_instant
from client import Recognizer
from hmer.errors import BadParameter, MissingDependency
from tests.client_fixtures import Fake, fake

__all__ = ["fake"]
pytest.importorskip("tritonclient.http", reason="tritonclient's HTTP client is not installed")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "formula.bin"
    path.write_bytes(b"xy")
    return path


def test_both_ways_ask_the_same(picture: Path, fake: Fake) -> None:
    for wire in (HTTP,) if fake.wire == "http" else (GRPC, SHARED):
        answers = []
        for way in (ours, raw):
            with way(wire, fake.url, picture) as send:
                answers.append([str(value) for value in send()])
        first, second = fake.script.asked[-2:]
        assert answers[0][:3] == answers[1][:3] == ["xy", "x y", "0.5"]
        assert first.data == second.data == b"xy"
        assert bool(first.shared) == bool(second.shared) == (wire == SHARED)
        assert len(first.id) == len(second.id) == 32
        assert first.timeout_us > 0 < second.timeout_us


@pytest.mark.parametrize("wire", WIRES)
def test_every_wire_is_measured_to_its_answer(wire: str, picture: Path) -> None:
    row = measure(wire, picture, rounds=2, requests=2)
    assert (row.wire, len(row.ours), len(row.raw)) == (wire, 2, 2)
    assert min(row.ours + row.raw) > 0


def test_the_instant_servers_answer_is_read_whole(picture: Path) -> None:
    with http_instant() as url, Recognizer(url) as recognizer:
        found = [recognizer.recognize(picture) for _ in range(3)]
    assert [answer.latex for answer in found] == [ANSWER["latex"]] * 3
    assert found[0].confidence == ANSWER["confidence"]


def test_a_wrong_answer_is_not_measured(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def wrong(wire: str, url: str, path: Path) -> Iterator[Any]:
        def send() -> Sequence[Any]:
            return [*list(ANSWER.values())[:-1], "[1]"]

        yield send

    check(list(ANSWER.values()))
    monkeypatch.setattr(overhead, "raw", wrong)
    with pytest.raises(BadParameter, match="was read as"):
        measure(HTTP, picture, 1, 1)


def test_figures_are_taken_round_by_round() -> None:
    found = Row(GRPC, (1.0, 3.0, 8.0), (1.0, 2.0, 4.0)).to_dict()
    assert found["ours_ms"]["median"] == 3.0
    assert found["extra_ms"] == {"median": 1.0, "q1": 0.5, "q3": 2.5, "n": 3}
    assert found["ratio"]["median"] == 1.5


def test_the_command(tmp_path: Path) -> None:
    target = tmp_path / "o.json"
    small = ["overhead", "--rounds", "1", "--requests", "1", "--wire", HTTP]
    result = CliRunner().invoke(main, [*small, "--json", "--output", str(target)])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document == json.loads(target.read_text(encoding="utf-8"))
    assert [row["wire"] for row in document["wires"]] == [HTTP]
    assert document["bytes"] > 1000  # a drawn sample
    table = CliRunner().invoke(main, small).stdout
    assert "tritonclient, ms" in table
    assert HTTP in table
    assert GRPC not in table


def test_a_missing_picture_is_a_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["overhead", str(tmp_path / "none.png")])
    assert result.exit_code == 1
    assert "There is no file" in result.stderr


def test_without_tritonclients_http(monkeypatch: pytest.MonkeyPatch, picture: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tritonclient.http", None)
    with pytest.raises(MissingDependency, match="pip install"):
        measure(HTTP, picture, 1, 1)
