"""Who is let in when a server is full, and what the others are told."""

from __future__ import annotations

import pytest

from client.retry import Deadline, Retrier, Retry
from hmer.errors import Overloaded, from_wire
from hmer.room import BURST_S, Room


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def let_in(room: Room, inside: int, priority: str = "interactive") -> bool:
    try:
        room.enter(inside, priority)
    except Overloaded:
        return False
    return True


def made(clock: Clock, max_wait_s: float = 0.1) -> Room:
    """A room whose first second is over."""
    room = Room(16, max_wait_s, clock)
    clock.now += 2 * BURST_S
    return room


def standing(room: Room, clock: Clock, pace: float, inside: int, count: int = 200) -> None:
    """A server that has been busy, an answer every ``pace`` seconds."""
    for _ in range(count):
        clock.now += pace
        room.left(1, inside)


def test_a_full_server_lets_nobody_in() -> None:
    clock = Clock()
    room = made(clock)
    standing(room, clock, 0.05, 15)
    assert let_in(room, 15)
    assert not let_in(room, 16)


def test_a_fast_server_lets_in_what_it_has_soon_done() -> None:
    clock = Clock()
    room = made(clock)
    standing(room, clock, 0.001, 15, 400)
    assert let_in(room, 99)
    assert not let_in(room, 101)
    standing(room, clock, 0.004, 15, 400)  # it has become slower
    assert let_in(room, 24)
    assert not let_in(room, 26)
    clock.now += 5
    standing(
        room, clock, 30.0, 15, 1
    )  # a machine that stood still for a while is not full for ever
    assert let_in(room, 15)


def test_the_pace_of_an_idle_server_says_nothing() -> None:
    clock = Clock()
    room = made(clock)
    standing(room, clock, 60.0, 0)
    standing(room, clock, 0.001, 15)
    assert let_in(room, 90)


def test_a_burst_is_no_load() -> None:
    clock = Clock()
    room = Room(16, 0.1, clock)
    assert let_in(room, 0)
    clock.now += BURST_S * 0.9
    assert let_in(room, 200)
    clock.now += BURST_S * 0.2
    assert not let_in(room, 200)
    room.left(1, 8)  # half of it is load, too
    assert not let_in(room, 16)
    room.left(1, 7)
    assert let_in(room, 16)


def test_what_can_wait_has_all_of_the_room_unless_people_ask() -> None:
    clock = Clock()
    room = made(clock)
    standing(room, clock, 0.05, 15)
    assert let_in(room, 15, "batch")
    assert not let_in(room, 16, "batch")
    assert let_in(room, 15)
    assert let_in(room, 7, "batch")
    assert not let_in(room, 8, "batch")
    clock.now += 1.5
    assert let_in(room, 15, "batch")


def test_no_limit_but_that_of_the_queue() -> None:
    clock = Clock()
    room = made(clock, 0.0)
    standing(room, clock, 1.0, 200)
    assert let_in(room, 200)


def test_a_refusal_says_when_and_the_client_waits() -> None:
    clock = Clock()
    room = made(clock)
    standing(room, clock, 0.25, 15)
    with pytest.raises(Overloaded, match="16 pictures") as caught:
        room.enter(16, "interactive")
    error = from_wire("in ensemble: " + caught.value.to_wire())
    assert isinstance(error, Overloaded)
    assert error.retry_after == pytest.approx(2.0)
    assert Overloaded("Full.").retry_after is None
    slept: list[float] = []
    answers: list[object] = [error, Overloaded("Full."), "an answer"]

    def send(_: float | None) -> object:
        answer = answers.pop(0)
        if isinstance(answer, Overloaded):
            raise answer
        return answer

    retrier = Retrier(Retry(first=0.1), sleep=slept.append)
    assert retrier.run(send, Deadline(None), "here") == "an answer"
    assert 2.0 <= slept[0] <= 3.0
    assert 0.1 <= slept[1] <= 0.2  # no hint: the back-off
    with pytest.raises(Overloaded):  # it would be too late by then
        retrier.run(lambda _: send(None) if answers else _raise(error), Deadline(1.0), "here")
    assert len(slept) == 2


def _raise(error: Overloaded) -> object:
    raise error
