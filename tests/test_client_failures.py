"""What the client says when a server fails, is away, or is something else."""

from __future__ import annotations

import threading

import pytest

from client import Recognition, Recognizer, Retry
from hmer.errors import (
    BadParameter,
    Cancelled,
    DeadlineExceeded,
    InferenceFailed,
    ServerUnavailable,
    UnknownModel,
)
from tests.client_fixtures import Fake, fake, free_port
from tests.fake_server import Refusal

__all__ = ["fake"]
FAST = Retry(attempts=4, first=0.01, longest=0.02)


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


def test_the_deadline_ends_the_wait(fake: Fake) -> None:
    fake.script.delays[b"slow"] = 1.5  # without a deadline there would be an answer
    with (
        Recognizer(fake.url, timeout=0.3) as recognizer,
        pytest.raises(DeadlineExceeded, match="Allow more time with --timeout"),
    ):
        recognizer.recognize(b"slow")


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


def test_closing_ends_what_is_under_way(fake: Fake) -> None:
    fake.script.delays[b"slow"] = 3.0
    recognizer = Recognizer(fake.url)
    answers = recognizer.recognize_many([b"a", b"slow"])
    assert isinstance(next(answers), Recognition)
    threading.Timer(0.2, recognizer.close).start()
    assert isinstance(next(answers), Cancelled)  # and not the answer that comes later
    with pytest.raises(Cancelled, match="closed"):
        recognizer.recognize(b"a")
