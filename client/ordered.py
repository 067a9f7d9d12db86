"""Many at a time, answered in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from hmer.errors import BadParameter, HmerError

S = TypeVar("S")
T = TypeVar("T")


def attempt(function: Callable[..., T], *arguments: object) -> T | HmerError:
    """The result, or the ``HmerError`` as a value: one input's fault must not stop the others."""
    try:
        return function(*arguments)
    except HmerError as error:
        return error


def check_concurrency(concurrency: int) -> None:
    """Raises ``BadParameter`` below 1."""
    if concurrency < 1:
        raise BadParameter(f"The concurrency must be at least 1, not {concurrency}.")


def ordered(function: Callable[[S], T], items: Iterable[S], concurrency: int) -> Iterator[T]:
    """``function`` of each item, in order, at most ``concurrency`` at a time, each in a thread.

    ``items`` is read as results are taken, so it may be endless. Ending the iteration early leaves
    what is under way to end by itself.
    """
    # Twice as many are taken from `items` as are worked on at a time: a slow one at the head must
    # not leave the others' places empty.
    window: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="hmer-client")
    try:
        for item in items:
            window.append(pool.submit(function, item))
            while window and (len(window) >= 2 * concurrency or window[0].done()):
                yield window.popleft().result()
        while window:
            yield window.popleft().result()
    finally:
        # Not waiting: after Ctrl-C or a `break`, closing the recogniser ends what is under way.
        pool.shutdown(wait=False, cancel_futures=True)
