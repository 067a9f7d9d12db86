"""A server's metrics page as ``hmer-bench load`` and ``latency`` read it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import server_metrics
from benchmarks.cli import main
from benchmarks.load import table
from benchmarks.server_metrics import (
    Watched,
    between,
    mean_ms,
    metrics_address,
    read_metrics,
    watching,
)
from hmer.errors import ServerUnavailable
from model_repository.server import EmbeddedServer
from tests.bench_fixtures import Fake

PAGE = """\
# HELP hmer_decode_steps_total calls of the step
# TYPE hmer_decode_steps_total counter
hmer_decode_steps_total{model="decode",version="1"} 10
hmer_decode_steps_total{model="decode",version="2"} 5
# TYPE hmer_decode_slots_in_use gauge
hmer_decode_slots_in_use{model="decode",version="1"} 7
# TYPE hmer_recognize_received_total counter
hmer_recognize_received_total{model="recognize",version="1"} 3
hmer_recognize_received_total{model="recognize_stream",version="1"} 100
# TYPE hmer_decode_queue_seconds_bucket counter
hmer_decode_queue_seconds_bucket{le="+Inf",model="decode",version="1"} 4
# TYPE hmer_decode_queue_seconds_sum counter
hmer_decode_queue_seconds_sum{model="decode",version="1"} 0.5
# TYPE hmer_decode_queue_seconds_count counter
hmer_decode_queue_seconds_count{model="decode",version="1"} 4
"""


class Page:
    """A metrics page; ``asked`` counts how often it was read, ``failing`` makes it an error."""

    def __init__(self) -> None:
        self.text, self.asked, self.failing = PAGE, 0, False
        page = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                page.asked += 1
                self.send_response(500 if page.failing else 200)
                self.end_headers()
                self.wfile.write(page.text.encode())

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}/metrics"


@pytest.fixture
def page() -> Iterator[Page]:
    made = Page()
    thread = threading.Thread(target=made.server.serve_forever, daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


def test_a_page(page: Page) -> None:
    assert read_metrics(page.address) == {
        "hmer_decode_steps": 15.0,  # of both versions
        "hmer_decode_slots_in_use": 7.0,
        "hmer_recognize_received": 3.0,  # not the stream's
        "hmer_decode_queue_seconds_sum": 0.5,
        "hmer_decode_queue_seconds_count": 4.0,
    }
    page.failing = True
    with pytest.raises(ServerUnavailable, match="There are no metrics at"):
        read_metrics(page.address)
    page.failing, page.text = False, "no metrics {"
    with pytest.raises(ServerUnavailable):
        read_metrics(page.address)


def test_addresses() -> None:
    assert metrics_address("localhost:8001") == "http://localhost:8002/metrics"
    assert metrics_address("http://server:8000") == "http://server:8002/metrics"
    assert metrics_address("[::1]:8001") == "http://[::1]:8002/metrics"


def test_differences() -> None:
    grown = between({"a_sum": 1.0, "a_count": 2.0}, {"a_sum": 1.5, "a_count": 4.0, "b": 1.0})
    assert grown == {"a_sum": 0.5, "a_count": 2.0, "b": 1.0}
    assert mean_ms(grown, "a") == 250.0
    assert mean_ms(grown, "c") is None


def test_a_server_is_watched_while_it_works(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_metrics, "_EVERY_S", 0.01)
    monkeypatch.setattr(server_metrics, "PUBLISHED_S", 0.01)

    async def work() -> Watched | None:
        async with watching(page.address) as watched:
            while page.asked < 4:
                await asyncio.sleep(0.01)
            page.failing = True  # too busy to answer: a glance less
            await asyncio.sleep(0.05)
            page.failing = False
            page.text = PAGE.replace("} 10", "} 30").replace("} 0.5", "} 0.9").replace("} 4", "} 8")
        return watched

    watched = asyncio.run(work())
    assert watched is not None
    found = watched.to_dict()
    assert found["glances"] >= 3
    assert found["slots_in_use"] == {"mean": 7.0, "most": 7.0}
    assert found["waiting_for_a_slot"] is None  # this page does not have it
    assert found["queue_ms"] == pytest.approx(100.0)
    assert between(watched.before, watched.after)["hmer_decode_steps"] == 20.0


def test_what_came_before_does_not_count_with_a_level(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_metrics, "PUBLISHED_S", 0.05)

    async def work() -> Watched | None:
        async def publish() -> None:  # a warm-up's counts come late
            page.text = PAGE.replace("} 10", "} 30")

        task = asyncio.create_task(publish())
        async with watching(page.address) as watched:
            await task
        return watched

    watched = asyncio.run(work())
    assert watched is not None
    assert between(watched.before, watched.after)["hmer_decode_steps"] == 0.0
    assert watched.glances == []  # a level this short has none, rather than those of before


def test_nothing_is_watched_without_an_address() -> None:
    async def work() -> Watched | None:
        async with watching(None) as watched:
            return watched

    assert asyncio.run(work()) is None


def test_what_counters_say() -> None:
    counted = {"steps": 4.0, "rows": 10.0, "tokens": 30.0, "wasted": 10.0, "rejected": 2.0}
    after = {f"hmer_decode_{name}": value for name, value in counted.items()}
    found = Watched("", after=after | {"hmer_decode_slots": 16.0}).to_dict()
    assert found["rows_a_step"] == 2.5
    assert found["wasted"] == 0.25
    assert found["refused"] == 2.0
    assert found["slots"] == 16.0


def test_load_with_a_metrics_page(fake: Fake, pack: Path, page: Page) -> None:
    arguments = ("--url", fake.url, "--data", str(pack), "--input", "strokes", "--requests", "4")
    more = ("--metrics-url", page.address, "--concurrency", "1", "--perf-analyzer", "-", "--json")
    result = CliRunner().invoke(main, ["load", *arguments, *more])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["missing"] == {}
    assert report["perf_analyzer"] is None
    assert report["levels"][0]["metrics"]["slots"] is None
    level = report["levels"][0]
    level["metrics"] |= {"slots_in_use": {"mean": 2.5, "most": 4.0}}
    level["metrics"] |= {"waiting_for_a_slot": {"mean": 1.0, "most": 1.0}}
    level["metrics"] |= {"waiting_for_a_worker": {"mean": 0.5, "most": 3.0}}
    shown = table([level]).markdown()
    assert "| 2.5 (<= 4) | - | 1.5 (<= 4) |" in shown


@pytest.mark.e2e
def test_a_real_page(server: EmbeddedServer) -> None:
    """Every name that is looked for is published."""
    found = read_metrics(server.endpoints.metrics)
    assert {*server_metrics.GAUGES.values(), *server_metrics._SIZES.values()} <= set(found)
    names = ("steps", "rows", "tokens", "wasted", "rejected", "queue_seconds_sum")
    assert {f"hmer_decode_{name}" for name in names} <= set(found)
    assert "hmer_recognize_rejected" in found
