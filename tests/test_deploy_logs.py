"""Log lines, server settings, and traces: alone, and on a real server with a fake collector."""

from __future__ import annotations

import http.server
import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from export.config import RepositoryOptions
from hmer.bundle import Bundle
from hmer.errors import BadParameter, HmerError, MissingDependency
from hmer.serving import CACHE_VARIABLE, LOG_VARIABLE, TRACE_VARIABLE
from model_repository import tracing
from model_repository.log_lines import Follower, as_json
from model_repository.server import EmbeddedServer
from model_repository.settings import ServerSettings
from tests.e2e_fixtures import Raw, need_embedded, picture, serve

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


# -- lines


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            'I1123 00:07:48.772424 6970 http_server.cc:362] "Started \\"x\\" at 1.2.3.4:5"',
            {
                "level": "info",
                "source": "http_server.cc:362",
                "message": 'Started "x" at 1.2.3.4:5',
            },
        ),
        (
            "2026-11-23T00:07:48Z E 6970 model_lifecycle.cc:8] failed to load",
            {"level": "error", "time": "2026-11-23T00:07:48Z", "message": "failed to load"},
        ),
        ("| Server | 2.51 |", {"level": "info", "message": "| Server | 2.51 |"}),
        ("{broken", {"message": "{broken"}),
    ],
)
def test_a_line_of_triton_becomes_an_object(line: str, expected: dict[str, str]) -> None:
    found = json.loads(as_json(line))
    assert found["event"] == "triton"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", found["time"])
    assert expected.items() <= found.items()


def test_a_line_of_a_model_stays_as_it_is() -> None:
    line = '{"time":"t","level":"info","event":"request","id":"a"}'
    assert as_json(line) == line


def test_the_log_is_followed_in_whole_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log"
    path.write_text("one\ntw", "utf-8")
    follower = Follower(path, as_lines=True)
    follower.show()
    assert [json.loads(s)["message"] for s in capsys.readouterr().err.splitlines()] == ["one"]
    with path.open("a", encoding="utf-8") as stream:
        stream.write("o\n")
    follower.show()
    assert json.loads(capsys.readouterr().err)["message"] == "two"
    path.write_text("3\n", "utf-8")  # cut off meanwhile
    follower.show()
    assert json.loads(capsys.readouterr().err)["message"] == "3"
    follower.show()
    assert capsys.readouterr().err == ""


# -- settings


def test_closed_and_quiet_by_default() -> None:
    arguments = ServerSettings().arguments()
    assert "--model-control-mode=none" in arguments
    for name in ("http-restricted-api", "grpc-restricted-protocol"):
        (value,) = (a for a in arguments if a.startswith(f"--{name}="))
        assert value.startswith(f"--{name}=trace,logging,shared-memory:hmer-closed=")
        assert len(value.rpartition("=")[2]) == 32  # a value that nobody knows
    assert ServerSettings().arguments() != arguments
    assert not any("forward" in a for a in arguments)
    assert ServerSettings().environment({}) == {CACHE_VARIABLE: "0", LOG_VARIABLE: ""}
    opened = ServerSettings(shared_memory=True, model_control=True).arguments()
    assert "--model-control-mode=explicit" in opened
    assert not any("shared-memory" in a for a in opened)


def test_settings_of_traces_and_logs() -> None:
    settings = ServerSettings(trace_url="http://c/v1/traces", trace_rate=0.25, log_requests="json")
    assert "--grpc-header-forward-pattern=traceparent" in settings.arguments()
    values = settings.environment({})
    assert values[TRACE_VARIABLE] == "http://c/v1/traces"
    assert values["OTEL_TRACES_SAMPLER_ARG"] == "0.25"
    assert values[LOG_VARIABLE] == "json"
    own = settings.environment({"OTEL_TRACES_SAMPLER": "always_on"})
    assert "OTEL_TRACES_SAMPLER" not in own


# -- traces


@dataclass
class Job:
    """What ``tracing`` reads of a request."""

    arrived: float
    request_id: str = "id-1"
    stages: dict[str, float] = field(default_factory=dict)
    first_token_s: float | None = None
    passed_on: dict[str, Any] = field(default_factory=dict)


class Collector:
    """Takes OTLP over HTTP; ``spans`` are those that came, by name."""

    def __init__(self) -> None:
        collector_trace = pytest.importorskip(
            "opentelemetry.proto.collector.trace.v1.trace_service_pb2"
        )
        self.spans: list[Any] = []
        self.services: set[str] = set()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                import gzip

                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                message = collector_trace.ExportTraceServiceRequest.FromString(body)
                for resource in message.resource_spans:
                    for attribute in resource.resource.attributes:
                        if attribute.key == "service.name":
                            outer.services.add(attribute.value.string_value)
                    for scope in resource.scope_spans:
                        outer.spans.extend(scope.spans)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1/traces"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def named(self, name: str) -> list[Any]:
        return [span for span in self.spans if span.name == name]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def attributes(span: Any) -> dict[str, str]:
    return {a.key: a.value.string_value or str(a.value.int_value) for a in span.attributes}


@pytest.fixture
def collector() -> Iterator[Collector]:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    collector = Collector()
    yield collector
    collector.close()


def test_no_collector_no_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracing.open_tracing("recognize", 1, {}) is None
    monkeypatch.setattr(tracing.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"hmer\[tracing\]"):
        tracing.open_tracing("recognize", 1, {TRACE_VARIABLE: "http://localhost:4318"})


def test_spans_of_a_request(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRACE_VARIABLE, collector.url)
    opened = tracing.open_tracing("recognize", 3)
    assert opened is not None
    now = time.monotonic()
    stages = {"preprocess": now - 0.8, "encoder": now - 0.7, "decode": now - 0.4}
    opened.ended(Job(now - 1.0, stages=stages, passed_on={"traceparent": PARENT}), None)
    opened.ended(Job(now - 0.1, "id-2"), BadParameter("No."))
    opened.close()
    assert collector.services == {"hmer"}
    good, bad = collector.named("recognize")
    assert good.trace_id.hex() == PARENT.split("-")[1]
    assert good.parent_span_id.hex() == PARENT.split("-")[2]
    assert attributes(good) == {
        "hmer.model": "recognize",
        "hmer.version": "3",
        "hmer.request_id": "id-1",
        "hmer.outcome": "ok",
    }
    lengths = {}
    for name in ("queue", "preprocess", "encoder", "decode"):
        span = next(s for s in collector.named(name) if s.parent_span_id == good.span_id)
        assert span.trace_id == good.trace_id
        lengths[name] = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
    assert lengths["queue"] == pytest.approx(0.2, abs=1e-3)
    assert lengths["preprocess"] == pytest.approx(0.1, abs=1e-3)
    assert lengths["encoder"] == pytest.approx(0.3, abs=1e-3)
    whole = (good.end_time_unix_nano - good.start_time_unix_nano) / 1e9
    assert sum(lengths.values()) == pytest.approx(whole, abs=1e-3)
    assert attributes(bad)["hmer.outcome"] == "bad_parameter"
    assert bad.status.code == 2  # an error


def test_what_is_not_sampled_is_not_sent(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ServerSettings(trace_url=collector.url, trace_rate=0.0).environment({}).items()
    ):
        monkeypatch.setenv(name, value)
    opened = tracing.open_tracing("recognize", 1)
    assert opened is not None
    opened.ended(Job(time.monotonic()), None)
    opened.ended(Job(time.monotonic(), "asked", passed_on={"traceparent": PARENT}), None)
    opened.close()
    assert {attributes(s)["hmer.request_id"] for s in collector.named("recognize")} == {"asked"}


def test_a_collector_that_is_away_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    monkeypatch.setenv(TRACE_VARIABLE, "http://127.0.0.1:9/v1/traces")
    monkeypatch.setattr(tracing, "EXPORT_TIMEOUT_S", 0.2)
    opened = tracing.open_tracing("recognize", 1)
    assert opened is not None
    opened.ended(Job(time.monotonic()), None)
    began = time.monotonic()
    opened.close()
    assert time.monotonic() - began < 5


# -- on a server


@pytest.mark.e2e
def test_a_server_traces_and_logs(
    tiny_graphs: Bundle, tmp_path: Path, collector: Collector
) -> None:
    need_embedded()
    settings = ServerSettings(trace_url=collector.url, log_requests="json")
    options = RepositoryOptions(slots=4)
    with serve(tiny_graphs.folder, tmp_path / "r", options, settings) as running:
        raw = Raw(running)
        raw.recognize([picture(1)], request_id="mine", headers={"traceparent": PARENT})
        raw.recognize([picture(1)], request_id="other")
        with pytest.raises(HmerError):
            raw.recognize([b"no picture"], request_id="bad")
        check_log(running)
    traced = {attributes(s)["hmer.request_id"]: s for s in collector.named("recognize")}
    assert traced.keys() == {"mine", "other", "bad"}
    assert traced["mine"].trace_id.hex() == PARENT.split("-")[1]
    assert traced["other"].trace_id != traced["mine"].trace_id
    assert attributes(traced["bad"])["hmer.outcome"] == "unreadable_image"
    for name in ("preprocess", "encoder", "decode"):
        parents = [span.parent_span_id for span in collector.named(name)]
        assert traced["mine"].span_id in parents
        assert (traced["bad"].span_id in parents) == (name == "preprocess")


def check_log(running: EmbeddedServer) -> None:
    """Every line becomes an object with the time, the level and the event."""
    until = time.monotonic() + 30
    while True:  # a request's line may come after its answer
        lines = running.log.read_text("utf-8").splitlines()
        found = [json.loads(as_json(line)) for line in lines if line.strip()]
        requests = [one for one in found if one["event"] != "triton"]
        if len(requests) >= 3 or time.monotonic() > until:
            break
        time.sleep(0.1)
    assert all({"time", "level", "event"} <= one.keys() for one in found)
    assert {one["id"] for one in requests} == {"mine", "other", "bad"}
