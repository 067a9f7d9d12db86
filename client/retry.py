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

    Recognition changes nothing on the server, so sending a request twice is safe. Only
    ``ServerUnavailable`` and ``Overloaded`` are tried again: every other error would come back.
    """

    attempts: int = 5
    first: float = 0.1  # seconds before the second attempt, doubled for each further one
    longest: float = 2.0  # seconds

    def wait(self, attempt: int) -> float:
        """Seconds to wait after ``attempt`` (from 1): between half and all of the back-off."""
        backoff = min(self.longest, self.first * 2.0 ** (attempt - 1))
        # Jitter, so that clients that failed together do not come back together.
        return backoff * random.uniform(0.5, 1.0)


DEFAULT_RETRY = Retry()


class Retrier:
    """Runs requests by a ``Retry`` policy, and remembers a server that stays away.

    Once a request has spent all its attempts on ``ServerUnavailable``, later ones get a single
    attempt until one is answered: a thousand files do not wait a thousand back-offs.
    """

    def __init__(self, policy: Retry, sleep: Callable[[float], None] = time.sleep) -> None:
        """``sleep`` takes seconds; tests give their own."""
        self._policy = policy
        self._sleep = sleep
        self._absent = False  # a plain flag: a race costs one attempt more or less

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
        attempt = 1
        while True:
            remaining = deadline.remaining()
            if remaining == 0.0:
                raise deadline.exceeded(url)
            try:
                answer = send(remaining)
            except (ServerUnavailable, Overloaded) as error:
                absent = isinstance(error, ServerUnavailable)
                attempts = 1 if absent and self._absent else self._policy.attempts
                if attempt >= attempts:
                    self._absent = absent
                    raise
                pause = self._policy.wait(attempt)
                remaining = deadline.remaining()
                if remaining is not None and pause >= remaining:
                    raise  # why it failed says more than that the time is up
                sleep(pause)
                attempt += 1
            else:
                self._absent = False
                return answer
