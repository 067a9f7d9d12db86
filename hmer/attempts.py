"""Results or errors as values, and as a stream: one input's fault must not reach the others."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from hmer.errors import HmerError, InferenceFailed
from hmer.recognition import Partial, Recognition

_log = logging.getLogger(__name__)
T = TypeVar("T")


def attempt(function: Callable[..., T], *arguments: object) -> T | HmerError:
    """The result, or the error as a value; what nobody foresaw becomes ``InferenceFailed``."""
    try:
        return function(*arguments)
    except HmerError as error:
        return error
    except Exception as error:
        _log.exception("An input could not be processed.")
        return InferenceFailed(
            f"The input could not be processed ({type(error).__name__}: {error})."
        )


def streamed(
    work: Callable[[Callable[[Partial], None], Callable[[], bool]], Recognition],
) -> Iterator[Partial | Recognition]:
    """What ``work(put, given_up)`` puts while it runs, then its result.

    ``work`` has a thread of its own, so that whoever takes the parts slowly, or asks for
    something else between two of them, holds none of its locks. ``given_up`` tells it that the
    iteration ended early. Raises its error, an ``HmerError``.
    """
    events: queue.SimpleQueue[Partial | Recognition | HmerError] = queue.SimpleQueue()
    stopped = threading.Event()

    def run() -> None:
        events.put(attempt(work, events.put, stopped.is_set))

    threading.Thread(target=run, name="hmer-stream", daemon=True).start()
    try:
        while True:
            event = events.get()
            if isinstance(event, HmerError):
                raise event
            yield event
            if isinstance(event, Recognition):
                return
    finally:
        stopped.set()
