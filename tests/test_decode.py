"""The scheduler, on scripted step functions."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from hmer.decode import DecodeRequest, EncodedImage, Outcome, Scheduler, StepResult, decode_all
from hmer.errors import (
    BadParameter,
    BlankImage,
    Cancelled,
    DeadlineExceeded,
    InferenceFailed,
    Overloaded,
    ServerUnavailable,
)
from hmer.vocab import EOS_ID
from tests.decode_fixtures import ScriptedStep, script

A, B, C = 5, 6, 7


class Client:
    """Submits scripts and keeps the outcomes in the order in which they came."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.outcomes: dict[str, Outcome] = {}
        self.repeated: list[str] = []  # an assertion in a callback would be swallowed
        self.answered = threading.Condition()

    def ask(self, name: str, *ids: int, max_tokens: int = 100, **options: Any) -> None:
        def done(outcome: Outcome) -> None:
            with self.answered:
                if name in self.outcomes:
                    self.repeated.append(name)
                self.outcomes[name] = outcome
                self.answered.notify_all()

        self.scheduler.submit(DecodeRequest(script(*ids), max_tokens, done, **options))

    def wait(self, *names: str) -> None:
        with self.answered:
            arrived = self.answered.wait_for(lambda: set(names) <= set(self.outcomes), timeout=10)
        assert arrived, f"no answer to {set(names) - set(self.outcomes)}"


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def check_books(scheduler: Scheduler) -> None:
    """Every accepted request is accounted for."""
    s = scheduler.stats()
    over = s.completed + s.cancelled + s.deadline + s.failed
    assert s.accepted == over + s.slots_in_use + s.queue_length


def test_one_request_until_eos() -> None:
    scheduler = Scheduler(ScriptedStep(), max_queue=0)
    client = Client(scheduler)
    client.ask("one", A, B, EOS_ID)
    turns = 1
    while scheduler.run_once():
        turns += 1
    outcome = client.outcomes["one"]
    assert turns == 3
    assert outcome.ids == (A, B, EOS_ID)
    assert outcome.scores == (-0.5, -0.5, -0.5)
    assert (outcome.reason, outcome.error, outcome.steps) == ("eos", None, 3)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 7])
def test_the_answer_does_not_depend_on_k(k: int) -> None:
    step = ScriptedStep(slots=3, k=k)
    outcomes = decode_all(step, [script(A, B, C, A), script(), script(*[B] * 30)], 9)
    assert [outcome.ids for outcome in outcomes] == [
        (A, B, C, A, EOS_ID),
        (EOS_ID,),
        (B,) * 9,
    ]
    assert [outcome.reason for outcome in outcomes] == ["eos", "eos", "length"]
    assert step.scripts == {}


def test_eos_within_a_call_counts_the_rest_as_wasted() -> None:
    scheduler = Scheduler(ScriptedStep(k=4), max_queue=0)
    client = Client(scheduler)
    client.ask("eos", A, B)  # <eos> third of four
    client.ask("limit", *[A] * 20, max_tokens=5)  # the limit is first of the second four
    while scheduler.run_once():
        pass
    stats = scheduler.stats()
    assert client.outcomes["eos"].ids == (A, B, EOS_ID)
    assert client.outcomes["limit"].ids == (A,) * 5
    assert client.outcomes["limit"].reason == "length"
    assert (stats.tokens, stats.wasted) == (8, 4)
    assert (stats.steps, stats.rows, stats.completed) == (2, 3, 2)


def test_eos_at_the_limit_is_eos() -> None:
    (outcome,) = decode_all(ScriptedStep(), [script(A, B)], 3)
    assert (outcome.ids, outcome.reason) == ((A, B, EOS_ID), "eos")


def test_requests_join_and_leave_between_steps() -> None:
    step = ScriptedStep(slots=2)
    scheduler = Scheduler(step, max_queue=10)
    client = Client(scheduler)
    client.ask("long", *[A] * 5)
    scheduler.run_once()
    client.ask("short", B)
    client.ask("late", C)
    while scheduler.run_once():
        pass
    # "short" joins for two steps, and "late" takes its slot in the very next one.
    assert [len(slots) for slots in step.calls] == [1, 2, 2, 2, 2, 1]
    assert list(client.outcomes) == ["short", "late", "long"]
    assert {o.reason for o in client.outcomes.values()} == {"eos"}


def test_slots_are_given_first_come_first_served() -> None:
    scheduler = Scheduler(ScriptedStep(slots=3), max_queue=50)
    client = Client(scheduler)
    for index in range(20):
        client.ask(str(index), A)
    while scheduler.run_once():
        pass
    assert list(client.outcomes) == [str(index) for index in range(20)]
    check_books(scheduler)


def test_times_are_measured() -> None:
    clock = Clock()
    scheduler = Scheduler(ScriptedStep(slots=1), max_queue=5, clock=clock)
    client = Client(scheduler)
    client.ask("first", A)
    client.ask("second", A)
    while scheduler.run_once():
        clock.now += 1.0
    assert client.outcomes["first"].queued_s == 0.0
    assert client.outcomes["first"].decode_s == 1.0
    assert client.outcomes["second"].queued_s == 2.0
    assert client.outcomes["second"].decode_s == 1.0


def test_the_queue_is_bounded_beyond_the_free_slots() -> None:
    scheduler = Scheduler(ScriptedStep(slots=2), max_queue=1)
    client = Client(scheduler)
    for name in ("a", "b", "c"):  # two will get a slot, one may wait
        client.ask(name, A)
    with pytest.raises(Overloaded, match="Try again later"):
        client.ask("d", A)
    scheduler.run_once()
    with pytest.raises(Overloaded):
        client.ask("d", A)
    assert scheduler.stats().rejected == 2
    while scheduler.run_once():
        pass
    client.ask("d", A)
    while scheduler.run_once():
        pass
    assert set(client.outcomes) == {"a", "b", "c", "d"}
    assert scheduler.stats().accepted == 4


def test_cancellation_frees_the_slot_before_the_next_step() -> None:
    step = ScriptedStep(slots=1)
    scheduler = Scheduler(step, max_queue=5)
    client = Client(scheduler)
    gone: list[bool] = []
    client.ask("goes", *[A] * 50, cancelled=lambda: bool(gone))
    client.ask("waits", B)
    scheduler.run_once()
    scheduler.run_once()
    gone.append(True)
    scheduler.run_once()
    outcome = client.outcomes["goes"]
    assert isinstance(outcome.error, Cancelled)
    assert (outcome.ids, outcome.reason, outcome.steps) == ((A, A), "error", 2)
    assert step.scripts == {0: []}, "the next one has its slot already"
    scheduler.run_once()
    assert client.outcomes["waits"].ids == (B, EOS_ID)
    assert scheduler.stats().cancelled == 1


def test_cancelled_requests_leave_the_queue() -> None:
    scheduler = Scheduler(ScriptedStep(slots=1), max_queue=6)
    client = Client(scheduler)
    client.ask("long", *[A] * 20)
    for index in range(6):
        client.ask(f"gone {index}", B, cancelled=lambda: True)
    with pytest.raises(Overloaded):
        client.ask("last", B)
    for _ in range(7):  # asked one a step, as there is one slot
        scheduler.run_once()
    assert scheduler.stats().queue_length == 0
    assert scheduler.stats().cancelled == 6
    assert scheduler.stats().admitted == 1
    client.ask("last", B)
    check_books(scheduler)


def test_every_place_in_the_queue_gets_its_turn() -> None:
    scheduler = Scheduler(ScriptedStep(slots=1), max_queue=5)
    client = Client(scheduler)
    client.ask("long", *[A] * 20)
    scheduler.run_once()
    for place in range(5):
        client.ask(str(place), B, cancelled=lambda place=place: place == 3)
    for _ in range(5):
        scheduler.run_once()
    assert list(client.outcomes) == ["3"]


def test_a_long_queue_is_asked_in_turns() -> None:
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return False

    scheduler = Scheduler(ScriptedStep(slots=2), max_queue=100)
    client = Client(scheduler)
    client.ask("a", *[A] * 9)
    client.ask("b", *[A] * 9)
    scheduler.run_once()
    for index in range(50):
        client.ask(str(index), B, cancelled=cancelled)
    scheduler.run_once()
    assert asked == 2


def test_deadlines_hold_in_a_slot_and_in_the_queue() -> None:
    clock = Clock()
    scheduler = Scheduler(ScriptedStep(slots=1), max_queue=5, clock=clock)
    client = Client(scheduler)
    client.ask("running", *[A] * 50, deadline=102.5)
    client.ask("queued", B, deadline=101.5)
    client.ask("patient", C)
    order = []
    while scheduler.run_once():
        order.append((clock.now, list(client.outcomes)))
        clock.now += 1.0
    assert isinstance(client.outcomes["queued"].error, DeadlineExceeded)
    assert isinstance(client.outcomes["running"].error, DeadlineExceeded)
    assert order[1:4] == [(101.0, []), (102.0, ["queued"]), (103.0, ["queued", "running"])]
    assert client.outcomes["running"].ids == (A, A, A)
    assert client.outcomes["patient"].ids == (C, EOS_ID)
    assert scheduler.stats().deadline == 2
    assert scheduler.stats().completed == 1


def test_an_answer_that_is_complete_is_given_even_if_late() -> None:
    clock = Clock()

    class Slow(ScriptedStep):
        def step(self, slots: Sequence[int]) -> StepResult:
            clock.now += 5.0
            return super().step(slots)

    scheduler = Scheduler(Slow(), max_queue=5, clock=clock)
    client = Client(scheduler)
    client.ask("late", deadline=103.0)
    scheduler.run_once()
    assert client.outcomes["late"].reason == "eos"


class Failing(ScriptedStep):
    """Fails in the step or at admission when told to."""

    step_error: Exception | None = None
    admit_error: Exception | None = None
    release_error: Exception | None = None
    damage: Callable[[StepResult], StepResult] | None = None

    def admit(self, slot: int, encoded: EncodedImage) -> None:
        super().admit(slot, encoded)
        if self.admit_error is not None:
            raise self.admit_error

    def release(self, slot: int) -> None:
        super().release(slot)
        if self.release_error is not None:
            raise self.release_error

    def step(self, slots: Sequence[int]) -> StepResult:
        result = super().step(slots)
        if self.step_error is not None:
            raise self.step_error
        return self.damage(result) if self.damage is not None else result


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("out of memory"), InferenceFailed),
        (BlankImage("The picture is blank."), BlankImage),
    ],
)
def test_a_failing_step_fails_those_in_flight_and_nobody_else(
    error: Exception, kind: type[Exception]
) -> None:
    step = Failing(slots=2)
    scheduler = Scheduler(step, max_queue=5)
    client = Client(scheduler)
    client.ask("a", *[A] * 5)
    client.ask("b", *[A] * 5)
    client.ask("waits", B)
    scheduler.run_once()
    step.step_error = error
    scheduler.run_once()
    step.step_error = None
    errors = [client.outcomes[name].error for name in ("a", "b")]
    assert [type(found) for found in errors] == [kind, kind]
    assert str(error) in str(errors[0])
    assert errors[0] is not errors[1]
    assert client.outcomes["a"].ids == (A,)
    while scheduler.run_once():
        pass
    assert client.outcomes["waits"].ids == (B, EOS_ID)
    assert scheduler.stats().failed == 2
    check_books(scheduler)


def test_nan_fails_its_row_alone() -> None:
    def nan_in_the_first_row(result: StepResult) -> StepResult:
        result.scores[0, 1] = np.nan
        return result

    step = Failing(slots=2, k=2)
    step.damage = nan_in_the_first_row
    scheduler = Scheduler(step, max_queue=0)
    client = Client(scheduler)
    client.ask("broken", A, B, C)
    client.ask("sound", A)
    scheduler.run_once()
    outcome = client.outcomes["broken"]
    assert isinstance(outcome.error, InferenceFailed)
    assert "nan" in str(outcome.error)
    assert outcome.ids == (A,)
    assert client.outcomes["sound"].ids == (A, EOS_ID)
    assert scheduler.stats().failed == 1


def test_nan_after_the_end_is_nobodys_business() -> None:
    def nan_at_the_end(result: StepResult) -> StepResult:
        result.scores[:, 3] = np.nan
        return result

    step = Failing(k=4)
    step.damage = nan_at_the_end
    (outcome,) = decode_all(step, [script(A, B)], 10)
    assert outcome.reason == "eos"


def test_a_step_of_the_wrong_shape_is_an_error() -> None:
    step = Failing(k=4)
    step.damage = lambda result: StepResult(result.tokens[:, :2], result.scores)
    (outcome,) = decode_all(step, [script(A, B)], 10)
    assert isinstance(outcome.error, InferenceFailed)
    assert "shape" in str(outcome.error)


def test_a_failing_admission_fails_that_request_alone() -> None:
    step = Failing(slots=2)
    scheduler = Scheduler(step, max_queue=5)
    client = Client(scheduler)
    client.ask("good", A, A, A)
    scheduler.run_once()
    step.admit_error = ValueError("bad shape")
    client.ask("bad", A)
    scheduler.run_once()
    step.admit_error = None
    client.ask("next", B)
    while scheduler.run_once():
        pass
    assert isinstance(client.outcomes["bad"].error, InferenceFailed)
    assert client.outcomes["good"].ids == (A, A, A, EOS_ID)
    assert client.outcomes["next"].ids == (B, EOS_ID)
    assert step.scripts == {}


def test_callbacks_that_raise_do_not_hurt_the_others() -> None:
    def broken(*_: object) -> Any:
        raise RuntimeError("broken callback")

    step = Failing(slots=4)
    step.release_error = RuntimeError("release")
    scheduler = Scheduler(step, max_queue=5)
    client = Client(scheduler)
    scheduler.submit(DecodeRequest(script(A), 10, on_done=broken))
    client.ask("asked", A, A, cancelled=broken)
    client.ask("streamed", A, A, on_tokens=broken)
    client.ask("good", A, B)
    while scheduler.run_once():
        pass
    assert isinstance(client.outcomes["asked"].error, Cancelled)
    assert isinstance(client.outcomes["streamed"].error, Cancelled)
    assert client.outcomes["good"].ids == (A, B, EOS_ID)
    check_books(scheduler)
    assert scheduler.stats().slots_in_use == 0


def test_tokens_are_streamed_without_eos() -> None:
    scheduler = Scheduler(ScriptedStep(k=2), max_queue=0)
    client = Client(scheduler)
    parts: list[tuple[list[int], list[float]]] = []
    client.ask("s", A, B, C, A, on_tokens=lambda ids, s: parts.append((list(ids), list(s))))
    while scheduler.run_once():
        pass
    assert parts == [([A, B], [-0.5, -0.5]), ([C, A], [-0.5, -0.5])]
    parts.clear()
    client.ask("t", A, B, C, on_tokens=lambda ids, s: parts.append((list(ids), list(s))))
    while scheduler.run_once():
        pass
    assert [ids for ids, _ in parts] == [[A, B], [C]]


def test_bad_parameters_are_refused() -> None:
    with pytest.raises(BadParameter):
        Scheduler(ScriptedStep(slots=0), max_queue=1)
    with pytest.raises(BadParameter):
        Scheduler(ScriptedStep(), max_queue=-1)
    with pytest.raises(BadParameter, match="max_tokens"):
        Client(Scheduler(ScriptedStep(), max_queue=1)).ask("a", A, max_tokens=0)


# With its thread


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
