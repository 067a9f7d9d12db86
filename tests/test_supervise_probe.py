"""What the probe of --supervise takes for an answer, at a stand-in for the server."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from model_repository.probe import Probe

METRICS = """
hmer_decode_steps_total{{model="decode",version="1"}} {steps}
hmer_recognize_completed_total{{model="recognize",version="1"}} {recognize}
hmer_recognize_completed_total{{model="recognize_stream",version="1"}} {stream}
"""
GOOD = '{"outputs": []}'


@dataclass
class Script:
    """What the stand-in answers, and what it was asked."""

    answers: dict[str, tuple[int, str, float]] = field(default_factory=dict)  # by model
    counts: dict[str, float] = field(
        default_factory=lambda: {"steps": 0.0, "recognize": 0.0, "stream": 0.0}
    )
    growing: tuple[str, ...] = ()
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


@pytest.fixture
def script() -> Iterator[Script]:
    found = Script()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            for name in found.growing:
                found.counts[name] += 1
            self._send(200, METRICS.format(**found.counts))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            model = self.path.split("/")[3]
            found.asked.append((model, body))
            status, text, pause = found.answers.get(model, (200, GOOD, 0.0))
            time.sleep(pause)
            self._send(status, text)

        def _send(self, status: int, text: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            with contextlib.suppress(OSError):  # the probe does not wait for ever
                self.wfile.write(text.encode("utf-8"))

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        found.port = server.server_address[1]  # type: ignore[attr-defined]
        yield found
        server.shutdown()


def probe(script: Script, looks: int = 4, timeout: float = 5.0) -> Probe:
    """A probe that had time for some ``looks``, or found a fault."""
    script.asked.clear()
    port = script.port  # type: ignore[attr-defined]
    server = SimpleNamespace(
        endpoints=SimpleNamespace(client_host="127.0.0.1", http_port=port, metrics_port=port),
        repository=SimpleNamespace(models=("decode", "recognize", "recognize_stream")),
    )
    with Probe(cast(Any, server), every=0.01, timeout=timeout) as made:
        end = time.monotonic() + 10
        while made.fault is None and len(script.asked) < 2 * looks and time.monotonic() < end:
            if script.growing and time.monotonic() > end - 9.5:
                break
            time.sleep(0.01)
    return made


def test_an_idle_server_is_asked_and_left_alone(script: Script) -> None:
    assert probe(script).fault is None
    assert {model for model, _ in script.asked} == {"recognize", "recognize_stream"}
    asked = [body for model, body in script.asked if model == "recognize"]
    assert len({json.dumps(body) for body in asked}) == len(asked)  # no cache answers for it
    assert asked[0]["parameters"]["max_tokens"] == 1


def test_a_front_that_answers_others_is_not_asked(script: Script) -> None:
    script.growing = ("recognize",)
    assert probe(script).fault is None
    assert {model for model, _ in script.asked} == {"recognize_stream"}


def test_bad_answers(script: Script) -> None:
    for text in ("[server_unavailable] The worker of decode is not healthy.", "Internal"):
        script.answers["recognize"] = (500, text, 0.0)
        fault = probe(script).fault
        assert fault is not None
        assert (fault.kind, fault.model) == ("no_answer", "recognize")
        assert text.partition("] ")[2] in fault.sentence


def test_an_error_of_the_model_is_an_answer(script: Script) -> None:
    script.answers["recognize"] = (400, "[blank_image] There is nothing in it.", 0.0)
    assert probe(script).fault is None


def test_no_answer_in_time(script: Script) -> None:
    script.answers["recognize_stream"] = (200, GOOD, 3.0)
    fault = probe(script, timeout=0.2).fault
    assert fault is not None
    assert "recognize_stream does not answer any more" in fault.sentence


def test_a_full_queue_counts_only_if_nothing_is_decoded(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_repository.probe.PUBLISHED_S", 0.05)
    for name in ("recognize", "recognize_stream"):
        script.answers[name] = (503, '{"error": "[overloaded] 256 requests wait."}', 0.0)
    script.growing = ("steps",)
    assert probe(script).fault is None
    assert script.asked
    script.growing = ()
    fault = probe(script).fault
    assert fault is not None
    assert "the decoder took no step" in fault.sentence
