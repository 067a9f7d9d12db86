"""What a front counts (``model_repository.decode.metrics`` has the table)."""

from __future__ import annotations

import threading
from collections import Counter

from hmer.errors import Cancelled, DeadlineExceeded, HmerError, InputError, Overloaded
from model_repository.publisher import Histogram, Value


class FrontStats:
    """Counters since the start; usable by several threads."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._counts: Counter[str] = Counter()
        self._queue, self._request, self._first = Histogram(), Histogram(), Histogram()
        self._lock = threading.Lock()

    def count(self, name: str) -> None:
        """One more."""
        with self._lock:
            self._counts[name] += 1

    def waited(self, seconds: float) -> None:
        """A request set out after so long."""
        self._queue.observe(seconds)

    def answered(self, seconds: float, first_token: float | None) -> None:
        """A request was answered after so long."""
        self.count("completed_total")
        self._request.observe(seconds)
        if first_token is not None:
            self._first.observe(first_token)

    def failed(self, error: HmerError) -> None:
        """A request was answered with ``error``."""
        kinds: tuple[tuple[type[HmerError], str], ...] = (
            (Cancelled, "cancelled_total"),
            (DeadlineExceeded, "deadline_total"),
            (Overloaded, "rejected_total"),
            (InputError, "bad_input_total"),
        )
        name = next((n for kind, n in kinds if isinstance(error, kind)), "failed_total")
        self.count(name)

    def values(self) -> dict[str, Value]:
        """By the names in the table."""
        with self._lock:
            counts = dict(self._counts)
        outcomes = ("completed", "cancelled", "deadline", "bad_input", "rejected", "failed")
        names = [f"{name}_total" for name in ("received", *outcomes)]
        found: dict[str, Value] = {name: counts.get(name, 0) for name in names}
        return found | {
            "workers": self._workers,
            "queue_seconds": self._queue,
            "request_seconds": self._request,
            "first_token_seconds": self._first,
        }
