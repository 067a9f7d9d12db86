"""``hmer-bench hostile``: its cases, what it takes for a failure, and a real server under it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import hostile, hostile_case, hostile_http, hostile_ink, hostile_pictures
from benchmarks.cli import main
from benchmarks.hostile import GOOD, Attack, Planned, all_kinds, but_for, plan, selected
from benchmarks.hostile_case import GrpcCase, HttpCase
from benchmarks.hostile_report import lines, memory, memory_failures, report_of, table
from benchmarks.hostile_send import ANSWERED, LOST, TIMEOUT, Outcome, _complete, _labelled
from benchmarks.soak_watch import Held
from hmer.bundle import Bundle
from hmer.contract import Sizes
from hmer.errors import BadInk, BadParameter, ServerUnavailable
from hmer.preprocess import decode
from model_repository.server import EmbeddedServer
from tests.fuzz import targets

pytest.importorskip("tritonclient.grpc")

SIZES = Sizes(features=6, attention=5, hidden=7, stride=8)
KINDS = all_kinds(SIZES)
DEAR = ("picture, large", "png, bomb", "ink, a million strokes", "ink, a million points",
        "inkml, wide", "ink, far apart", "request, giant strings", "http, compressed")  # fmt: skip


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_case_is_the_same_each_time(kind: str) -> None:
    for index in range(1 if kind in DEAR else 12):
        first, again = (Planned(kind, index).make(KINDS, 3) for _ in range(2))
        assert first == again
        assert isinstance(first, (GrpcCase, HttpCase))
    if kind not in DEAR:
        assert len({Planned(kind, index).make(KINDS, 4) for index in range(12)}) > 1


@pytest.mark.parametrize("kind", sorted({**hostile_pictures.KINDS, **hostile_ink.KINDS}))
def test_hostile_inputs_give_a_result_or_a_sentence(kind: str) -> None:
    make, _ = {**hostile_pictures.KINDS, **hostile_ink.KINDS}[kind]
    for seed in range(1 if kind in DEAR else 10):
        targets.holds(targets.anything, make(np.random.default_rng([7, seed])), limit_s=20.0)


def test_a_bomb_is_what_it_says() -> None:
    data = hostile_pictures.png_bomb(np.random.default_rng(0))
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    length = int.from_bytes(data[33:37], "big")
    assert len(zlib.decompress(data[41 : 41 + length])) == height * (width + 1)
    assert len(data) < 100_000 < 16_000_000 <= width * height
    for seed in range(8):
        with pytest.raises(BadInk):
            decode(hostile_ink.xml_entities(np.random.default_rng(seed)))


def test_lengths_are_wrong_where_they_should_be() -> None:
    for seed in range(20):
        case = hostile_http.content_lengths(np.random.default_rng(seed))
        assert isinstance(case, HttpCase)
        head, _, body = case.raw.partition(b"\r\n\r\n")
        claimed = head.split(b"Content-Length: ")[1].split(b"\r\n")[0]
        assert claimed != str(len(body)).encode()
        assert not case.waits
    request = hostile_case.Request([hostile_case.input_of(b"abc")]).to_http()
    head, _, body = request.raw.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}\r\n".encode() in head
    assert body.endswith(b"\x03\0\0\0abc")


def test_the_plan_has_every_kind() -> None:
    for cases in (len(KINDS), 150, 2_000):
        chosen = plan(KINDS, cases, 0)
        assert len(chosen) == cases
        assert {planned.kind for planned in chosen} == set(KINDS)
        assert len(set(chosen)) == cases
    assert plan(KINDS, 300, 0) == plan(KINDS, 300, 0) != plan(KINDS, 300, 1)
    assert selected(KINDS, ["png, bomb:7"]) == [Planned("png, bomb", 7)]
    for wrong in ("png, bomb", "png, bomb:x", "nothing at all:1"):
        with pytest.raises(BadParameter, match="KIND:NUMBER"):
            selected(KINDS, [wrong])


def test_a_kind_is_left_out() -> None:
    fewer = but_for(KINDS, ["http, compressed", GOOD])
    assert set(KINDS) - set(fewer) == {"http, compressed", GOOD}
    assert {p.kind for p in plan(fewer, 500, 0)} == set(fewer)
    with pytest.raises(BadParameter, match="'gzip' is no kind; there are: picture"):
        but_for(KINDS, ["gzip"])


# -- what is a failure


class Script:
    """A ``Sender`` that plays outcomes, the last one for ever."""

    def __init__(self, *outcomes: Outcome) -> None:
        self._outcomes = list(outcomes)

    def send(self, case: Any) -> Outcome:
        if len(self._outcomes) > 1:
            return self._outcomes.pop(0)
        return self._outcomes[0]


USUAL = Outcome(ANSWERED, 0.1, answer="x + 1")


def failures_of(outcome: Outcome, kind: str = "png, bomb") -> list[str]:
    attack = Attack(Script(USUAL, outcome, USUAL), KINDS, 0, None, None)  # type: ignore[arg-type]
    attack.run([Planned(kind, 5)], 1, 1)
    return attack.failures


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (Outcome(TIMEOUT, 60.0), "timeout after 60.0 s"),
        (Outcome(LOST, 0.1, "Socket closed"), "lost"),
        (Outcome("inference_failed", 0.1, "KeyError"), "failed instead of refusing"),
        (Outcome("HTTP 500", 0.1, "boom"), "failed instead of refusing"),
        (Outcome("bad_ink", 0.1, "Traceback (most recent call last)"), "traceback"),
    ],
)
def test_harm_is_noticed(outcome: Outcome, said: str) -> None:
    (failure,) = failures_of(outcome)
    assert failure.startswith("png, bomb:5: ")
    assert said in failure


def test_no_harm_is_none() -> None:
    assert not failures_of(Outcome("bad_ink", 0.1, "The ink is bad."))
    assert not failures_of(Outcome("HTTP 500", 0.1, '{"error":"failed to parse the JSON"}'))
    assert not failures_of(Outcome("inference_failed", 0.1, "not finite"), "decode, features")
    assert not failures_of(USUAL, GOOD)


def test_a_good_request_must_get_its_usual_answer() -> None:
    assert "y - 1" in failures_of(Outcome(ANSWERED, 0.1, answer="y - 1"), GOOD)[0]
    attack = Attack(Script(USUAL, Outcome("bad_ink", 0.1), Outcome(ANSWERED, 0.1, answer="y")),
                    KINDS, 0, None, None)  # type: ignore[arg-type]  # fmt: skip
    attack.run([Planned("png, bomb", 5)], 1, 1)
    assert "After 1 cases a good request got answered 'y'" in attack.failures[0]
    with pytest.raises(ServerUnavailable, match="does not answer a good request"):
        Attack(Script(Outcome(LOST, 0.1)), KINDS, 0, None, None)  # type: ignore[arg-type]


def test_a_case_that_found_no_room_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostile.time, "sleep", lambda seconds: None)
    full, refused = Outcome("overloaded", 0.1), Outcome("bad_ink", 0.1)
    attack = Attack(Script(USUAL, full, full, refused, USUAL), KINDS, 0, None, None)  # type: ignore[arg-type]
    attack.run([Planned("png, bomb", 5)], 1, 1)
    assert attack.tallies["png, bomb"].outcomes == {"bad_ink": 1}
    assert attack.sent_again == 2


def test_other_processes_and_held_slots_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    pids = iter([(1, 2), (1, 3)])
    monkeypatch.setattr(hostile, "held", lambda pid: Held({"a": 5.0}, 1, 1, 0.0, next(pids)))
    monkeypatch.setattr(hostile, "_SETTLE_S", 0.0)
    monkeypatch.setattr(hostile, "read_metrics", lambda page: {"hmer_decode_slots_in_use": 1.0})
    attack = Attack(Script(USUAL), KINDS, 0, "page", 1)  # type: ignore[arg-type]
    attack.run([Planned("nothing", 0), Planned("nothing", 1)], 1, 1)
    said = " ".join(attack.failures)
    assert "hmer_decode_slots_in_use" in said
    assert "processes are other ones: (1, 2) became (1, 3)" in said


def samples(*figures: float, fds: int = 10) -> list[tuple[int, Held]]:
    return [
        (200 * i, Held({"decode": mb}, fds * (i + 1) if fds > 10 else fds, 5, 3.0, (1,)))
        for i, mb in enumerate(figures)
    ]


def test_memory_that_stays_is_a_failure() -> None:
    flat = memory(samples(400, 420, 410, 405, 415, 400, 411))
    assert flat is not None
    assert not memory_failures(flat)
    grown = memory(samples(400, 420, 440, 480, 500, 520, 560))
    assert "from 420 to 520 MB" in memory_failures(grown)[0]
    assert grown is not None
    assert grown["mb_per_1000_cases"] == pytest.approx(130, rel=0.1)
    assert "File descriptors" in memory_failures(memory(samples(*[400] * 7, fds=20)))[0]
    assert memory(samples(400)) is None


def test_answers_over_http_are_read() -> None:
    head = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 33\r\n\r\n"
    body = b'{"error":"[bad_ink] Nothing. "  }'
    assert not _complete(bytearray(head + body[:-1]))
    assert _complete(bytearray(head + body))
    assert _complete(bytearray(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"))
    found = _labelled(head + body)
    assert found is not None
    assert found.label == "bad_ink"
    good = {"outputs": [{"name": "tokens", "data": ["x + 1"]}]}
    answered = _labelled(b"HTTP/1.1 200 OK\r\n\r\n" + json.dumps(good).encode())
    assert answered is not None
    assert (answered.label, answered.answer) == (ANSWERED, "x + 1")
    assert _labelled(b"") is None


def test_the_report() -> None:
    attack = Attack(Script(USUAL, Outcome("bad_ink", 2.5), USUAL), KINDS, 0, None, None)  # type: ignore[arg-type]
    attack.run([Planned("nothing", 0)], 1, 1)
    report = report_of(attack, 1, 0, 1.5)
    assert report["kinds"]["nothing"]["refused"] == {"bad_ink": 1}
    assert report["failures"] == []
    text = table(attack).text()
    assert "2.50" in text
    assert "nothing" in text
    assert "Nothing crashed" in "\n".join(lines(report))


# -- a real server


@pytest.fixture
def untouched(server: EmbeddedServer) -> Iterator[EmbeddedServer]:
    """The shared server, the same processes afterwards."""
    before = server.pid
    yield server
    assert server.pid == before


@pytest.mark.e2e
def test_a_real_server_takes_no_harm(untouched: EmbeddedServer, tiny_graphs: Bundle) -> None:
    ends = untouched.endpoints
    options = ["--url", ends.grpc, "--http-url", ends.http, "--metrics-url", ends.metrics]
    options += ["--bundle", str(tiny_graphs.folder), "--cases", "150", "--every", "75"]
    run = CliRunner().invoke(
        main, ["hostile", *options, "--warm-up", "0", "--rest", "0.1", "--json"]
    )
    report = json.loads(run.stdout)
    assert report["failures"] == []
    assert run.exit_code == 0, run.output
    assert sum(report["outcomes"].values()) == 150
    assert report["kinds"]["inkml, entities"]["refused"].keys() == {"bad_ink"}
    assert report["memory"]["samples"] == 5
