"""When to send a request again, and how long to wait before that."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from hmer.errors import DeadlineExceeded, Overloaded, ServerUnavailable

T = TypeVar("T")


class Deadline:
    """A moment by which a request, with all its attempts, must be answered."""

    def __init__(self, timeout: float | None) -> None:
        """``timeout`` in seconds from now; ``None``: no limit."""
        self.timeout = timeout
        self._end = None if timeout is None else time.monotonic() + timeout

    def remaining(self) -> float | None:
        """Seconds left, at least 0; ``None`` without a limit."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def exceeded(self, url: str) -> DeadlineExceeded:
        """The error to raise when the time is up; ``url`` names who did not answer."""
        return DeadlineExceeded(
            f"The server at {url} gave no answer within {self.timeout:g} seconds. Allow more time "
            "with --timeout (timeout=), or send fewer requests at once."
        )


@dataclass(frozen=True)
class Retry:
    """Attempts with exponential back-off and jitter, for a server that is absent or full.

    A full server says when it expects to have room (``Overloaded.retry_after``).

    Recognition changes nothing on the server, so sending a request twice is safe. Only
    ``ServerUnavailable`` and ``Overloaded`` are tried again: every other error would come back.
    A server that has answered before and is gone is likely to be starting again
    (``hmer-serve --supervise``, a container's restart), and a full one that names a time is at
    work, so these get pauses of ``patience`` in all.
    """

    attempts: int = 5
    first: float = 0.1  # seconds before the second attempt, doubled for each further one
    longest: float = 2.0  # seconds
    patience: float = 20.0  # seconds; not with a single attempt

    def wait(self, attempt: int, hint: float | None = None) -> float:
        """Seconds to wait after ``attempt`` (from 1): between half and all of the back-off.

        After a ``hint`` of the server's, in seconds, between all and half as much again of the
        longer of the two: to come earlier is of no use.
        """
        backoff = min(self.longest, self.first * 2.0 ** (attempt - 1))
        # Jitter, so that clients that failed together do not come back together.
        if hint is None:
            return backoff * random.uniform(0.5, 1.0)
        return max(backoff / 1.5, hint) * random.uniform(1.0, 1.5)


DEFAULT_RETRY = Retry()
# What closes the connection sooner than this is no server of ours, but another kind of port.
_AT_WORK_S = 0.2


class Retrier:
    """Runs requests by a ``Retry`` policy, and remembers a server that stays away.

    Once a request has spent all its attempts on ``ServerUnavailable``, later ones get a single
    attempt until one is answered: a thousand files do not wait a thousand back-offs.
    """

    def __init__(self, policy: Retry, sleep: Callable[[float], None] = time.sleep) -> None:
        """``sleep`` takes seconds; tests give their own."""
        self._policy = policy
        self._sleep = sleep
        self._absent = False  # plain flags: a race costs one attempt more or less
        self._known = False  # it has answered

    def run(
        self,
        send: Callable[[float | None], T],
        deadline: Deadline,
        url: str,
        sleep: Callable[[float], object] | None = None,
    ) -> T:
        """``send(seconds left)`` until it succeeds; ``sleep`` instead of the retrier's own.

        Raises the last attempt's error, or ``DeadlineExceeded``.
        """
        sleep = sleep or self._sleep
        attempt, paused = 1, 0.0
        while True:
            remaining = deadline.remaining()
            if remaining == 0.0:
                raise deadline.exceeded(url)
            sent = time.monotonic()
            try:
                answer = send(remaining)
            except (ServerUnavailable, Overloaded) as error:
                absent = isinstance(error, ServerUnavailable)
                if isinstance(error, ServerUnavailable) and error.taken:  # it was at work on it
                    self._known |= time.monotonic() - sent > _AT_WORK_S
                hint = error.retry_after if isinstance(error, Overloaded) else None
                pause = self._policy.wait(attempt, hint)
                waits = self._known if absent else hint is not None
                if not self._again(absent, waits, attempt, paused + pause):
                    self._absent = absent
                    raise
                remaining = deadline.remaining()
                if remaining is not None and pause >= remaining:
                    raise  # why it failed says more than that the time is up
                sleep(pause)
                paused += pause
                attempt += 1
            else:
                self._absent, self._known = False, True
                return answer

    def _again(self, absent: bool, waits: bool, attempt: int, paused: float) -> bool:
        """Whether ``attempt`` is followed by another one, after pauses of ``paused`` seconds.

        ``waits``: there is a reason to go on after the usual number of attempts.
        """
        policy = self._policy
        if policy.attempts == 1 or (absent and self._absent):
            return False
        return attempt < policy.attempts or (waits and paused <= policy.patience)
