"""The scheduler, on scripted step functions."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from hmer.decode import Scheduler, StepResult, decode_all
from hmer.errors import (
    Cancelled,
    DeadlineExceeded,
    Overloaded,
)
from hmer.vocab import EOS_ID
from tests.decode_client import Client, Clock, check_books
from tests.decode_fixtures import ScriptedStep, script

A, B, C = 5, 6, 7


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
