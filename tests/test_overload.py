"""``hmer-bench overload``: the open loop, what it makes of the answers, and its verdicts."""

from __future__ import annotations

import asyncio
import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.asking import Reply
from benchmarks.cli import main
from benchmarks.load import Server
from benchmarks.overload import Plan, capacity, figures_of, over_time, phases
from benchmarks.overload_loop import Fate, Sent, fate_of, poisson_loop
from benchmarks.overload_verdicts import lost, verdicts
from benchmarks.overload_watch import thirds
from hmer.errors import (
    BlankImage,
    Cancelled,
    DeadlineExceeded,
    InferenceFailed,
    Overloaded,
    ServerUnavailable,
)
from model_repository.server import EmbeddedServer

SERVICE_S = 0.004


class Full:
    """Answers one request every ``service`` seconds; refuses those that find ``most`` before them.

    Every ``loses``-th that it accepts fails.
    """

    def __init__(self, service: float = SERVICE_S, most: int = 8, loses: int = 0) -> None:
        self.service, self.most, self.loses = service, most, loses
        self.free, self.inside, self.accepted = 0.0, 0, 0

    async def __call__(self, index: int) -> Reply:
        if self.inside >= self.most:
            return Overloaded.until("Full.", 0.1)
        self.inside += 1
        self.accepted += 1
        number = self.accepted
        now = time.perf_counter()
        self.free = max(self.free, now) + self.service
        await asyncio.sleep(self.free - now)
        self.inside -= 1
        if self.loses and number % self.loses == 0:
            return InferenceFailed("The model failed.")
        return (str(index),)


def test_what_a_reply_means() -> None:
    assert fate_of(("x",)) is Fate.ANSWERED
    assert fate_of(()) is Fate.ANSWERED
    assert fate_of(Overloaded("Full.")) is Fate.REFUSED
    assert fate_of(DeadlineExceeded("Late.")) is Fate.LATE
    assert fate_of(BlankImage("Blank.")) is Fate.BAD_INPUT
    for error in (InferenceFailed("x"), ServerUnavailable("x"), Cancelled("x")):
        assert fate_of(error) is Fate.LOST


def test_the_loop_asks_at_random_times_and_waits_for_the_last() -> None:
    asked: list[int] = []

    async def slow(index: int) -> Reply:
        asked.append(index)
        await asyncio.sleep(0.3)
        return ("x",)

    async def other(index: int) -> Reply:
        return Overloaded.until("Full.", 1.0)

    sent = asyncio.run(poisson_loop({"interactive": slow, "batch": other}, 5, 400.0, 0.5))
    assert 120 < len(sent) < 290
    assert [one.due for one in sent] == sorted(one.due for one in sent)
    slow_ones = [one for one in sent if one.priority == "interactive"]
    assert 0.3 < len(slow_ones) / len(sent) < 0.7
    assert all(one.fate is Fate.ANSWERED and one.latency_ms >= 299 for one in slow_ones)
    assert all(one.hint for one in sent if one.priority == "batch")
    assert set(asked) == set(range(5))
    gaps = [b.due - a.due for a, b in pairwise(sent)]
    assert 0.5 / 400 < sum(gaps) / len(gaps) < 2 / 400


def test_it_keeps_no_more_under_way_than_it_may() -> None:
    now = most = 0

    async def stuck(index: int) -> Reply:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.4)
        now -= 1
        return ("x",)

    sent = asyncio.run(poisson_loop({"interactive": stuck}, 1, 300.0, 0.3, most=10))
    assert most == 10
    assert sum(one.fate is Fate.UNSENT for one in sent) == len(sent) - 10


def sent(due: float, took: float, fate: Fate = Fate.ANSWERED, priority: str = "batch") -> Sent:
    return Sent(due, due + 0.001, due + took, priority, fate, fate is Fate.REFUSED, "")


def test_the_figures_of_a_phase() -> None:
    some = [sent(t / 10, 0.1 + t / 1000) for t in range(100)]
    some += [sent(t / 10, 0.003, Fate.REFUSED, "interactive") for t in range(50, 100)]
    found = figures_of(some, 15.0, 10.0)
    assert (found["requests"], found["answered"], found["refused"]) == (150, 100, 50)
    assert found["refused_share"] == pytest.approx(1 / 3)
    assert found["hints"] == 50
    assert found["latency_ms"]["p50"] == pytest.approx(149.5)
    assert found["refusal_ms"]["p99"] == pytest.approx(2.0)
    assert found["late_p99_ms"] == pytest.approx(1.0)
    assert found["priorities"]["interactive"]["answered"] == 0
    series = over_time(some, 10.0, buckets=5)
    assert [one["t"] for one in series] == [1.0, 3.0, 5.0, 7.0, 9.0]
    assert [round(one["refused_share"], 2) for one in series] == [0, 0, 0.33, 0.5, 0.5]
    assert thirds([0, 0, 4, 6, 10, 12]) == (5, 11)
    assert thirds([1, 2, 3]) is None


def run(server: Any, seconds: float = 0.8) -> dict[str, Any]:
    plan = Plan(seconds, capacity=1 / SERVICE_S, priorities=False)
    asks = {"interactive": server, "batch": server}
    return asyncio.run(phases(asks, 3, plan, Server(), lambda text: None, settle_s=0.0))


def judged(report: dict[str, Any]) -> dict[str, bool | None]:
    return {v.name.split(",")[0]: v.met for v in verdicts(report)}


def test_a_server_with_bounds_and_one_without() -> None:
    report = run(Full())
    assert report["usual"]["refused_share"] < 0.2
    assert report["twice"]["refused_share"] > 0.3
    assert lost(report) == 0
    found = judged(report)
    assert found["accepted and lost"]
    assert found["refusals that say when to try again"]
    assert found["slots and queues after it"] is None  # there is no metrics page
    endless = run(Full(most=10**9), 0.5)
    assert endless["twice"]["refused"] == 0
    assert not judged(endless)["p99 of accepted requests"]
    failing = run(Full(loses=20), 0.3)
    assert lost(failing) > 0
    assert not judged(failing)["accepted and lost"]
    assert failing["twice"]["reasons"] == {"The model failed.": failing["twice"]["lost"]}


def test_the_capacity_is_measured() -> None:
    found = asyncio.run(capacity(Full(), 3, 4, 0.2))
    assert 50 < found < 260  # a busy machine oversleeps
    with pytest.raises(InferenceFailed, match="Full"):
        asyncio.run(capacity(Full(most=0), 3, 4, 0.2))


def test_a_queue_that_grows_is_seen() -> None:
    report = run(Full(), 0.3)
    glances = [
        {"t": t, "waiting_for_a_worker": 3.0 * t, "workers_in_use": 4, "pss_mb": 300, "threads": 90}
        for t in range(30)
    ]
    report["twice"]["glances"] = glances
    found = judged(report)
    assert found["requests in the server"] is False
    assert found["memory"] is found["threads"] is True


def test_nothing_is_lost_on_a_real_server(server: EmbeddedServer, tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("out.json", "plot.svg", "server.svg")}
    arguments = ["overload", "--url", server.endpoints.grpc, "--limit", "6", "--json"]
    arguments += ["--metrics-url", server.endpoints.metrics, "--minutes", "0.015"]
    arguments += ["--capacity", "60", "--output", str(files["out.json"])]
    arguments += ["--plot", str(files["plot.svg"]), "--server-plot", str(files["server.svg"])]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads(files["out.json"].read_text(encoding="utf-8"))
    for name in ("usual", "twice", "mixed"):
        phase = report[name]
        assert phase["answered"] + phase["refused"] == phase["requests"] > 20
        assert phase["glances"][0]["pss_mb"] > 10
    assert set(report["mixed"]["priorities"]) == {"interactive", "batch"}
    found = {v["name"]: v["met"] for v in report["verdicts"]}
    assert found["accepted and lost"] is True
    assert found["slots and queues after it"] is True
    assert "minutes since the load began" in files["plot.svg"].read_text(encoding="utf-8")
    assert "PSS, MB" in files["server.svg"].read_text(encoding="utf-8")
