"""Requests by their names in the real server's log; and the pad in front of that server."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("starlette", reason="the pad's extra is not installed")

from client import Cancellation, Recognizer, Retry
from client.pad.backend import ServerBackend
from export.config import RepositoryOptions
from hmer.bundle import Bundle
from hmer.errors import HmerError, Overloaded
from hmer.ink import parse_inkml
from hmer.preprocess import decode
from hmer.recognizer import LocalRecognizer
from hmer.serving import JSON
from model_repository.endpoints import Endpoints
from model_repository.repository import open_repository
from model_repository.server import EmbeddedServer
from model_repository.settings import ServerSettings
from tests.browser import DROP, opened, write
from tests.e2e_fixtures import need_embedded, picture, serve, wait_for
from tests.pad_server import serving

pytestmark = pytest.mark.e2e

LONG = 100_000  # tokens: an answer that takes longer than any test waits
SAMPLES = Path(__file__).resolve().parent.parent / "client" / "samples"
SETTINGS = ServerSettings(shared_memory=True, log_requests=JSON)


@pytest.fixture(scope="module")
def running(
    tiny_graphs: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EmbeddedServer]:
    """Few slots, a short queue, answers that may be endless, and a line for every request."""
    need_embedded()
    options = RepositoryOptions(slots=4, max_queue=4, max_tokens=LONG, guards=False)
    folder = tmp_path_factory.mktemp("logged") / "r"
    with serve(tiny_graphs.folder, folder, options, SETTINGS) as server:
        yield server


@pytest.fixture(scope="module")
def endless(tiny_graphs: Bundle) -> bytes:
    """A picture whose answer never ends."""
    with LocalRecognizer(tiny_graphs.folder, threads=1, guards=False) as local:
        return next(p for p in map(picture, range(14)) if len(local.recognize(p).tokens) >= 256)


def parsed(line: str) -> dict[str, Any]:
    return dict(json.loads(line)) if line.startswith("{") else {}


def lines_of(server: EmbeddedServer, **wanted: Any) -> list[dict[str, Any]]:
    """The lines in the log that have these values."""
    lines = map(parsed, server.log.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and wanted.items() <= line.items()]


def logged(server: EmbeddedServer, **wanted: Any) -> dict[str, Any]:
    """The one line with these values; it is written after its answer was sent."""
    deadline = time.monotonic() + 60
    while not (found := lines_of(server, **wanted)):
        assert time.monotonic() < deadline, f"{wanted} is not in the log"
        time.sleep(0.05)
    assert len(found) == 1
    return found[0]


def more_cancelled(
    server: EmbeddedServer,
    before: int,
    pause: Callable[[float], object] = lambda ms: time.sleep(ms / 1e3),
) -> None:
    """Until the log names more than ``before`` cancelled requests."""
    deadline = time.monotonic() + 60
    while len(lines_of(server, result="cancelled")) <= before:
        assert time.monotonic() < deadline, "no request was cancelled"
        pause(50)


@pytest.mark.parametrize("wire", ["grpc", "http"])
def test_every_request_leaves_its_name_in_the_log(
    wire: str, running: EmbeddedServer, endless: bytes
) -> None:
    def name(what: str) -> str:
        return f"{wire}-{what}"

    evil = name('evil\n{"id": "forged"}\x1b[2J')
    with Recognizer(str(getattr(running.endpoints, wire))) as recognizer:
        answer = recognizer.recognize(picture(1), max_tokens=9, request_id=name("unary"))
        list(recognizer.stream(picture(1), max_tokens=9, request_id=name("stream")))
        own = recognizer.recognize(picture(1), max_tokens=3).request_id
        recognizer.recognize(picture(1), max_tokens=3, request_id=evil)
        for what, data, options in (
            ("bad", b"no picture", {}),
            ("late", endless, {"timeout": 1.0}),
            ("refused", picture(1), {"max_tokens": LONG + 1}),
        ):
            with pytest.raises(HmerError) as caught:
                recognizer.recognize(data, request_id=name(what), **options)  # type: ignore[arg-type]
            assert caught.value.request_id == name(what)
    assert answer.request_id == name("unary")
    line = logged(running, id=name("unary"))
    height, width = decode(picture(1)).shape
    assert (line["result"], line["tokens"]) == ("ok", len(answer.tokens))
    assert (line["pictures"], line["bytes"]) == ([[width, height]], len(picture(1)))
    assert line["ms"] >= line["encoder_ms"] + line["decode_ms"] > 0
    line = logged(running, id=name("stream"))
    assert (line["model"], line["first_token_ms"] > 0) == ("recognize_stream", True)
    assert logged(running, id=own)["result"] == "ok"
    assert logged(running, id=evil)["result"] == "ok"
    assert logged(running, id=name("bad"))["result"] == "unreadable_image"
    # Its time began before it was sent: over gRPC the client may be gone before the server's is up.
    ends = {"deadline_exceeded"} | ({"cancelled"} if wire == "grpc" else set())
    assert logged(running, id=name("late"))["result"] in ends
    assert logged(running, id=name("refused"))["result"] == "bad_parameter"
    assert not lines_of(running, id="forged")
    wait_for(running, slots_in_use=0)


def test_what_was_shed_or_cancelled_is_in_the_log(running: EmbeddedServer, endless: bytes) -> None:
    crowd = [Cancellation() for _ in range(40)]

    def ask(number: int) -> HmerError | None:
        with contextlib.suppress(HmerError):
            try:
                recognizer.recognize(
                    endless, request_id=f"crowd-{number}", cancellation=crowd[number]
                )
            except Overloaded as error:
                return error
        return None

    once = Retry(attempts=1)
    with (
        Recognizer(
            running.endpoints.grpc,
            timeout=600,
            retry=once,
        ) as recognizer,
        ThreadPoolExecutor(len(crowd)) as pool,
    ):
        asked = [pool.submit(ask, number) for number in range(len(crowd))]
        wait(asked, return_when=FIRST_COMPLETED)
        time.sleep(0.5)
        for cancellation in crowd:
            cancellation.cancel()
        errors = [future.result() for future in asked]
    shed = [number for number, error in enumerate(errors) if error is not None]
    assert shed
    for number in shed:
        assert logged(running, id=f"crowd-{number}")["result"] == "overloaded"
    more_cancelled(running, 0)  # the metrics may still be those of before the crowd
    wait_for(running, slots_in_use=0)


def test_drawn_on_the_pad_and_read_by_the_server(
    browser: Any, shipped_server: EmbeddedServer
) -> None:
    strokes = parse_inkml((SAMPLES / "pythagoras.inkml").read_bytes()).strokes
    sent: list[bytes] = []
    url = shipped_server.endpoints.grpc
    with serving(ServerBackend(url, timeout=60.0)) as pad:
        for page in opened(browser, pad):
            page.on("request", lambda request: sent.append(request.post_data_buffer))
            write(page, strokes)
            page.locator("#found").wait_for(state="visible")
            page.wait_for_timeout(500)
            shown = page.locator("#latex").input_value()
            assert page.locator("#formula math").count() == 1
    with Recognizer(url) as recognizer:
        assert shown in [recognizer.recognize(data).latex for data in sent if data]
    assert len(shown) > 3


def test_an_outdated_request_of_the_page_is_cancelled(
    browser: Any, running: EmbeddedServer, endless: bytes
) -> None:
    before = len(lines_of(running, result="cancelled"))
    with serving(ServerBackend(running.endpoints.grpc, timeout=600.0)) as pad:
        for page in opened(browser, pad):
            page.evaluate(DROP, [list(endless), "endless.png", "image/png"])
            wait_for(running, slots_in_use=1)
            page.locator("#clear").click()
            more_cancelled(running, before, page.wait_for_timeout)
    wait_for(running, slots_in_use=0)


def test_leaving_the_pad_frees_the_slot(running: EmbeddedServer, endless: bytes) -> None:
    """REST over HTTP/1.1, whose end the pad passes on by gRPC's own cancellation."""
    with serving(ServerBackend(running.endpoints.grpc, timeout=600.0)) as url:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        connection.request("POST", "/v1/recognize", endless, {"X-Request-Id": "leaver"})
        wait_for(running, slots_in_use=1)
        connection.close()
        assert logged(running, id="leaver")["result"] == "cancelled"
    wait_for(running, slots_in_use=0)


def test_shared_memory_is_renewed_when_the_server_restarts(
    tiny_graphs: Bundle, tmp_path: Path
) -> None:
    need_embedded()
    options = RepositoryOptions(slots=2)
    first = serve(tiny_graphs.folder, tmp_path / "r", options, SETTINGS)
    with first:
        wires = [getattr(first.endpoints, wire) for wire in ("grpc", "http")]
        clients = [Recognizer(url, shared_memory=True) for url in wires]
        before = [client.recognize(picture(2), max_tokens=5).tokens for client in clients]
    e = first.endpoints
    ports = Endpoints(e.host, e.http_port, e.grpc_port, e.metrics_port)
    with EmbeddedServer(open_repository(tmp_path / "r"), ports, settings=SETTINGS):
        for client, expected in zip(clients, before, strict=True):
            assert client.recognize(picture(2), max_tokens=5).tokens == expected
            with ThreadPoolExecutor(3) as pool:
                asked = [pool.submit(client.recognize, picture(2), max_tokens=5) for _ in range(6)]
                assert {answer.result().tokens for answer in asked} == {expected}
            client.close()
