"""Who may go before those that came earlier: what is small beside what was asked for of late.

A short formula is little work: it delays the others by little, and would else wait for many times
its own time. Small by rank, not beside the mean: sizes are so skewed that half of them lie far
below it, and where the half overtakes, the other half's waiting is beyond all measure. Small ones
overtake until they have taken as much work as one ordinary request; then it is the others' turn,
so nobody waits for ever.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")

# A request is small if it is among this share of the last ``RECENT`` ones.
SMALL = 0.3
RECENT = 64


class Overtaking:
    """The rule and its memory; sizes are in any unit that work grows with. For one thread."""

    def __init__(self) -> None:
        self._recent: deque[int] = deque(maxlen=RECENT)
        self._overtook = 0  # the sizes that overtook since the others' last turn

    def came(self, size: int) -> None:
        """A request of this ``size`` joined the queue."""
        self._recent.append(size)

    def first(self, waiting: Iterable[T], size: Callable[[T], int]) -> T | None:
        """The first of ``waiting`` that may overtake now."""
        if not self._recent:
            return None
        mean = sum(self._recent) / len(self._recent)
        small = sorted(self._recent)[int(SMALL * len(self._recent))]
        limit = min(small, mean - self._overtook)
        return next((item for item in waiting if size(item) <= limit), None)

    def overtook(self, size: int) -> None:
        """One of this ``size`` went before its turn."""
        self._overtook += size

    def turn(self) -> None:
        """One went whose turn it was."""
        self._overtook = 0
