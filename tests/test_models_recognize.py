"""``recognize`` and ``recognize_stream`` on a fake of Triton's Python API, real models behind."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from hmer.bundle import Bundle
from hmer.errors import (
    BadParameter,
    Cancelled,
    DeadlineExceeded,
    HmerError,
    ImageTooLarge,
    InferenceFailed,
    Overloaded,
    UnreadableImage,
)
from hmer.recognizer import LocalRecognizer
from tests import fake_triton as fake
from tests.model_fixtures import Gate, Tensors, ask, error_of, load_model, png, same, text


@pytest.fixture(scope="module")
def behind(tiny_graphs: Bundle) -> Iterator[dict[str, Any]]:
    """``encoder`` and ``decode`` (four slots), to be called by the model under test."""
    models = {
        "encoder": load_model(tiny_graphs, "encoder"),
        "decode": load_model(tiny_graphs, "decode", slots="4", max_tokens="40"),
    }
    fake.MODELS.update(models)
    yield models
    fake.MODELS.clear()
    for model in models.values():
        model.finalize()


@pytest.fixture
def recognize(tiny_graphs: Bundle, behind: dict[str, Any]) -> Iterator[Any]:
    model = load_model(tiny_graphs, "recognize", max_tokens="40")
    yield model
    model.finalize()


@pytest.fixture
def stream(tiny_graphs: Bundle, behind: dict[str, Any]) -> Iterator[Any]:
    model = load_model(tiny_graphs, "recognize_stream", max_tokens="40")
    yield model
    model.finalize()


@pytest.fixture
def gate(behind: dict[str, Any]) -> Iterator[Gate]:
    """Holds the decoder's steps until it is opened."""
    gate = Gate(behind["decode"])
    yield gate
    gate.close()


def send(model: Any, *rows: bytes, **options: Any) -> fake.ResponseSender:
    return ask(model, {"input": fake.bytes_rows(rows)}, **options)


def streamed(sender: fake.ResponseSender) -> tuple[list[str], list[float]]:
    """The tokens and scores that came before the answer, in their places."""
    sender.result()
    parts = [part.arrays() for part in sender.parts]
    assert [int(part["index"][0, 0]) for part in parts] == list(range(len(parts)))
    return (
        [part["token"][0, 0].decode() for part in parts],
        [float(part["token_score"][0, 0]) for part in parts],
    )


def test_a_request_without_an_id_gets_one_for_log_and_trace_alike(recognize: Any) -> None:
    from model_repository.recognize.request_log import RequestLog

    ended: list[Any] = []
    lines: list[bytes] = []
    log = RequestLog("recognize", 1, "json", lines.append)

    def end(job: Any, error: HmerError | None) -> None:
        log.ended(job, error)
        ended.append(job.request_id)  # what the trace is given

    recognize.front._on_end = end
    for name in ("", "", "mine"):
        text(send(recognize, png(1), request_id=name).result())
    until = time.monotonic() + 20
    while len(ended) < 3 and time.monotonic() < until:
        time.sleep(0.01)
    first, second, third = ended
    assert re.fullmatch("[0-9a-f]{32}", first)
    assert (first != second, third) == (True, "mine")
    assert [json.loads(line)["id"] for line in lines] == ended


def test_the_answers_are_the_local_ones(tiny_graphs: Bundle, recognize: Any) -> None:
    inputs = [png(seed) for seed in range(6)]
    with LocalRecognizer(tiny_graphs.folder, threads=1, max_tokens=40) as local:
        expected = [local.recognize(data) for data in inputs]
        beams = [local.recognize(data, beam=3) for data in inputs]
    answers = [(a.latex, " ".join(a.tokens), a.score) for a in expected]
    senders = [send(recognize, data) for data in inputs]
    for answer, sender in zip(answers, senders, strict=True):
        assert same(text(sender.result()), [answer])
        assert "attention" not in sender.result().arrays()
    for beam, data in zip(beams, inputs, strict=True):
        found = text(send(recognize, data, parameters={"beam": 3}).result())
        assert same(found, [(beam.latex, " ".join(beam.tokens), beam.score)])
    rows = text(send(recognize, *inputs).result())
    assert same(rows, answers)


def test_a_stream_is_the_answer_token_by_token(recognize: Any, stream: Any) -> None:
    for seed in range(6):
        for parameters in ({}, {"max_tokens": 5}, {"beam": 3}):
            whole = send(recognize, png(seed), parameters=parameters).result()
            sender = send(stream, png(seed), parameters=parameters)
            assert same(text(sender.result()), text(whole))
            tokens, scores = streamed(sender)
            assert " ".join(tokens) == text(whole)[0][1]
            assert all(0 < score <= 1 for score in scores)
            if len(tokens) == parameters.get("max_tokens"):  # no <eos> in the score
                assert np.prod(scores) == pytest.approx(text(whole)[0][2], rel=1e-3)


def test_tokens_come_before_the_end(behind: dict[str, Any], stream: Any) -> None:
    """One call of the step at a time: before the next one its tokens are there, and no more."""
    step = behind["decode"].scheduler._greedy._step_fn
    original = step.step
    sender = fake.ResponseSender()
    given = [0]  # tokens by the calls so far
    seen: list[int] = []

    def slowly(slots: Any) -> Any:
        deadline = time.monotonic() + 2
        while len(sender.parts) < given[-1] and time.monotonic() < deadline:
            time.sleep(0.002)
        seen.append(len(sender.parts))
        result = original(slots)
        given.append(given[-1] + result.tokens.shape[1])
        return result

    step.step = slowly
    try:
        request = fake.request({"input": fake.bytes_rows([png(0)])})
        request.sender = sender
        stream.execute([request])
        sender.result(30)
    finally:
        step.step = original
    assert len(seen) > 2
    assert seen == given[:-1]


def test_attention(behind: dict[str, Any], recognize: Any, stream: Any) -> None:
    asked = {"attention": True, "max_tokens": 8}
    whole = send(recognize, png(1), parameters=asked).result().arrays()
    tokens = whole["tokens"][0, 0].split()
    maps = whole["attention"]
    assert maps.shape[:2] == (1, len(tokens))
    np.testing.assert_allclose(maps.sum((2, 3)), 1.0, atol=1e-3)
    left, top, right, bottom = whole["attention_box"][0]
    assert left < right
    assert top < bottom
    assert (right - left) / (bottom - top) == pytest.approx(maps.shape[3] / maps.shape[2], rel=0.01)
    sender = send(stream, png(1), parameters=asked)
    assert "attention" not in sender.result().arrays()
    each = [part.arrays()["attention"][0, 0] for part in sender.parts]
    np.testing.assert_allclose(np.stack(each), maps[0], atol=1e-5)
    for model, rows in ((recognize, 2), (stream, 2)):
        error = error_of(send(model, *[png(0)] * rows, parameters=asked).result())
        assert isinstance(error, BadParameter)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"bean": 3}, "no request parameter 'bean'"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": 41}, "1 to 40"),
        ({"k": 0}, "k is 0"),
        ({"k": 99}, "99, and this model decodes at most"),
        ({"beam": 5}, "4 slots"),
        ({"n_best": 2}, "n_best is 2"),
        ({"attention": "yes"}, "attention is 'yes'"),
        ({"priority_class": "urgent"}, "interactive or batch"),
        ({"encoding": "hex"}, "raw or base64"),
        ({"timeout": "soon"}, "timeout is 'soon'"),
    ],
)
def test_parameters_out_of_range(recognize: Any, parameters: Any, words: str) -> None:
    response = send(recognize, png(0), parameters=parameters).result()
    assert isinstance(error_of(response), BadParameter)
    assert words in str(error_of(response))
    assert response.failure().code() == fake.TritonError.INVALID_ARG


def test_base64(recognize: Any) -> None:
    plain = text(send(recognize, png(2)).result())
    encoded = base64.encodebytes(png(2))
    assert text(send(recognize, encoded, parameters={"encoding": "base64"}).result()) == plain
    error = error_of(send(recognize, b"@@@", parameters={"encoding": "base64"}).result())
    assert isinstance(error, BadParameter)
    assert "not base64" in str(error)


def bad_requests() -> list[tuple[Tensors, type[HmerError]]]:
    return [
        ({"input": fake.bytes_rows([b"text"])}, UnreadableImage),
        ({"input": fake.bytes_rows([bytes(2**25 + 1)])}, ImageTooLarge),
        ({"input": np.zeros((1, 1), np.float32)}, BadParameter),
        ({"input": np.array([b"x"], np.object_)}, BadParameter),
        ({"input": fake.bytes_rows([b"x"])[:0]}, BadParameter),
        ({"other": fake.bytes_rows([b"x"])}, BadParameter),
    ]


@pytest.mark.parametrize("case", range(6))
def test_bad_input(recognize: Any, stream: Any, case: int) -> None:
    inputs, kind = bad_requests()[case]
    for model in (recognize, stream):
        response = ask(model, inputs).result()
        assert type(error_of(response)) is kind
        assert response.failure().code() == fake.TritonError.INVALID_ARG
        assert text(send(model, png(0)).result())


def test_time_limit_and_cancellation(behind: dict[str, Any], recognize: Any, gate: Gate) -> None:
    late = send(recognize, png(0), timeout=200_000)
    gone = send(recognize, png(1))
    stays = send(recognize, png(2))
    assert gate.entered.wait(10)
    gone.cancel()
    # Answered while the step is held: nobody waits for a step to hear that.
    assert isinstance(error_of(late.result()), DeadlineExceeded)
    assert isinstance(error_of(gone.result()), Cancelled)
    gate.open()
    assert text(stays.result())
    deadline = time.monotonic() + 5
    stats = behind["decode"].scheduler.stats
    while stats().slots_in_use and time.monotonic() < deadline:
        time.sleep(0.01)
    assert stats().slots_in_use == 0
    assert stats().cancelled >= 1


def test_overload_and_priority(tiny_graphs: Bundle, behind: dict[str, Any], gate: Gate) -> None:
    model = load_model(tiny_graphs, "recognize", max_tokens="40", workers="1", max_queue="3")
    first = send(model, png(0))
    assert gate.entered.wait(10)
    ended: list[str] = []
    waiting = {
        name: send(model, png(1), parameters={"priority_class": name.rstrip("2")})
        for name in ("batch", "interactive", "interactive2")
    }
    for name, sender in waiting.items():
        sender.on_result = lambda name=name: ended.append(name)
    refused = send(model, png(2)).result(1)
    assert isinstance(error_of(refused), Overloaded)
    assert "Try again in " in str(error_of(refused))
    assert refused.failure().code() == fake.TritonError.UNAVAILABLE
    gate.open()
    assert all(text(sender.result()) for sender in [first, *waiting.values()])
    assert ended == ["interactive", "interactive2", "batch"]
    model.finalize()


def test_a_model_that_fails(recognize: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(feeds: Tensors) -> Tensors:
        raise RuntimeError("out of memory")

    monkeypatch.setitem(fake.MODELS, "encoder", fail)
    error = error_of(send(recognize, png(0)).result())
    assert isinstance(error, InferenceFailed)
    assert "encoder failed: out of memory" in str(error)
    monkeypatch.undo()
    assert text(send(recognize, png(0)).result())


def test_an_encoder_that_gives_no_numbers(
    behind: dict[str, Any], recognize: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(feeds: Tensors) -> Tensors:
        outputs = fake.request(feeds)._ask(behind["encoder"]).arrays()
        values = outputs["values"].copy()
        values[0, 0, 0, 3] = np.nan
        return {**outputs, "values": values}

    monkeypatch.setitem(fake.MODELS, "encoder", broken)
    error = error_of(send(recognize, png(0)).result())
    assert isinstance(error, InferenceFailed)
    assert "not finite" in str(error)


def test_what_is_left_is_answered_when_the_model_goes(
    tiny_graphs: Bundle, behind: dict[str, Any], gate: Gate
) -> None:
    model = load_model(tiny_graphs, "recognize", max_tokens="40")
    sender = send(model, png(0))
    assert gate.entered.wait(10)
    gate.open_later()
    model.finalize()  # waits for what is under way
    assert text(sender.result(0))


def test_what_does_not_end_is_cancelled_when_the_model_goes(
    tiny_graphs: Bundle, behind: dict[str, Any], gate: Gate
) -> None:
    model = load_model(tiny_graphs, "recognize", max_tokens="40")
    sender = send(model, png(0))
    assert gate.entered.wait(10)
    gate.open_later(0.3)
    model.front.close(0.05)
    assert isinstance(error_of(sender.result(0)), Cancelled)
    model.finalize()
