"""Ending a request from another thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Cancellation:
    """Given to a request, it ends the request when ``cancel`` is called, from any thread.

    The wire's own cancellation is used (gRPC's, or the end of the HTTP connection), so the server
    learns of it and frees what it holds. The HTTP front of Triton 2.51 passes that on for streams
    only: another request goes on until its deadline, which the server knows.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._actions: list[Callable[[], object]] = []

    @property
    def cancelled(self) -> bool:
        """Whether ``cancel`` was called."""
        return self._event.is_set()

    def cancel(self) -> None:
        """End what is under way and what comes later with this cancellation."""
        with self._lock:
            self._event.set()
            actions = list(self._actions)
        for action in actions:
            action()

    def wait(self, seconds: float) -> bool:
        """Sleep, but not beyond ``cancel``; whether it was called."""
        return self._event.wait(seconds)

    @contextmanager
    def during(self, action: Callable[[], object]) -> Iterator[None]:
        """Within the context ``cancel`` calls ``action``; at once if it was called before."""
        with self._lock:
            self._actions.append(action)
            late = self._event.is_set()
        try:
            if late:
                action()
            yield
        finally:
            with self._lock:
                self._actions.remove(action)
