"""The served model ``decode`` on a fake of Triton's Python API: limits, faults, metrics."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from hmer.bundle import Bundle
from hmer.decode import Stats
from hmer.errors import (
    Cancelled,
    DeadlineExceeded,
    InferenceFailed,
    Overloaded,
)
from tests import fake_triton as fake
from tests.model_fixtures import (
    Gate,
    Tensors,
    ask,
    error_of,
    load_model,
    text,
)


@pytest.fixture
def decode(tiny_graphs: Bundle) -> Iterator[Any]:
    model = load_model(tiny_graphs, "decode", slots="4", max_tokens="40")
    yield model
    model.finalize()


def test_timeout_and_cancellation(decode: Any, features: list[Tensors]) -> None:
    gate = Gate(decode)
    late = ask(decode, features[0], timeout=1000)
    gone = ask(decode, features[1])
    stays = ask(decode, features[2])
    assert gate.entered.wait(10)
    gone.cancel()
    time.sleep(0.06)  # the millisecond is over, and so is the pause between two questions
    gate.open()
    assert isinstance(error_of(late.result()), DeadlineExceeded)
    assert late.result().failure().code() == fake.TritonError.UNAVAILABLE
    assert isinstance(error_of(gone.result()), Cancelled)
    assert gone.result().failure().code() == fake.TritonError.CANCELLED
    assert text(stays.result())
    assert decode.scheduler.stats().slots_in_use == 0


def test_overload(tiny_graphs: Bundle, features: list[Tensors]) -> None:
    model = load_model(tiny_graphs, "decode", slots="1", max_queue="2")
    gate = Gate(model)
    first = ask(model, features[0])
    assert gate.entered.wait(10)
    waiting = [ask(model, features[1]), ask(model, features[2])]
    refused = ask(model, features[3]).result(1)  # while the step is still held
    assert isinstance(error_of(refused), Overloaded)
    assert refused.failure().code() == fake.TritonError.UNAVAILABLE
    # A request of many rows is refused whole, and leaves no row behind.
    rows = {name: np.concatenate([values, values]) for name, values in features[0].items()}
    assert isinstance(error_of(ask(model, rows).result(1)), Overloaded)
    gate.open()
    assert all(text(sender.result()) for sender in [first, *waiting])
    model.finalize()


def test_finalize_answers_what_is_left(tiny_graphs: Bundle, features: list[Tensors]) -> None:
    before = set(threading.enumerate())
    model = load_model(tiny_graphs, "decode", slots="1")
    gate = Gate(model)
    senders = [ask(model, f) for f in features[:3]]
    assert gate.entered.wait(10)
    threading.Timer(0.1, gate.open).start()
    model.finalize()
    assert all(isinstance(error_of(sender.result(0)), Cancelled) for sender in senders)
    time.sleep(0.05)  # the thread that writes to callers may still be at its end
    assert not set(threading.enumerate()) - before


def test_metrics(decode: Any, features: list[Tensors]) -> None:
    for f in features:
        ask(decode, f).result()
    deadline = time.monotonic() + 5
    family = fake.MetricFamily.ALL["hmer_decode_completed_total"]
    while family.metrics[-1].value() < len(features) and time.monotonic() < deadline:
        time.sleep(0.05)
    stats: Stats = decode.scheduler.stats()
    assert family.metrics[-1].value() == stats.completed == len(features)
    assert fake.MetricFamily.ALL["hmer_decode_slots"].metrics[-1].value() == 4
    assert fake.MetricFamily.ALL["hmer_decode_tokens_total"].kind == "counter"


def test_a_step_that_fails_in_the_middle(decode: Any, features: list[Tensors]) -> None:
    """Whoever is in flight gets an error; who comes later an answer."""
    steps = decode.scheduler._greedy._step_fn
    gate = Gate(decode)
    senders = [ask(decode, f) for f in features[:3]]
    assert gate.entered.wait(10)
    held, calls = steps.step, []

    def fails(slots: Any) -> Any:
        calls.append(len(slots))
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return held(slots)

    steps.step = fails
    gate.open()
    errors = [error_of(sender.result()) for sender in senders]
    assert all(isinstance(error, InferenceFailed) for error in errors)
    assert all("out of memory" in str(error) for error in errors)
    gate.close()
    assert text(ask(decode, features[0]).result())
    assert decode.scheduler.stats().slots_in_use == 0
