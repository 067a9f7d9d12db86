"""``hmer-bench load``, and the loops and figures under it."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from benchmarks import load as load_module
from benchmarks.asking import Reply
from benchmarks.cli import main
from benchmarks.crohme import Expression
from benchmarks.figures import percentiles, ratios, spread
from benchmarks.inputs import PNG, gather, numbers, shortest, shuffled
from benchmarks.load import CLOSED, OPEN, Level, figures_of, too_much
from benchmarks.loops import Run, Sample, closed_loop, open_loop, poisson, probe_loop
from benchmarks.process_tree import listener, usage
from hmer.errors import BadParameter, BlankImage, MissingInput, Overloaded
from hmer.ink import render
from hmer.preprocess import decode
from tests.bench_fixtures import Fake
from tests.fake_server import SERVERS, Refusal, Script


def load(*arguments: str | int | Path) -> Result:
    return CliRunner().invoke(main, ["load", *map(str, arguments)])


class Server:
    """Answers with the input's index; notes how many are under way, and when."""

    def __init__(self, errors: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        self.errors, self.now, self.most = errors, 0, 0
        self.asked: list[int] = []
        self.levels: list[int] = []

    async def __call__(self, index: int) -> Reply:
        self.now += 1
        self.asked.append(index)
        self.levels.append(self.now)
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.001)
        self.now -= 1
        return Overloaded("Full.") if index in self.errors else (str(index),)


def test_a_closed_loop_is_full_and_counts_every_input_once() -> None:
    server = Server()
    run = asyncio.run(closed_loop(server, range(20), 4))
    assert server.most == 4
    assert sorted(sample.index for sample in run.samples) == list(range(20))
    first = server.asked.index(0)
    assert first == 4  # so many fill the loop before it
    assert set(server.levels[first:]) == {4}  # and others keep it full until the end
    assert run.throughput == run.finished / run.seconds
    assert run.finished >= 20 - 4  # the first counted ones are sent before the window's first end


def test_one_at_a_time_needs_no_filling() -> None:
    server = Server()
    run = asyncio.run(closed_loop(server, [3, 1, 2], 1))
    assert server.asked == [3, 1, 2]
    assert run.finished == 3


def test_errors_are_no_throughput() -> None:
    run = asyncio.run(closed_loop(Server(errors={0, 1, 2}), range(4), 1))
    assert run.finished == 1
    assert [sample.tokens for sample in run.samples] == [None, None, None, ("3",)]


def test_an_open_loop_counts_from_when_a_request_was_due() -> None:
    async def ask(index: int) -> Reply:
        if index == 0:
            time.sleep(0.08)  # a stall that delays the sending of the second, too
        return ()

    first, second = asyncio.run(open_loop(ask, [0, 1], [0.0, 0.01])).samples
    assert second.due - first.due == pytest.approx(0.01)
    assert second.sent - second.due > 0.04
    assert second.latency > 0.04 > second.done - second.sent


def test_an_open_loop_does_not_wait_for_answers() -> None:
    server = Server()
    run = asyncio.run(open_loop(server, range(30), [0.0] * 30))
    assert server.most == 30
    assert run.finished == 30


def test_probes_go_one_at_a_time_beside_others() -> None:
    server = Server()
    samples = asyncio.run(probe_loop(server, [7], [1, 2], 5, 3))
    assert [sample.index for sample in samples] == [7, 7, 7]
    assert server.asked.count(7) == 4  # the first one does not count
    assert server.most == 5
    assert set(server.asked) == {1, 2, 7}


def test_poisson_arrivals() -> None:
    times = poisson(50.0, 4000)
    assert times[0] == 0.0
    assert times == sorted(times) == poisson(50.0, 4000)
    assert times[-1] / 4000 == pytest.approx(1 / 50, rel=0.1)


def test_percentiles_and_spread() -> None:
    assert percentiles([]) == {"p50": None, "p90": None, "p95": None, "p99": None}
    assert percentiles(list(range(101)))["p95"] == 95
    seen = spread([4.0, None, 1.0, 2.0])
    assert seen is not None
    assert (seen.median, seen.low, seen.high, seen.n) == (2.0, 1.5, 3.0, 3)
    assert spread([None]) is None
    assert seen.text(1) == "2.0 (1.5 to 3.0)"
    assert ratios([6.0, None, 1.0], [3.0, 1.0, 0.0]) == [2.0, None, None]


def expressions(*truths: str) -> list[Expression]:
    return [Expression(t, tuple(t.split()), t.encode()) for t in truths]


def test_figures_of_a_level() -> None:
    def sample(index: int, reply: Reply, ms: float) -> Sample:
        return Sample(index, 0.0, 0.001, ms / 1e3, reply)

    run = Run(
        [
            sample(0, ("x",), 10.0),
            sample(0, ("y",), 30.0),
            sample(1, Overloaded("Full."), 1.0),
            sample(1, BlankImage("Blank."), 1.0),
        ],
        2,
        0.5,
    )
    found = figures_of(run, expressions("x", "y z"))
    assert found["throughput"] == 4.0
    assert found["latency_ms"]["p50"] == pytest.approx(20.0)
    assert found["errors"] == {"overloaded": 1, "blank_image": 1}
    assert found["rejected"] == 1
    assert found["unstable"] == ["x"]
    assert found["exprate"] == 0.25  # an answer that is missing is wrong
    assert found["by_length_ms"]["1-5"]["n"] == 2
    assert found["late_p99_ms"] == pytest.approx(1.0)


def test_inputs(pack: Path) -> None:
    strokes = gather(pack, "strokes")
    drawn = gather(pack, PNG)
    assert [e.id for e in drawn] == ["a", "b", "c", "d"]
    document: dict[str, Any] = json.loads(strokes[0].data)
    from hmer.ink import parse_strokes

    expected = render(parse_strokes(json.dumps(document).encode()).strokes)
    assert (decode(drawn[0].data) == expected).all()  # nothing is lost on the way
    assert [e.id for e in gather(pack, PNG, 2)] == ["a", "c"]
    samples = gather(None)
    assert all(not e.data.startswith(b"<") and e.truth for e in samples)
    assert sorted(shuffled(9)) == list(range(9))
    assert shuffled(9) == shuffled(9) != list(range(9))
    assert shortest(expressions("a b c d", "a", "a b c"), 3) == [1, 2]
    assert shortest(expressions("a b c d", "a b c d e"), 3) == [0]
    with pytest.raises(MissingInput):
        gather(pack.parent / "nothing.jsonl")


@pytest.mark.parametrize("text", ["", "0", "1,x", "-4"])
def test_bad_numbers(text: str) -> None:
    with pytest.raises(BadParameter, match="--rate is"):
        numbers(text, "--rate")


@contextmanager
def scripted(script: Script) -> Iterator[str]:
    with SERVERS["grpc"](script) as url:
        yield url


def test_load_of_a_server(fake: Fake, pack: Path, tmp_path: Path) -> None:
    output = tmp_path / "load.json"
    result = load(
        *("--url", fake.url, "--data", pack, "--input", "strokes", "--requests", 8),
        *("--concurrency", "1,2", "--rate", 200, "--output", output, "--json"),
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert json.loads(output.read_text(encoding="utf-8")) == report
    assert report["benchmark"] == "load"
    assert report["machine"]["versions"]["hmer"]
    levels = report["levels"]
    assert [(level["kind"], level["level"]) for level in levels] == [
        ("closed", 1.0),
        ("closed", 2.0),
        ("open", 200.0),
    ]
    for level in levels:
        assert level["requests"] == 8
        assert level["errors"] == {"blank_image": 2}
        assert level["rejected"] == 0
        assert level["exprate"] == 0.5  # of a, b, c, d: two are right
        assert level["throughput"] > 0
        assert level["server"]["pss_mb"] > 0  # the server is this very process
        assert level["bad_input"] == 2
        assert "metrics" not in level
    assert "There are no metrics at" in report["missing"]["slots in use, waiting"]
    assert not report["levels"][0]["unstable"]


def test_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = {"kind": CLOSED, "level": 8.0, "requests": 10, "errors": {"blank_image": 9}}
    bad |= {"bad_input": 9}
    assert too_much(Level(CLOSED, 16), [bad], False) == ""  # the pictures' fault
    full = bad | {"errors": {"overloaded": 6}, "bad_input": 0}
    assert "6 of 10 requests failed already" in too_much(Level(CLOSED, 16), [full], False)
    assert too_much(Level(CLOSED, 4), [full], False) == ""
    assert too_much(Level(OPEN, 16), [full], False) == ""
    monkeypatch.setattr(load_module, "available_mb", lambda: 100.0)
    assert too_much(Level(CLOSED, 4), [], False) == ""
    assert "only 100 MB of memory left" in too_much(Level(CLOSED, 4), [], True)


def test_load_counts_what_a_full_server_refuses(pack: Path) -> None:
    full = Refusal("UNAVAILABLE", "[overloaded] Too many requests.")
    script = Script(busy=[full] * 100)
    with scripted(script) as url:
        result = load(
            *("--url", url, "--data", pack, "--input", "strokes", "--requests", 6),
            *("--concurrency", "2,4", "--json"),
        )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    (level,) = report["levels"]  # and a higher one is not tried
    assert report["missing"]["4 at once"] == (
        "skipped: at 2 at once 6 of 6 requests failed already"
    )
    assert level["rejected"] == 6
    assert level["throughput"] == 0
    assert level["latency_ms"]["p50"] is None


def test_a_table_for_people(fake: Fake, pack: Path) -> None:
    result = load("--url", fake.url, "--data", pack, "--input", "strokes", "--concurrency", 1)
    assert result.exit_code == 0, result.output
    assert "1 at once" in result.output
    assert "50.00" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--url", "localhost:1"), "error: No server answers at localhost:1"),
        (("--url", "http://localhost:1"), "Give the gRPC address"),
        (("--concurrency", "four"), "--concurrency is 'four'"),
        (("--data", "nowhere.jsonl.gz"), "There is no file nowhere.jsonl.gz"),
        (("--output", "/nowhere/at/all.json"), "there is no such folder"),
        (("--perf-analyzer", "nowhere/perf_analyzer"), "There is no perf_analyzer at nowhere"),
        (("--metrics-url", "http://localhost:1/metrics"), "There are no metrics at"),
    ],
)
def test_sentences(arguments: tuple[str, ...], said: str) -> None:
    result = load(*arguments)
    assert result.exit_code == 1
    assert said in result.stderr
    assert "Traceback" not in result.output


def test_the_process_behind_a_port() -> None:
    with scripted(Script()) as url:
        host, _, port = url.partition(":")
        assert listener(host, int(port)) == os.getpid()
    assert listener("192.0.2.1", 1) is None
    found = usage(os.getpid())
    assert found.cpu_s > 0
    assert found.total_mb == pytest.approx(sum(found.pss_mb.values()))
