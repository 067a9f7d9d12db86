"""The scheduler with its thread: neighbours, callers from everywhere, stopping."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest

from hmer.decode import DecodeRequest, Scheduler, StepResult
from hmer.errors import (
    Cancelled,
    InferenceFailed,
    ServerUnavailable,
)
from hmer.vocab import EOS_ID
from tests.decode_client import Client, check_books
from tests.decode_fixtures import ScriptedStep, script

A, B, C = 5, 6, 7


class Gated(ScriptedStep):
    """Every step waits for ``go``; ``entered`` says that one is waiting."""

    error: Exception | None = None

    def __init__(self, slots: int = 2, k: int = 1) -> None:
        super().__init__(slots, k)
        self.go, self.entered = threading.Semaphore(0), threading.Semaphore(0)

    def step(self, slots: Sequence[int]) -> StepResult:
        self.entered.release()
        assert self.go.acquire(timeout=10)
        if self.error is not None:
            raise self.error
        return super().step(slots)


def test_a_short_formula_is_answered_before_its_long_neighbour() -> None:
    step = Gated(slots=2)
    with Scheduler(step, max_queue=5) as scheduler:
        client = Client(scheduler)
        client.ask("long", *[A] * 10)
        assert step.entered.acquire(timeout=10)
        client.ask("short", B)  # joins while the first step is under way
        step.go.release(3)
        client.wait("short")
        assert "long" not in client.outcomes
        step.go.release(8)
        client.wait("long")
    assert list(client.outcomes) == ["short", "long"]
    assert step.calls[0] != step.calls[1]


def test_many_threads_get_the_same_answers() -> None:
    step = ScriptedStep(slots=8, k=3)
    rng = np.random.default_rng(0)
    scripts = [tuple(rng.integers(3, 9, rng.integers(0, 40)).tolist()) for _ in range(200)]
    with Scheduler(step, max_queue=200) as scheduler:
        client = Client(scheduler)

        def ask(first: int) -> None:
            for index in range(first, 200, 8):
                client.ask(str(index), *scripts[index])

        threads = [threading.Thread(target=ask, args=(first,)) for first in range(8)]
        for thread in threads:
            thread.start()
        client.wait(*map(str, range(200)))
        for thread in threads:
            thread.join()
        stats = scheduler.stats()
    assert not client.repeated
    for index, ids in enumerate(scripts):
        assert client.outcomes[str(index)].ids == (*ids, EOS_ID)
    assert (stats.accepted, stats.completed, stats.slots_in_use) == (200, 200, 0)
    assert stats.tokens == sum(len(ids) + 1 for ids in scripts)


def test_an_idle_scheduler_sleeps_until_it_is_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[object] = []
    scheduler = Scheduler(ScriptedStep(), max_queue=5)
    original = scheduler._admission._wake.wait

    def wait(timeout: float | None = None) -> bool:
        waits.append(timeout)
        return original(timeout)

    monkeypatch.setattr(scheduler._admission._wake, "wait", wait)
    with scheduler:
        client = Client(scheduler)
        client.ask("a", A)
        client.wait("a")
        before = time.process_time()
        time.sleep(0.2)
        assert time.process_time() - before < 0.1
        assert set(waits) == {None}, "it waits without a timeout"
        assert len(waits) <= 2, "at the start and after the answer"
        client.ask("b", B)
        client.wait("b")


def test_stop_answers_everything_left() -> None:
    step = Gated(slots=1)
    scheduler = Scheduler(step, max_queue=5)
    scheduler.start()
    client = Client(scheduler)
    for name in ("running", "queued", "queued too"):
        client.ask(name, *[A] * 50)
    assert step.entered.acquire(timeout=10)
    stopper = threading.Thread(target=scheduler.stop)
    stopper.start()
    step.go.release(50)
    stopper.join(10)
    assert not stopper.is_alive()
    assert set(client.outcomes) == {"running", "queued", "queued too"}
    assert all(isinstance(o.error, Cancelled) for o in client.outcomes.values())
    assert step.scripts == {}, "the slot is released"
    with pytest.raises(ServerUnavailable):
        client.ask("more", A)
    scheduler.stop()
    check_books(scheduler)


@pytest.mark.parametrize("error", [None, RuntimeError("connection lost")])
def test_stop_does_not_wait_for_ever_for_a_step(error: Exception | None) -> None:
    step = Gated(slots=2)
    step.error = error
    scheduler = Scheduler(step, max_queue=5)
    scheduler.start()
    client = Client(scheduler)
    streamed: list[Sequence[int]] = []
    client.ask("would end", on_tokens=lambda ids, _: streamed.append(ids))
    client.ask("would go on", A, on_tokens=lambda ids, _: streamed.append(ids))
    assert step.entered.acquire(timeout=10)
    client.ask("queued", A)
    scheduler.stop(timeout=0.05)
    assert set(client.outcomes) == {"would end", "would go on", "queued"}
    step.go.release(10)  # the step comes back after all, too late
    (thread,) = (t for t in threading.enumerate() if t.name == "hmer-decode")
    thread.join(10)
    assert not thread.is_alive()
    assert not client.repeated
    assert not streamed
    assert scheduler.stats().cancelled == 3
    check_books(scheduler)


def test_stop_from_a_callback() -> None:
    scheduler = Scheduler(ScriptedStep(slots=1), max_queue=5)
    client = Client(scheduler)
    scheduler.submit(DecodeRequest(script(A), 10, on_done=lambda _: scheduler.stop()))
    client.ask("left", A)
    scheduler.start()
    client.wait("left")
    assert isinstance(client.outcomes["left"].error, Cancelled)


def test_the_thread_survives_its_own_faults() -> None:
    now = time.monotonic
    faults = [RuntimeError("clock")]
    main = threading.current_thread()

    def clock() -> float:
        if faults and threading.current_thread() is not main:
            raise faults.pop()
        return now()

    with Scheduler(ScriptedStep(), max_queue=5, clock=clock) as scheduler:
        client = Client(scheduler)
        client.ask("unlucky", A)
        client.wait("unlucky")
        client.ask("next", A)
        client.wait("next")
    assert isinstance(client.outcomes["unlucky"].error, InferenceFailed)
    assert client.outcomes["next"].reason == "eos"


def test_a_scheduler_is_driven_by_one_thread() -> None:
    with Scheduler(ScriptedStep(), max_queue=5) as scheduler:
        with pytest.raises(RuntimeError):
            scheduler.run_once()
        with pytest.raises(RuntimeError):
            scheduler.start()
