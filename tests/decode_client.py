"""A caller of the scheduler that keeps the outcomes, and a clock that is set by hand."""

from __future__ import annotations

import threading
from typing import Any

from hmer.decode import DecodeRequest, Outcome, Scheduler
from tests.decode_fixtures import script


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
