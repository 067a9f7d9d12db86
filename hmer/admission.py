"""Who may decode: the queue of waiting requests, bounded, and the slots that are free.

All that a submitting thread touches of the scheduler is here, behind one lock; no callback and
no step runs under it. First come, first served within a priority (``hmer.priority``), but for
short formulas, which go first (``hmer.overtaking``): a long one keeps its slot for many calls. A
beam that needs more slots than are free keeps its place at the head; nobody overtakes it there.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from hmer.decode_types import DecodeRequest
from hmer.errors import BadParameter, HmerError, Overloaded, ServerUnavailable
from hmer.overtaking import Overtaking
from hmer.priority import PriorityLine


@dataclass(eq=False)
class Waiting:
    """A request in the queue ``since`` a time of the scheduler's clock."""

    request: DecodeRequest
    since: float

    @property
    def size(self) -> int:
        """Positions of its features: how long the formula is likely to be."""
        height, width = self.request.encoded.values.shape[:2]
        return int(height * width)


class Admission:
    """``slots`` slots, all free, and a queue of at most ``max_queue`` that find none."""

    def __init__(self, slots: int, max_queue: int) -> None:
        """Raises ``BadParameter``."""
        if max_queue < 0 or slots < 1:
            raise BadParameter(
                f"A scheduler needs at least 1 slot and a queue of at least 0, not {slots} and "
                f"{max_queue}."
            )
        self.accepted = self.rejected = 0
        self._slots, self._max_queue = slots, max_queue
        self._wake = threading.Condition()
        self._queue: PriorityLine[Waiting] = PriorityLine()
        self._small = Overtaking()  # by positions
        self._free = list(range(slots - 1, -1, -1))
        self._asked = 0  # how many waiting requests were asked whether they are cancelled
        self._stopping = False

    def __len__(self) -> int:
        """How many requests wait."""
        return len(self._queue)

    @property
    def stopping(self) -> bool:
        """Whether ``stop`` was called."""
        return self._stopping

    def submit(self, entry: Waiting) -> None:
        """Queue ``entry``. Raises ``Overloaded`` or, once stopped, ``ServerUnavailable``."""
        with self._wake:
            if self._stopping:
                raise ServerUnavailable("The decoder is shutting down and takes no more requests.")
            if self._would_wait(entry) > self._max_queue:
                self.rejected += 1
                raise Overloaded(
                    f"The decoder is full: {self._slots - len(self._free)} of {self._slots} slots "
                    f"at work and {len(self._queue)} requests waiting. Try again later."
                )
            self._queue.push(entry, entry.request.priority)
            self._small.came(entry.size)
            self.accepted += 1
            self._wake.notify()

    def _would_wait(self, entry: Waiting) -> int:
        """How many requests cannot start at once, with ``entry`` behind those in the queue."""
        if len(self._queue) < self._max_queue:
            return 0  # as far as anybody needs to know
        free = len(self._free)
        for place, other in enumerate((*self._queue, entry)):
            free -= other.request.rows
            if free < 0:
                return len(self._queue) + 1 - place
        return 0

    def wait(self, busy: bool) -> bool:
        """Sleep until there is something to do (``busy``: there is); ``False`` once stopped."""
        with self._wake:
            while not (self._queue or busy or self._stopping):
                self._wake.wait()
            return not self._stopping

    def sweep(self, now: float) -> dict[Waiting, HmerError]:
        """Take late and cancelled requests out of the queue, with the reasons.

        Asking whether one is cancelled may be a trip to another process, so a long queue is
        asked in turns: as many a step as there are slots.
        """
        with self._wake:
            waiting = list(self._queue)
        gone: dict[Waiting, HmerError] = {}
        if not waiting:
            return gone
        turns = min(len(waiting), self._slots)
        asked = {(self._asked + turn) % len(waiting) for turn in range(turns)}
        self._asked += turns
        for place, entry in enumerate(waiting):
            if (error := entry.request.ended(now, ask=place in asked)) is not None:
                gone[entry] = error
        if gone:
            with self._wake:  # more may have joined the queue meanwhile
                self._queue.remove(gone.__contains__)
        return gone

    def next(self) -> tuple[Waiting, tuple[int, ...]] | None:
        """Who is next, with the slots that it gets, if enough are free for the queue's head."""
        with self._wake:
            if not self._queue or self._queue.peek().request.rows > len(self._free):
                return None
            entry = self._take()
            return entry, tuple(self._free.pop() for _ in range(entry.request.rows))

    def _take(self) -> Waiting:
        head = self._queue.peek()
        able = (
            other
            for other in self._queue
            if other.request.priority == head.request.priority
            and other.request.rows <= len(self._free)
        )
        entry = self._small.first(able, lambda other: other.size)
        if entry is None or entry is head:
            self._small.turn()
            return self._queue.pop()
        self._small.overtook(entry.size)
        self._queue.remove(lambda other: other is entry)
        return entry

    def give_back(self, slots: Sequence[int]) -> None:
        """Slots are free again."""
        with self._wake:
            self._free.extend(slots)

    def stop(self) -> None:
        """Accept nothing more, and wake who waits."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()

    def drain(self) -> list[Waiting]:
        """Empty the queue."""
        with self._wake:
            waiting = list(self._queue)
            self._queue.clear()
        return waiting
