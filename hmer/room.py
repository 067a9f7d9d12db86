"""Whether there is room for one more: admission by how long it would wait, not by how many wait.

A queue that is bounded by its length alone is full all the time when more is asked for than can be
done, and whoever is let in waits for all of it: at twice the capacity, with 256 places, twenty
times as long as at 80 % of it. So the server is *full* at as many pictures as its decoder has slots
for, enough to keep it busy and no more. Beyond that a picture is let in

- where the pictures ahead of it are done within ``max_wait_s``, by the pace that was seen while
  many were inside, so a fast machine takes more; or
- in a burst: within ``BURST_S`` after the server was half empty. A standing queue is load, one
  that has just formed is chance (as in CoDel: Nichols and Jacobson, "Controlling Queue Delay",
  2012).

While people ask, what can wait gets half of the room.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from hmer.errors import Overloaded
from hmer.serving import BATCH

BURST_S = 1.0
# So long after a person's last request batch ones may have all of the room again.
_ALONE_S = 1.0
# How fast the pace follows: about the last 32 answers count.
_FOLLOW = 1 / 32
_FIRST_PACE = 0.05  # seconds a picture, for hints, until one was seen
_LEAST_HINT_S = 0.05


class Room:
    """The rule and its memory; whoever uses it holds a lock.

    ``full``: pictures inside, those being served among them, at which the server is full.
    ``max_wait_s``: seconds; 0: there is always room.
    """

    def __init__(
        self, full: int, max_wait_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Nobody is inside."""
        self.full, self._max_wait, self._clock = full, max_wait_s, clock
        self._calm = clock()  # when fewer than half as many as fill it were inside
        self._person = -_ALONE_S  # when somebody asked who does not want to wait
        self._pace: float | None = None  # seconds a picture, while many are inside
        self._last: float | None = None  # when one left who left many behind

    def enter(self, inside: int, priority: str) -> None:
        """Let one more in beside ``inside`` pictures. Raises ``Overloaded``."""
        now = self._clock()
        if inside < self.full // 2:
            self._calm = now
        if priority != BATCH:
            self._person = now
        share = 1.0 if now - self._person >= _ALONE_S or priority != BATCH else 0.5
        if self._max_wait <= 0 or inside < share * self.full:
            return
        if self._pace is not None and inside * self._pace <= share * self._max_wait:
            return
        if share == 1.0 and now - self._calm < BURST_S:
            return
        raise self.refusal(f"{inside} pictures are at work or wait already.", inside)

    def refusal(self, reason: str, inside: int) -> Overloaded:
        """What somebody gets who finds no room: with when there is likely to be some."""
        pace = _FIRST_PACE if self._pace is None else self._pace
        return Overloaded.until(reason, max(_LEAST_HINT_S, pace * (inside - self.full // 2)))

    def left(self, pictures: int, inside: int) -> None:
        """A request of so many pictures was answered, and ``inside`` remain."""
        now = self._clock()
        if self._last is not None and pictures > 0:
            pace = (now - self._last) / pictures
            known = pace if self._pace is None else self._pace
            self._pace = known + (pace - known) * _FOLLOW
        busy = inside >= self.full // 2
        self._last = now if busy else None
        if not busy:
            self._calm = now
