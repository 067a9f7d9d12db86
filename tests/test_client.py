"""The client's Python API over both wires: answers, many inputs, health."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import hmer.recognizer
from client import Recognition, Recognizer
from hmer.errors import (
    BlankImage,
    HmerError,
    MissingInput,
    ServerError,
    ServerUnavailable,
)
from tests.client_fixtures import Fake, fake, free_port
from tests.fake_server import Asked, Refusal, Script, http_server

__all__ = ["fake"]


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
