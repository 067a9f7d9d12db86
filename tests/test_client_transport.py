"""TLS, headers, cancellation and shared memory, over both wires."""

from __future__ import annotations

import http.server
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest
from tritonclient.grpc import service_pb2_grpc

from client import Cancellation, Recognizer, Retry
from client.access import make_access
from client.retry import Deadline, Retrier
from hmer.errors import (
    BadParameter,
    Cancelled,
    HmerError,
    MissingInput,
    Overloaded,
    ServerError,
    ServerUnavailable,
)
from tests import fake_grpc, fake_http
from tests.client_fixtures import Certificates, Fake, certificates, fake
from tests.fake_server import Asked, Refusal, Script

__all__ = ["certificates", "fake"]
ONCE = Retry(attempts=1)


@contextmanager
def tls_server(wire: str, script: Script, certs: Certificates) -> Iterator[str]:
    """The fake server behind TLS."""
    if wire == "grpc":
        server = grpc.server(ThreadPoolExecutor(4))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(fake_grpc._Grpc(script), server)
        pair = (certs.key.read_bytes(), certs.certificate.read_bytes())
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
        server.start()
        try:
            yield f"grpcs://127.0.0.1:{port}"
        finally:
            server.stop(0).wait()
        return

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass

    web = Server(("127.0.0.1", 0), fake_http._handler(script))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certs.certificate, certs.key)
    web.socket = context.wrap_socket(web.socket, server_side=True)
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"https://127.0.0.1:{web.server_port}"
    finally:
        web.shutdown()
        web.server_close()
        thread.join()


@pytest.mark.parametrize("wire", ["grpc", "http"])
def test_tls(wire: str, certificates: Certificates) -> None:
    with tls_server(wire, Script(), certificates) as url:
        with Recognizer(url, ca=certificates.certificate) as recognizer:
            assert recognizer.recognize(b"ab").latex == "ab"
            assert recognizer.health().ready
        with Recognizer(url, retry=ONCE) as stranger, pytest.raises(ServerUnavailable) as caught:
            stranger.recognize(b"ab", timeout=20)
        assert "not trusted" in str(caught.value) or "TLS" in str(caught.value)


def test_files_of_tls_are_checked_before_anything_is_sent(
    certificates: Certificates, tmp_path: Path
) -> None:
    nonsense = tmp_path / "ca.pem"
    nonsense.write_text("no certificate", encoding="utf-8")
    for scheme in ("grpcs", "https"):
        with pytest.raises(BadParameter, match=r"ca\.pem"):
            Recognizer(f"{scheme}://127.0.0.1:1", ca=nonsense)
        with pytest.raises(MissingInput, match="no file"):
            Recognizer(f"{scheme}://127.0.0.1:1", ca=tmp_path / "none.pem")
        with pytest.raises(BadParameter, match="Give both"):
            Recognizer(f"{scheme}://127.0.0.1:1", key=certificates.key)
    with pytest.raises(BadParameter, match="is not TLS"):
        Recognizer("localhost:1", ca=certificates.certificate)


def test_headers_and_token_go_with_every_request(fake: Fake) -> None:
    fake.script.token = "sesame"
    with Recognizer(fake.url, token="sesame", headers={"X-Team": "algebra"}) as recognizer:
        recognizer.recognize(b"a")
        list(recognizer.stream(b"b"))
        assert recognizer.health().serving
    assert fake.script.asked[0].headers["x-team"] == "algebra"
    with Recognizer(fake.url, token="wrong") as recognizer:
        with pytest.raises(ServerError, match=r"no valid bearer token.*HMER_TOKEN"):
            recognizer.recognize(b"a")
        assert "refused" in str(recognizer.health().error)
    assert len(fake.script.asked) == 2  # nothing was tried again


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("a b", "x"),
        ("", "x"),
        ("x", "a\r\nb: c"),
        ("x", "é"),
        ("Content-Length", "1"),
        ("grpc-x", "1"),
    ],
)
def test_headers_that_cannot_be_sent(name: str, value: str) -> None:
    with pytest.raises(BadParameter, match="header"):
        make_access({name: value})


def test_a_secret_stays_out_of_the_sentence() -> None:
    with pytest.raises(BadParameter) as caught:
        make_access(token="s3cr3t\n")
    assert "s3cr3t" not in str(caught.value)


def test_a_request_can_be_cancelled_from_another_thread(fake: Fake) -> None:
    arrived, release = threading.Event(), threading.Event()

    def hold(asked: Asked) -> None:
        arrived.set()
        release.wait(20.0)

    fake.script.hold = hold
    cancellation = Cancellation()
    caught: list[HmerError] = []

    def ask() -> None:
        try:
            recognizer.recognize(b"slow", cancellation=cancellation)
        except HmerError as error:
            caught.append(error)

    with Recognizer(fake.url) as recognizer:
        thread = threading.Thread(target=ask)
        thread.start()
        assert arrived.wait(20.0)
        cancellation.cancel()
        thread.join(20.0)
        assert [type(error) for error in caught] == [Cancelled]
        with pytest.raises(Cancelled):  # it stays cancelled
            recognizer.recognize(b"b", cancellation=cancellation)
        release.set()
        assert recognizer.recognize(b"c").latex == "c"  # the connection lives on
    assert len(fake.script.asked) == 2


def test_cancelling_ends_the_wait_before_another_attempt() -> None:
    cancellation = Cancellation()
    retrier = Retrier(Retry(attempts=3, first=1000.0, longest=1000.0))

    def full(_: float | None) -> str:
        if cancellation.cancelled:
            raise Cancelled("So be it.")
        threading.Timer(0.05, cancellation.cancel).start()
        raise Overloaded("Full.")

    with pytest.raises(Cancelled):
        retrier.run(full, Deadline(None), "here", cancellation.wait)


def test_leaving_a_stream_ends_it_on_the_server(fake: Fake) -> None:
    fake.script.pause = 0.02
    with Recognizer(fake.url) as recognizer:
        parts = recognizer.stream(b"x" * 2000)
        assert next(parts).tokens == ("x",)
        parts.close()  # type: ignore[attr-defined]
        assert recognizer.recognize(b"a").latex == "a"
    assert fake.script.ended == 0


def test_a_stream_is_tried_again_before_its_first_part_only(fake: Fake) -> None:
    fake.script.busy = [Refusal("UNAVAILABLE", "[overloaded] 9 wait.")] * 2
    with Recognizer(fake.url, retry=Retry(attempts=3, first=0.01)) as recognizer:
        assert [part.latex for part in recognizer.stream(b"ab")] == ["a", "ab", "ab"]
    assert len(fake.script.asked) == 3


def test_an_error_of_a_stream(fake: Fake) -> None:
    fake.script.refusals[b"bad"] = Refusal("INTERNAL", "[bad_ink] No strokes.")
    with Recognizer(fake.url) as recognizer, pytest.raises(HmerError, match="No strokes") as caught:
        list(recognizer.stream(b"bad"))
    assert caught.value.code == "bad_ink"


def test_shared_memory(fake: Fake) -> None:
    with Recognizer(fake.url, shared_memory=True) as recognizer:
        for _ in range(2):
            assert recognizer.recognize(b"ab").latex == "ab"
        large = b"x" * 1_500_000
        assert recognizer.recognize(large).tokens[:2] == ("x", "x")
        assert len(fake.script.regions) == 1  # the small one made room
        assert recognizer.recognize(b"cd").latex == "cd"
    assert all(asked.shared for asked in fake.script.asked)
    assert len({asked.shared for asked in fake.script.asked}) == 2
    assert fake.script.regions == {}


def test_a_server_that_forgot_its_regions_gets_new_ones(fake: Fake) -> None:
    with Recognizer(fake.url, shared_memory=True) as recognizer:
        recognizer.recognize(b"ab")
        before = set(fake.script.regions)
        fake.script.regions.clear()  # it was started again
        assert recognizer.recognize(b"cd").latex == "cd"
        assert len(fake.script.regions) == 1
        assert before.isdisjoint(fake.script.regions)


def test_shared_memory_that_the_server_cannot_see(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise BadParameter("Unable to open shared memory region.")

    with Recognizer(fake.url, shared_memory=True) as recognizer:
        monkeypatch.setattr(recognizer._transport, "register_memory", refuse)
        with pytest.raises(BadParameter, match="one host only"):
            recognizer.recognize(b"ab")
    assert fake.script.asked == []
