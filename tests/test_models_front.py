"""What ``recognize`` is made of, alone: the cache, the way back, the waiting line, the metrics."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hmer.decode import SearchOptions
from hmer.errors import BadParameter, InferenceFailed
from hmer.priority import SHARE, PriorityLine
from hmer.serving import RequestParameters, cache_bytes, from_request, to_request
from tests import fake_triton as fake
from tests.e2e_fixtures import until

fake.install()

from model_repository.publisher import Histogram, MetricSpec, Publisher  # noqa: E402
from model_repository.recognize.cache import Answer, AnswerCache, key_of  # noqa: E402
from model_repository.reply import ReplyListener, ReplySender, Tokens  # noqa: E402

PARAMETERS = RequestParameters(100, SearchOptions())


# -- the cache


def answer(size: int) -> Answer:
    return Answer({"x": np.zeros(size, np.uint8)})


def test_the_cache_keeps_what_was_used_last() -> None:
    cache = AnswerCache(10_000)
    cache.put(b"a", answer(3000))
    cache.put(b"b", answer(3000))
    assert cache.get(b"a") is not None
    cache.put(b"c", answer(3000))  # with what entries cost, only two fit
    assert cache.get(b"b") is None
    assert cache.get(b"a") is not None
    cache.put(b"a", answer(10))
    assert cache.size == answer(10).size + answer(3000).size
    cache.put(b"huge", answer(20_000))
    assert cache.get(b"huge") is None
    assert cache.get(b"c") is not None
    assert (cache.hits, cache.misses) == (3, 2)
    assert not AnswerCache(0)


def test_what_shapes_an_answer_is_in_its_key() -> None:
    beam = SearchOptions(3)
    different = [
        ([b"x"], PARAMETERS),
        ([b"y"], PARAMETERS),
        ([b"x", b""], PARAMETERS),
        ([b"x"], replace(PARAMETERS, max_tokens=99)),
        ([b"x"], replace(PARAMETERS, attention=True)),
        ([b"x"], replace(PARAMETERS, search=beam)),
        ([b"x"], replace(PARAMETERS, search=replace(beam, n_best=2))),
        ([b"x"], replace(PARAMETERS, search=replace(beam, length_penalty=0.1))),
    ]
    assert len({key_of(rows, p) for rows, p in different}) == len(different)
    assert key_of([b"ab", b"c"], PARAMETERS) != key_of([b"a", b"bc"], PARAMETERS)
    for same in (
        replace(PARAMETERS, priority="batch"),
        replace(PARAMETERS, k=2),
        replace(PARAMETERS, encoding="base64"),
        replace(PARAMETERS, search=SearchOptions(length_penalty=0.1)),  # is for beams
    ):
        assert key_of([b"x"], same) == key_of([b"x"], PARAMETERS)


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("500", 500), ("64M", 64 << 20), ("1 GiB", 1 << 30), ("2kb", 2048)]
)
def test_amounts_of_memory(text: str, size: int) -> None:
    assert cache_bytes(text) == size
    for wrong in ("", "-1", "many", "1.5G", "3T"):
        with pytest.raises(BadParameter, match="64M"):
            cache_bytes(wrong)


# -- parameters


def test_what_the_client_writes_the_server_reads() -> None:
    sent = to_request(
        4, 2, 0.5, max_tokens=7, k=2, attention=True, priority="batch", encoding="base64"
    )
    expected = RequestParameters(7, SearchOptions(4, 2, 0.5), 2, True, "batch", "base64")
    assert from_request(sent, 100) == expected
    assert from_request({"triton_enable_empty_final_response": True}, 9).max_tokens == 9
    for wrong in ({"k": 0}, {"max_tokens": True}, {"priority": "first"}, {"encoding": ""}):
        with pytest.raises(BadParameter):
            to_request(**wrong)  # type: ignore[arg-type]


# -- the waiting line


def test_interactive_first_but_batch_moves_too() -> None:
    line: PriorityLine[str] = PriorityLine()
    for number in range(2 * SHARE):
        line.push(f"b{number}", "batch")
        line.push(f"i{number}")
    line.remove(lambda item: item in ("i0", "b0"))
    order = [line.pop() for _ in range(len(line))]
    assert order[: SHARE + 1] == [*(f"i{n}" for n in range(1, SHARE)), "b1", f"i{SHARE}"]
    assert [item for item in order if item[0] == "i"] == [f"i{n}" for n in range(1, 2 * SHARE)]
    assert [item for item in order if item[0] == "b"] == [f"b{n}" for n in range(1, 2 * SHARE)]
    with pytest.raises(IndexError):
        line.peek()


# -- the way back


def test_tokens_go_one_way_and_cancellation_the_other() -> None:
    listener, sender = ReplyListener(), ReplySender()
    got: list[Tokens] = []
    ticket = listener.expect(got.append)
    reply = sender.to(listener.address(ticket))
    maps = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    reply.send(Tokens([3, 4], [-0.5, -0.25]))
    reply.send(Tokens([np.int32(5), 6], [-0.1, -0.2], maps))  # type: ignore[list-item]
    until(lambda: len(got) == 2)
    assert got[0] == Tokens([3, 4], [-0.5, -0.25])
    assert got[1].ids == [5, 6]
    assert np.array_equal(got[1].maps, maps)  # type: ignore[arg-type]
    assert not reply.cancelled
    listener.cancel(ticket)
    until(lambda: reply.cancelled)
    listener.forget(ticket)
    reply.send(Tokens([7], [0.0]))  # to nobody
    other = listener.expect(got.append)
    sender.to(listener.address(other)).send(Tokens([8], [0.0]))
    until(lambda: got[-1].ids == [8])
    assert len(got) == 3
    # A caller that is gone wants nothing any more.
    last = sender.to(listener.address(listener.expect(got.append)))
    listener.close()
    until(lambda: last.cancelled)
    sender.close()


def test_a_cancellation_may_be_faster_than_its_request() -> None:
    listener, sender = ReplyListener(), ReplySender()
    unconnected, connected = (listener.expect(lambda tokens: None) for _ in range(2))
    listener.cancel(unconnected)
    late = sender.to(listener.address(unconnected))  # which connects
    until(lambda: late.cancelled)
    listener.cancel(connected)
    until(lambda: connected in sender._early)
    assert sender.to(listener.address(connected)).cancelled
    sender.close()
    listener.close()


def test_nobody_else_is_let_in() -> None:
    listener, sender = ReplyListener(), ReplySender()
    name, key, ticket = listener.address(listener.expect(lambda tokens: None)).split(":")
    for wrong in ("", "/etc/passwd:x:y", f"../{name[3:]}:{key}:{ticket}"):
        with pytest.raises(BadParameter):
            sender.to(wrong)
    for nobody in (f"{name}:{key[::-1]}:{ticket}", f"{name[::-1]}:{key}:{ticket}"):
        with pytest.raises(InferenceFailed):
            sender.to(nobody)
    assert not sender.to(f"{name}:{key}:{ticket}").cancelled
    sender.close()
    listener.close()


# -- metrics


def test_a_publisher_sends_differences() -> None:
    seconds = Histogram()
    values: dict[str, Any] = {"asked_total": 3, "busy": 2, "wait_seconds": seconds}
    specs = (
        MetricSpec("asked_total", "Asked"),
        MetricSpec("busy", "Busy", "gauge"),
        MetricSpec("wait_seconds", "Waited", "histogram"),
    )
    for value in (0.004, 0.03, 20.0):
        seconds.observe(value)
    with Publisher("test", {"model": "m"}, specs, lambda: values, period=60) as publisher:
        publisher.publish()
        values.update(asked_total=5, busy=0)
        publisher.publish()
        found = {
            (name, metric.labels.get("le")): metric.value()
            for name, family in fake.MetricFamily.ALL.items()
            if name.startswith("test_")
            for metric in family.metrics
        }
        assert all(
            metric.labels["model"] == "m"
            for name, family in fake.MetricFamily.ALL.items()
            if name.startswith("test_")
            for metric in family.metrics
        )
    assert found["test_asked_total", None] == 5
    assert found["test_busy", None] == 0
    assert found["test_wait_seconds_count", None] == 3
    assert found["test_wait_seconds_sum", None] == pytest.approx(20.034)
    buckets = {le: value for (name, le), value in found.items() if name.endswith("_bucket")}
    assert (buckets["0.005"], buckets["0.05"], buckets["10.0"], buckets["+Inf"]) == (1, 2, 2, 3)
    assert not [t for t in threading.enumerate() if t.name == "hmer-metrics" and not t.daemon]
