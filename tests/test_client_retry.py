"""What is asked again, how often, and after which pause."""

from __future__ import annotations

import threading
import time

import pytest

from client import Recognition, Recognizer, Retry
from client.retry import Deadline, Retrier
from hmer.errors import (
    DeadlineExceeded,
    HmerError,
    InferenceFailed,
    Overloaded,
    ServerUnavailable,
)
from tests.client_fixtures import Fake, fake, free_port
from tests.fake_server import SERVERS, Refusal, Script

__all__ = ["fake"]
FAST = Retry(attempts=4, first=0.01, longest=0.02)


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


def test_the_servers_own_queue_timeout_is_a_deadline_too(fake: Fake) -> None:
    fake.script.refusals[b"a"] = Refusal("UNAVAILABLE", "Request timeout expired")
    with Recognizer(fake.url, retry=FAST) as recognizer, pytest.raises(DeadlineExceeded):
        recognizer.recognize(b"a")
    assert len(fake.script.asked) == 1


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


def test_backoff_doubles_up_to_its_limit_with_jitter() -> None:
    policy = Retry(first=0.1, longest=0.5)
    for attempt, full in ((1, 0.1), (2, 0.2), (3, 0.4), (4, 0.5), (50, 0.5)):
        waits = [policy.wait(attempt) for _ in range(50)]
        assert all(full / 2 <= wait <= full for wait in waits)
        assert len(set(waits)) > 1


def test_a_server_that_stays_away_is_not_waited_for_again() -> None:
    slept: list[float] = []
    retrier = Retrier(Retry(attempts=3, patience=0), sleep=slept.append)

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


def retrying(policy: Retry, refusals: list[HmerError]) -> tuple[int, list[float]]:
    """How often a server that refuses so is asked until it answers, and the pauses between."""
    asked, pauses = 0, list[float]()

    def send(remaining: float | None) -> str:
        nonlocal asked
        asked += 1
        if refusals:
            raise refusals.pop(0)
        return "answer"

    Retrier(policy, pauses.append).run(send, Deadline(None), "somewhere")
    return asked, pauses


def test_a_full_server_that_names_a_time_is_waited_for_beyond_the_attempts() -> None:
    def full(times: int) -> list[HmerError]:
        return [Overloaded.until("It is full.", 0.5) for _ in range(times)]

    asked, pauses = retrying(FAST, full(9))
    assert asked == 10
    assert all(0.5 <= pause <= 0.75 for pause in pauses)  # never sooner than it said
    with pytest.raises(Overloaded):
        retrying(Retry(attempts=2, patience=2.0), full(9))  # not for ever
    with pytest.raises(Overloaded):
        retrying(Retry(attempts=1), full(1))
    with pytest.raises(Overloaded):  # one that names none gets the usual attempts
        retrying(FAST, [Overloaded("It is full.") for _ in range(9)])
