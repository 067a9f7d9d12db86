"""Why a server answers otherwise than the same bundle in process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import pytest

from benchmarks import accuracy_cli
from benchmarks.accuracy import Run
from benchmarks.crohme import Expression
from benchmarks.differences import MOST, Answer, difference, explain
from hmer.bundle import Bundle
from hmer.errors import BlankImage
from hmer.recognizer import Partial, Recognition
from tests.bench_fixtures import Fake, run


def answer(text: str, *scores: float) -> Answer:
    return Answer(tuple(text.split()), scores)


@pytest.mark.parametrize(
    ("server", "local", "at", "why"),
    [
        (answer("x + y", 0.9, 0.5, 0.9), answer("x - y", 0.9, 0.501, 0.9), 1, "a tie, probab"),
        (answer("x + y", 0.9, 0.4, 0.9), answer("x - y", 0.9, 0.6, 0.9), 1, "no tie, probab"),
        (answer("x", 0.9), answer("x + y", 0.9, 0.5, 0.5), 1, "one answer ends where"),
        (answer("x", 0.9), answer("x", 0.9), 1, "equal when asked alone"),
        (answer("x", 0.9), Answer((), (), "blank_image"), 0, "an error on one side"),
        (Answer((), (), "overloaded"), Answer((), (), "blank_image"), 0, "two errors"),
    ],
)
def test_reasons(server: Answer, local: Answer, at: int, why: str) -> None:
    found = difference("a", {"server": server, "in_process": local})
    assert found.at == at
    assert found.why.startswith(why)
    assert found.line().startswith(f"a, token {at + 1}: {why}")
    assert set(found.to_dict()["answers"]) == {"server", "in_process"}


class Streamed:
    """Streams ``text`` with these probabilities."""

    def __init__(self, text: str, *scores: float) -> None:
        self.tokens, self.scores = tuple(text.split()), scores
        self.asked: list[bytes] = []

    def stream(self, data: bytes) -> Iterator[Partial | Recognition]:
        self.asked.append(data)
        if data == b"blank":
            raise BlankImage("Blank.")
        for end in range(1, len(self.tokens) + 1):
            yield Partial(self.tokens[:end], self.scores[:end])
        yield Recognition("", self.tokens, 0.5)

    def __enter__(self) -> Streamed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType
    ) -> None:
        pass


def test_both_decode_once_more() -> None:
    runs = [Run(way, "", [], [], 0.0) for way in ("server", "in_process")]
    server, local = Streamed("x + y", 0.9, 0.41, 0.8), Streamed("x - y", 0.9, 0.412, 0.8)
    pack = [Expression(n, (), n.encode()) for n in "abc"] + [Expression("d", (), b"blank")]
    first, second = explain(runs, [server, local], ["b", "d"], pack)
    assert server.asked == local.asked == [b"b", b"blank"]
    assert (first.id, first.at) == ("b", 1)
    assert "0.4100 and 0.4120: rounding decides" in first.why
    assert second.why == "two errors"
    many = [Expression(str(i), (), b"x") for i in range(MOST + 5)]
    assert len(explain(runs, [server, local], [e.id for e in many], many)) == MOST


def test_the_command_explains(
    fake: Fake, pack: Path, tiny_graphs: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in for a server knows other answers than the tiny network."""

    class Local(Streamed):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__("x - y", 0.9, 0.9, 0.9)

        def recognize_many(self, data: list[bytes], looks: int = 1) -> list[Recognition]:
            return [Recognition("", self.tokens, 0.5) for _ in data]

    monkeypatch.setattr(accuracy_cli, "LocalRecognizer", Local)
    result = run("--data", pack, "--url", fake.url, "--bundle", tiny_graphs.folder, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["agreement"]["equal"] == 0
    told = {one["id"]: one for one in report["differences"]}
    assert set(told) == set("abcd")
    assert told["a"]["at"] == 1
    assert told["d"]["why"] == "an error on one side"
    printed = run("--data", pack, "--url", fake.url, "--bundle", tiny_graphs.folder)
    assert "a, token 2: " in printed.output
