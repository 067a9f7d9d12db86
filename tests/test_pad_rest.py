"""The pad's REST end point against its own OpenAPI description, and with bad input."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import re
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="the pad's extra is not installed")
pytest.importorskip("uvicorn", reason="the pad's extra is not installed")
schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from schemathesis.specs.openapi.checks import positive_data_acceptance  # noqa: E402

from client.inputs import MAX_BYTES  # noqa: E402
from client.local import SHIPPED  # noqa: E402
from client.pad.app import make_app  # noqa: E402
from client.pad.backend import LocalBackend, ServerBackend  # noqa: E402
from client.pad.openapi import description  # noqa: E402
from client.retry import Retry  # noqa: E402
from hmer.errors import (  # noqa: E402
    DeadlineExceeded,
    HmerError,
    InferenceFailed,
    Overloaded,
    ServerUnavailable,
)
from tests.fake_server import Script, grpc_server  # noqa: E402
from tests.pad_server import FakeBackend, serving  # noqa: E402

FEW = settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", make_app(FakeBackend(), ["*"]))
DOT = b'{"strokes": [[[0, 0], [10, 20]]]}'


@SCHEMA.parametrize()  # type: ignore[untyped-decorator]
@FEW
def test_answers_are_as_described(case: Any) -> None:
    # Which bytes are a picture no schema can say, so valid requests may be refused.
    case.call_and_validate(excluded_checks=[positive_data_acceptance])


class Pad:
    """One running pad and its backend."""

    def __init__(self, url: str, backend: FakeBackend) -> None:
        self.backend = backend
        self._at = urlsplit(url).netloc

    def ask(
        self, data: bytes, query: str = "", path: str = "/v1/recognize", **headers: str
    ) -> tuple[int, Any]:
        return ask(self._at, data, query, path, headers)

    def id_of(self, data: bytes, given: str | None = None) -> str:
        """The name of a request in its response."""
        connection = http.client.HTTPConnection(self._at, timeout=30)
        headers = {} if given is None else {"X-Request-Id": given}
        connection.request("POST", "/v1/recognize", data, headers)
        response = connection.getresponse()
        response.read()
        connection.close()
        return response.getheader("X-Request-Id") or ""


def ask(
    at: str, data: bytes | None, query: str = "", path: str = "/v1/recognize",
    headers: dict[str, str] | None = None,
) -> tuple[int, Any]:  # fmt: skip
    connection = http.client.HTTPConnection(at, timeout=30)
    try:
        connection.request("POST" if data is not None else "GET", path + query, data, headers or {})
        response = connection.getresponse()
        body = response.read()
        is_json = (response.getheader("Content-Type") or "").startswith("application/json")
        return response.status, json.loads(body) if is_json else body
    finally:
        connection.close()


@pytest.fixture(scope="module")
def running() -> Iterator[Pad]:
    backend = FakeBackend()
    with serving(backend) as url:
        yield Pad(url, backend)
    assert backend.closed


@pytest.fixture
def pad(running: Pad) -> Iterator[Pad]:
    yield running
    running.backend.error = None
    running.backend.delay = 0.0
    running.backend.asked.clear()
    running.backend.cancelled.clear()


numbers = st.floats(-1e6, 1e6, width=32)
strokes = st.lists(
    st.lists(st.tuples(numbers, numbers), min_size=1, max_size=6), min_size=1, max_size=5
)


@given(strokes)
@FEW
def test_all_ink_is_taken_and_its_attention_is_placed(running: Pad, written: Any) -> None:
    data = json.dumps(written).encode()
    status, document = running.ask(data, "?beam=3&n_best=2&attention=true")
    assert status == 200, document
    left, top, right, bottom = document["attention"]["box"]
    points = np.array([point for stroke in written for point in stroke])
    low, high = points.min(axis=0), points.max(axis=0)
    room = 1e-3 * max(1.0, float(np.abs(points).max()))
    assert left <= low[0] + room
    assert top <= low[1] + room
    assert right >= high[0] - room
    assert bottom >= high[1] - room
    assert len(document["alternatives"]) == 1


def test_an_answer_in_full(pad: Pad) -> None:
    status, document = pad.ask(DOT, "?attention=true")
    assert status == 200
    assert document["latex"] == "x^{1}"
    assert document["mathml"].startswith("<math")
    assert document["confidence"] == 0.75
    assert np.shape(document["attention"]["maps"]) == (5, 2, 3)


def test_parameters_reach_the_recogniser(pad: Pad) -> None:
    pad.ask(DOT, "?beam=4&n_best=2&length_penalty=0.5&max_tokens=9&attention=false")
    assert pad.backend.asked[0][1] == {
        "beam": 4,
        "n_best": 2,
        "length_penalty": 0.5,
        "max_tokens": 9,
        "attention": False,
    }


def test_a_request_has_a_name(pad: Pad) -> None:
    del pad.backend.ids[:]
    assert pad.id_of(DOT, "exam-7") == "exam-7"
    made = [pad.id_of(DOT), pad.id_of(DOT, "with space"), pad.id_of(DOT, "x" * 129)]
    assert all(re.fullmatch("[0-9a-f]{32}", name) for name in made)
    assert pad.backend.ids == ["exam-7", *made]
    assert pad.id_of(b"no picture", "exam-8") == "exam-8"  # of an error, too


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ("beam=0", "1 to 16"),
        ("beam=2.5", "whole"),
        ("beam=nan", "beam"),
        ("beam=٣", "beam"),
        ("length_penalty=inf", "length_penalty"),
        ("attention=1", "true or false"),
        ("n_best=3", "beam's width"),
        ("colour=red", "colour"),
    ],
)
def test_bad_parameters(pad: Pad, query: str, word: str) -> None:
    status, document = pad.ask(DOT, "?" + query.replace("٣", "%D9%A3"))
    assert status == 400
    assert word in document["error"]["message"]
    assert not pad.backend.asked


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((60, 90), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty_input"),
        (b"no picture", "unreadable_image"),
        (png(255), "blank_image"),
        (b"[]", "bad_ink"),
        (b"[[[NaN, 1]]]", "bad_ink"),
        (b'[[["1", "2"]]]', "bad_ink"),
        (b"[[[1e999, 1]]]", "bad_ink"),
        (b"[" * 100_000, "bad_ink"),
        (json.dumps([[[0, 0]] * 200_001]).encode(), "bad_ink"),
        (b"<ink>", "bad_ink"),
    ],
)
def test_bad_input(pad: Pad, data: bytes, code: str) -> None:
    status, document = pad.ask(data)
    assert (status, document["error"]["code"]) == (400, code)
    assert document["error"]["message"].endswith(".")


def test_a_body_without_end_is_refused(pad: Pad) -> None:
    status, document = pad.ask(b"0" * (MAX_BYTES + 1))
    assert (status, document["error"]["code"]) == (413, "image_too_large")
    assert not pad.backend.asked


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ServerUnavailable("Nobody."), 503),
        (Overloaded("Too many."), 503),
        (DeadlineExceeded("Too late."), 504),
        (InferenceFailed("Broken."), 500),
    ],
)
def test_failures_have_a_status_and_a_sentence(pad: Pad, error: HmerError, status: int) -> None:
    pad.backend.error = error
    assert pad.ask(DOT) == (status, {"error": error.to_dict()})


def test_a_bug_shows_no_traceback(pad: Pad, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pad.backend, "recognize", None)
    status, document = pad.ask(DOT)
    assert status == 500
    assert document["error"]["code"] == "inference_failed"


def test_other_paths_methods_and_names(pad: Pad) -> None:
    assert pad.ask(DOT, path="/v2")[0] == 404
    assert pad.ask(DOT, path="/openapi.json")[1]["error"]["code"] == "not_found"
    status, _ = pad.ask(DOT, Host="attacker.example")
    assert status == 400
    assert not pad.backend.asked


def test_who_goes_away_frees_the_recogniser(pad: Pad) -> None:
    pad.backend.delay = 30.0
    connection = http.client.HTTPConnection(pad._at, timeout=30)
    connection.request("POST", "/v1/recognize", DOT)
    until = time.monotonic() + 10
    while not pad.backend.asked and time.monotonic() < until:
        time.sleep(0.01)
    connection.close()
    while not pad.backend.cancelled and time.monotonic() < until:
        time.sleep(0.01)
    assert pad.backend.cancelled == [DOT]


def test_the_description_names_what_is_served() -> None:
    document = description()
    assert set(document["paths"]) == {"/v1/recognize", "/v1/health"}
    assert document["openapi"].startswith("3.1")


def test_through_a_server() -> None:
    script = Script(answers={DOT: r"\frac { a } { b }"}, confidence=0.5)
    with grpc_server(script) as url, serving(ServerBackend(url, timeout=10.0)) as at:
        status, document = ask(urlsplit(at).netloc, DOT, "?attention=true")
        assert status == 200
        assert document["latex"].replace(" ", "") == r"\frac{a}{b}"
        assert len(document["attention"]["maps"]) == 7
        health = ask(urlsplit(at).netloc, None, path="/v1/health")
    assert health == (200, {"ready": True, "detail": health[1]["detail"]})
    assert url in health[1]["detail"]


def test_without_a_server() -> None:
    nobody = ServerBackend("127.0.0.1:9", retry=Retry(attempts=1), timeout=5.0)
    with serving(nobody) as at:
        status, document = ask(urlsplit(at).netloc, DOT)
        assert (status, document["error"]["code"]) == (503, "server_unavailable")
        status, document = ask(urlsplit(at).netloc, None, path="/v1/health")
    assert status == 503
    assert "No server answers" in document["detail"]


def test_in_this_process() -> None:
    data = (SHIPPED.parent.parent / "client" / "samples" / "average.inkml").read_bytes()

    async def both() -> tuple[Any, Any]:
        backend = LocalBackend(threads=1)
        try:
            return (
                await backend.recognize(data, {}),
                await backend.recognize(data, {"attention": True}),
            )
        finally:
            await backend.close()

    plain, traced = asyncio.run(both())
    assert plain.tokens == traced.tokens
    assert plain.attention is None
    assert len(traced.attention.maps) == len(traced.tokens)
    np.testing.assert_allclose(traced.attention.maps.sum(axis=(1, 2)), 1.0, atol=1e-3)
    left, top, right, bottom = traced.attention.box
    assert left < 8.5
    assert top < 8.5
    assert right > left
    assert bottom > top
