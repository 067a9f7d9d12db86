"""The client's Python API over both wires, against a server in this process."""

from __future__ import annotations

import itertools
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import hmer.recognizer
from client import Recognition, Recognizer, Retry
from client.retry import Deadline, Retrier
from client.transport import parse_url
from hmer.decode import SearchOptions
from hmer.errors import (
    BadParameter,
    BlankImage,
    Cancelled,
    DeadlineExceeded,
    HmerError,
    InferenceFailed,
    MissingDependency,
    MissingInput,
    Overloaded,
    ServerError,
    ServerUnavailable,
    UnknownModel,
)
from hmer.serving import from_request
from tests.fake_server import SERVERS, Asked, Refusal, Script, http_server

FAST = Retry(attempts=4, first=0.01, longest=0.02)


@dataclass
class Fake:
    """A running fake server."""

    url: str
    script: Script
    wire: str


@pytest.fixture(params=["grpc", "http"])
def fake(request: pytest.FixtureRequest) -> Iterator[Fake]:
    script = Script()
    with SERVERS[request.param](script) as url:
        yield Fake(url, script, request.param)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_an_answer_is_typed(fake: Fake) -> None:
    fake.script.alternatives = '[{"latex": "xz", "tokens": ["x", "z"], "score": 0.25}]'
    with Recognizer(fake.url) as recognizer:
        answer = recognizer.recognize(b"xy")
    assert (answer.latex, answer.tokens, answer.score) == ("xy", ("x", "y"), 0.5)
    (other,) = answer.alternatives
    assert (other.latex, other.tokens, other.score) == ("xz", ("x", "z"), 0.25)
    assert answer.timings["request"] > 0


def test_a_file_travels_as_it_is(fake: Fake, tmp_path: Path) -> None:
    path = tmp_path / "formula.bin"
    path.write_bytes("a\u00e9\u03b1".encode())
    with Recognizer(fake.url) as recognizer:
        assert recognizer.recognize(path).latex == "a\u00e9\u03b1"
        assert recognizer.recognize(str(path)).latex == "a\u00e9\u03b1"
    assert fake.script.asked[0].data == path.read_bytes()


def test_each_request_has_an_id_and_the_remaining_time(fake: Fake) -> None:
    with Recognizer(fake.url, timeout=300.0) as recognizer:
        recognizer.recognize(b"a")
        recognizer.recognize(b"b", request_id="mine")
        recognizer.recognize(b"c", timeout=60.0)
    first, second, third = fake.script.asked
    assert re.fullmatch("[0-9a-f]{32}", first.id)
    assert second.id == "mine"
    assert 60_000_000 < first.timeout_us <= 300_000_000  # wide: a busy machine takes its time
    assert 0 < third.timeout_us <= 60_000_000


def test_without_a_timeout_none_is_sent(fake: Fake) -> None:
    with Recognizer(fake.url, timeout=None) as recognizer:
        recognizer.recognize(b"a")
    assert fake.script.asked[0].timeout_us == 0


def test_model_and_version_can_be_chosen(fake: Fake) -> None:
    with Recognizer(fake.url, version=1) as recognizer:
        recognizer.recognize(b"a")
    assert (fake.script.asked[0].model, fake.script.asked[0].version) == ("recognize", "1")


def test_answers_keep_the_order_of_the_inputs(fake: Fake) -> None:
    inputs = [f"f{index}".encode() for index in range(40)]
    fake.script.delays = {b"f0": 0.2, b"f7": 0.1}
    with Recognizer(fake.url) as recognizer:
        answers = list(recognizer.recognize_many(inputs, concurrency=8))
    assert [a.latex for a in answers if isinstance(a, Recognition)] == [i.decode() for i in inputs]


def test_concurrency_is_used_and_bounded(fake: Fake) -> None:
    inputs = [f"f{index}".encode() for index in range(12)]
    full = threading.Event()

    def hold(_: Asked) -> None:
        """The first ones stay until three are there, however slowly they arrive."""
        if fake.script.most_at_once >= 3:
            full.set()
        full.wait(20.0)

    fake.script.hold = hold
    with Recognizer(fake.url) as recognizer:
        answers = list(recognizer.recognize_many(inputs, concurrency=3))
    assert all(isinstance(answer, Recognition) for answer in answers)
    assert full.is_set()
    assert fake.script.most_at_once == 3


def test_an_endless_input_is_read_as_answers_are_taken(fake: Fake) -> None:
    taken = itertools.count()
    inputs = (f"f{next(taken)}".encode() for _ in itertools.count())
    with Recognizer(fake.url) as recognizer:
        answers = recognizer.recognize_many(inputs, concurrency=2)
        assert isinstance(next(answers), Recognition)
    assert next(taken) <= 5


def test_failing_inputs_leave_the_others_alone(fake: Fake, tmp_path: Path) -> None:
    fake.script.refusals[b"blank"] = Refusal("INTERNAL", "[blank_image] The picture is blank.")
    with Recognizer(fake.url) as recognizer:
        a, blank, missing, empty, b = recognizer.recognize_many(
            [b"a", b"blank", tmp_path / "none.png", b"", b"b"]
        )
    assert isinstance(a, Recognition)
    assert isinstance(b, Recognition)
    assert isinstance(blank, BlankImage)
    assert str(blank) == "The picture is blank."
    assert isinstance(missing, MissingInput)
    assert "none.png" in str(missing)
    assert isinstance(empty, HmerError)
    assert empty.code == "empty_input"
    assert len(fake.script.asked) == 3  # what could be told here was not sent


def test_unknown_model(fake: Fake) -> None:
    with (
        Recognizer(fake.url, model="nosuch") as recognizer,
        pytest.raises(UnknownModel, match=r"no model 'nosuch'\. Run hmer-client health"),
    ):
        recognizer.recognize(b"a")


def test_unknown_version(fake: Fake) -> None:
    with (
        Recognizer(fake.url, version=7) as recognizer,
        pytest.raises(UnknownModel, match="no version 7 of the model 'recognize'"),
    ):
        recognizer.recognize(b"a")


def test_a_model_that_is_no_recogniser(fake: Fake) -> None:
    with (
        Recognizer(fake.url, model="classify") as recognizer,
        pytest.raises(InferenceFailed, match=r"'classify' .* does not answer like recognize"),
    ):
        recognizer.recognize(b"a")


def test_a_model_that_takes_other_tensors(fake: Fake) -> None:
    fake.script.refusals[b"a"] = Refusal(
        "INVALID_ARGUMENT", "unexpected inference input 'input' for model 'encoder'"
    )
    with (
        Recognizer(fake.url) as recognizer,
        pytest.raises(BadParameter, match="does not take this request"),
    ):
        recognizer.recognize(b"a")


def test_a_traceback_of_the_server_stays_there(fake: Fake) -> None:
    fake.script.refusals[b"a"] = Refusal(
        "INTERNAL",
        "Failed to process the request(s) for model 'x_0_0', message: ValueError: boom\n\nAt:\n"
        "  /models/x/1/model.py(13): execute\n",
    )
    with Recognizer(fake.url) as recognizer, pytest.raises(InferenceFailed) as caught:
        recognizer.recognize(b"a", request_id="r42")
    assert "ValueError: boom" in str(caught.value)
    assert "r42" in str(caught.value)
    assert "model.py" not in str(caught.value)


def test_a_full_server_is_tried_again(fake: Fake) -> None:
    fake.script.busy = [
        Refusal("UNAVAILABLE", "[overloaded] 256 requests wait already."),
        Refusal("UNAVAILABLE", "[request id: r1] Exceeds maximum queue size"),
    ]
    with Recognizer(fake.url, retry=FAST) as recognizer:
        assert recognizer.recognize(b"a").latex == "a"
    assert len(fake.script.asked) == 3
    assert len({asked.id for asked in fake.script.asked}) == 1


def test_a_server_that_stays_full_is_given_up(fake: Fake) -> None:
    fake.script.busy = [Refusal("UNAVAILABLE", "[overloaded] 256 requests wait already.")] * 9
    with Recognizer(fake.url, retry=FAST) as recognizer, pytest.raises(Overloaded, match="256"):
        recognizer.recognize(b"a")
    assert len(fake.script.asked) == FAST.attempts


def test_other_errors_are_not_tried_again(fake: Fake) -> None:
    fake.script.busy = [Refusal("INTERNAL", "[inference_failed] The decoder failed.")]
    with (
        Recognizer(fake.url, retry=FAST) as recognizer,
        pytest.raises(InferenceFailed, match=r"^The decoder failed\.$"),
    ):
        recognizer.recognize(b"a")
    assert len(fake.script.asked) == 1


def test_the_deadline_ends_the_wait(fake: Fake) -> None:
    fake.script.delays[b"slow"] = 1.5  # without a deadline there would be an answer
    with (
        Recognizer(fake.url, timeout=0.3) as recognizer,
        pytest.raises(DeadlineExceeded, match="Allow more time with --timeout"),
    ):
        recognizer.recognize(b"slow")


def test_the_servers_own_queue_timeout_is_a_deadline_too(fake: Fake) -> None:
    fake.script.refusals[b"a"] = Refusal("UNAVAILABLE", "Request timeout expired")
    with Recognizer(fake.url, retry=FAST) as recognizer, pytest.raises(DeadlineExceeded):
        recognizer.recognize(b"a")
    assert len(fake.script.asked) == 1


@pytest.mark.parametrize("scheme", ["", "http://"])
def test_a_server_that_is_down(scheme: str) -> None:
    url = f"{scheme}127.0.0.1:{free_port()}"
    with Recognizer(url, retry=FAST) as recognizer, pytest.raises(ServerUnavailable) as caught:
        recognizer.recognize(b"a")
    assert url in str(caught.value)
    assert "connection refused" in str(caught.value)
    assert "hmer-serve" in str(caught.value)


@pytest.mark.parametrize("url", ["no.such.host.invalid:8001", "http://no.such.host.invalid:8000"])
def test_a_host_that_is_unknown(url: str) -> None:
    with (
        Recognizer(url, retry=FAST) as recognizer,
        pytest.raises(ServerUnavailable, match="host name cannot be resolved"),
    ):
        recognizer.recognize(b"a")


def test_the_wrong_wire_is_explained(fake: Fake) -> None:
    other = fake.url.removeprefix("http://") if fake.wire == "http" else f"http://{fake.url}"
    hint = "write http://" if fake.wire == "http" else "without http://"
    with Recognizer(other, retry=FAST) as recognizer, pytest.raises(ServerUnavailable, match=hint):
        recognizer.recognize(b"a")


@pytest.mark.parametrize("wire", ["grpc", "http"])
def test_a_server_that_comes_back_is_found(wire: str) -> None:
    script, port = Script(), free_port()
    url = f"127.0.0.1:{port}" if wire == "grpc" else f"http://127.0.0.1:{port}"
    patient = Retry(attempts=60, first=0.05, longest=0.1)
    with Recognizer(url, retry=patient, timeout=20) as recognizer:
        with SERVERS[wire](script, port):
            assert recognizer.recognize(b"a").latex == "a"
        answers: list[Recognition | HmerError] = []
        thread = threading.Thread(target=lambda: answers.extend(recognizer.recognize_many([b"b"])))
        thread.start()
        time.sleep(0.3)
        assert not answers  # it waits
        with SERVERS[wire](script, port):
            thread.join()
    (answer,) = answers
    assert isinstance(answer, Recognition)


def test_a_stale_connection_is_replaced_without_a_retry() -> None:
    script, port = Script(), free_port()
    with Recognizer(f"http://127.0.0.1:{port}", retry=Retry(attempts=1)) as recognizer:
        for _ in range(2):  # the second server knows nothing of the first one's connection
            with SERVERS["http"](script, port):
                assert recognizer.recognize(b"a").latex == "a"
                assert recognizer.recognize(b"a").latex == "a"


def test_closing_ends_what_is_under_way(fake: Fake) -> None:
    fake.script.delays[b"slow"] = 3.0
    recognizer = Recognizer(fake.url)
    answers = recognizer.recognize_many([b"a", b"slow"])
    assert isinstance(next(answers), Recognition)
    threading.Timer(0.2, recognizer.close).start()
    assert isinstance(next(answers), Cancelled)  # and not the answer that comes later
    with pytest.raises(Cancelled, match="closed"):
        recognizer.recognize(b"a")


def test_health(fake: Fake) -> None:
    with Recognizer(fake.url) as recognizer:
        health = recognizer.health()
    assert (health.live, health.ready, health.serving, health.error) == (True, True, True, None)
    assert health.server == "triton 2.51.0"
    (state,) = health.models
    assert (state.name, state.version, state.state) == ("recognize", "1", "READY")


def test_health_of_another_model(fake: Fake) -> None:
    with Recognizer(fake.url, model="other") as recognizer:
        health = recognizer.health()
    assert health.ready
    assert not health.serving


def test_health_of_a_server_that_is_not_ready(fake: Fake) -> None:
    fake.script.ready = False
    with Recognizer(fake.url) as recognizer:
        health = recognizer.health()
    assert (health.live, health.ready, health.serving) == (True, False, False)
    assert health.models[0].reason == "no bundle"


def test_health_of_a_server_that_is_down() -> None:
    with Recognizer(f"127.0.0.1:{free_port()}") as recognizer:
        health = recognizer.health()
    assert not health.live
    assert isinstance(health.error, ServerUnavailable)


def test_another_web_server_is_not_taken_for_triton() -> None:
    with http_server(Script()) as url, Recognizer(f"{url}/elsewhere") as recognizer:
        error = recognizer.health().error
    assert isinstance(error, ServerError)
    assert "not as a Triton server" in str(error)


def test_it_stands_in_for_a_local_recogniser(fake: Fake) -> None:
    def latex_of(recognizer: hmer.recognizer.Recognizer, data: bytes) -> str:
        return recognizer.recognize(data).latex

    with Recognizer(fake.url) as recognizer:
        assert latex_of(recognizer, b"x") == "x"


def test_without_tritonclient_http_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    with pytest.raises(MissingDependency, match=r"pip install 'hmer\[client\]'.*http://"):
        Recognizer("localhost:8001")
    with http_server(Script()) as url, Recognizer(url) as recognizer:
        assert recognizer.recognize(b"x").latex == "x"


@pytest.mark.parametrize(
    ("url", "scheme", "authority"),
    [
        ("localhost:8001", "grpc", "localhost:8001"),
        ("localhost", "grpc", "localhost:8001"),
        ("grpc://10.0.0.7:9", "grpc", "10.0.0.7:9"),
        ("[::1]:8001", "grpc", "[::1]:8001"),
        ("http://localhost:8000/", "http", "localhost:8000"),
        ("http://formulas.example", "http", "formulas.example:80"),
        ("https://formulas.example", "https", "formulas.example:443"),
    ],
)
def test_addresses(url: str, scheme: str, authority: str) -> None:
    address = parse_url(url)
    assert (address.scheme, address.authority) == (scheme, authority)


@pytest.mark.parametrize(
    "url", ["", "ftp://x:1", "host:port", "host:99999", "http://", "localhost:8001/v2"]
)
def test_malformed_addresses(url: str) -> None:
    with pytest.raises(BadParameter, match="HOST:PORT"):
        Recognizer(url)


@pytest.mark.parametrize("version", ["abc", 0, "-1", "1.5"])
def test_malformed_versions(version: str | int) -> None:
    with pytest.raises(BadParameter, match="whole number"):
        Recognizer("localhost:1", version=version)


@pytest.mark.parametrize("timeout", [0, -1.0, float("inf"), float("nan")])
def test_malformed_timeouts(timeout: float) -> None:
    with pytest.raises(BadParameter, match="seconds"):
        Recognizer("localhost:1", timeout=timeout)


def test_concurrency_below_one() -> None:
    with Recognizer("localhost:1") as recognizer, pytest.raises(BadParameter, match="at least 1"):
        recognizer.recognize_many([b"a"], concurrency=0)


def test_backoff_doubles_up_to_its_limit_with_jitter() -> None:
    policy = Retry(first=0.1, longest=0.5)
    for attempt, full in ((1, 0.1), (2, 0.2), (3, 0.4), (4, 0.5), (50, 0.5)):
        waits = [policy.wait(attempt) for _ in range(50)]
        assert all(full / 2 <= wait <= full for wait in waits)
        assert len(set(waits)) > 1


def test_a_server_that_stays_away_is_not_waited_for_again() -> None:
    slept: list[float] = []
    retrier = Retrier(Retry(attempts=3), sleep=slept.append)

    def absent(_: float | None) -> str:
        raise ServerUnavailable("Nobody.")

    for expected in (2, 2, 2):  # only the first request waits
        with pytest.raises(ServerUnavailable):
            retrier.run(absent, Deadline(None), "here")
        assert len(slept) == expected
    assert retrier.run(lambda _: "back", Deadline(None), "here") == "back"
    with pytest.raises(ServerUnavailable):
        retrier.run(absent, Deadline(None), "here")
    assert len(slept) == 4  # after an answer it is patient again


def test_no_pause_goes_beyond_the_deadline() -> None:
    slept: list[float] = []
    retrier = Retrier(Retry(attempts=9, first=10.0, longest=10.0), sleep=slept.append)

    def full(_: float | None) -> str:
        raise Overloaded("Full.")

    with pytest.raises(Overloaded):
        retrier.run(full, Deadline(1.0), "here")
    assert not slept


def test_search_options_travel_as_request_parameters(fake: Fake) -> None:
    with Recognizer(fake.url) as recognizer:
        recognizer.recognize(b"x", beam=5, n_best=3, length_penalty=0.25)
        recognizer.recognize(b"x", timeout=5, beam=2)
        list(recognizer.recognize_many([b"x"], beam=7))
        recognizer.recognize(b"x")
    assert [asked.parameters for asked in fake.script.asked] == [
        {"beam": 5, "n_best": 3, "length_penalty": "0.25"},
        {"beam": 2},
        {"beam": 7},
        {},
    ]
    wanted = from_request(fake.script.asked[0].parameters, 100)
    assert wanted.search == SearchOptions(5, 3, 0.25)


def test_search_options_out_of_range_are_not_sent(fake: Fake) -> None:
    with Recognizer(fake.url) as recognizer:
        for options in ({"beam": 0}, {"beam": 2, "n_best": 3}, {"beam": 2, "length_penalty": -1}):
            with pytest.raises(BadParameter):
                recognizer.recognize(b"x", **options)  # type: ignore[call-overload]
            with pytest.raises(BadParameter):
                recognizer.recognize_many([b"x"], **options)  # type: ignore[arg-type]
    assert fake.script.asked == []
