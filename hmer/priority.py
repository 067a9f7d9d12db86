"""A waiting line with two classes: what a person waits for goes before what can wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from hmer.serving import INTERACTIVE, PRIORITIES

T = TypeVar("T")

# So that what can wait does not wait for ever: every so many-th is taken from there.
SHARE = 8


class PriorityLine(Generic[T]):
    """First come, first served within a class; interactive before batch, but for every eighth."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[T]] = {name: deque() for name in PRIORITIES}
        self._passed = 0  # how many interactive ones overtook since a batch one was taken

    def push(self, item: T, priority: str = INTERACTIVE) -> None:
        """Join the end of the class's line."""
        self._lines[priority].append(item)

    def peek(self) -> T:
        """Who is next. Raises ``IndexError`` if nobody is."""
        return self._next()[0]

    def pop(self) -> T:
        """Take who is next. Raises ``IndexError`` if nobody is."""
        line = self._next()
        first, second = self._lines.values()
        self._passed = self._passed + 1 if line is first and second else 0
        return line.popleft()

    def _next(self) -> deque[T]:
        first, second = self._lines.values()
        if first and not (second and self._passed >= SHARE - 1):
            return first
        return second or first

    def remove(self, gone: Callable[[T], bool]) -> None:
        """Take out whoever is ``gone``."""
        for name, line in self._lines.items():
            if any(map(gone, line)):
                self._lines[name] = deque(item for item in line if not gone(item))

    def clear(self) -> None:
        """Send everybody away."""
        for line in self._lines.values():
            line.clear()

    def __len__(self) -> int:
        """How many wait."""
        return sum(map(len, self._lines.values()))

    def __iter__(self) -> Iterator[T]:
        """Everybody, interactive first."""
        for line in self._lines.values():
            yield from line
