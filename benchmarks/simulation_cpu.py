"""CPUs that work shares, in simulated time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from hmer.errors import MissingDependency

if TYPE_CHECKING:
    import simpy

NICE = 1.25  # of Linux's scheduler: the weight of one step of niceness to the next
_DONE = 1e-9  # what is left of a piece of work when it counts as done


def simulation_library() -> Any:
    """The module ``simpy``. Raises ``MissingDependency``."""
    try:
        return import_module("simpy")
    except ImportError as error:
        raise MissingDependency(
            "The simulation needs simpy. Install it with: pip install 'hmer[bench]'"
        ) from error


class Meter:
    """A level over time: what it is, and its integral."""

    def __init__(self, env: simpy.Environment, level: float = 0.0) -> None:
        self._env, self.level, self._total, self._since = env, level, 0.0, env.now

    def add(self, change: float) -> None:
        """Change the level now."""
        self.set(self.level + change)

    def set(self, level: float) -> None:
        """Replace the level now."""
        self._total = self.total
        self.level, self._since = level, self._env.now

    @property
    def total(self) -> float:
        """Level times seconds until now."""
        return self._total + self.level * (self._env.now - self._since)


@dataclass(eq=False)
class _Work:
    seconds: Callable[[float], float]  # on so many CPUs
    threads: float
    done: simpy.Event
    weight: float = 1.0
    left: float = 1.0
    rate: float = 0.0


class Cpus:
    """``count`` CPUs under a fair scheduler; 0: as many as anybody asks for.

    Every piece of work wants a CPU for each of its threads. When all want more than there are,
    each thread gets a share by its weight (processor sharing), as Linux gives it to threads that
    are always ready; nobody gets more than he wants. ``shared_speed``: what is then left of a
    CPU's speed, as work that shares it also shares caches and the memory's bandwidth, and waits
    for its own other threads.
    """

    def __init__(self, env: simpy.Environment, count: int, shared_speed: float = 1.0) -> None:
        self._env, self._count = env, float(count) if count else math.inf
        self._shared_speed = shared_speed
        self._works: list[_Work] = []
        self._since = env.now
        self._turn = 0
        self.busy = Meter(env)

    def work(
        self, seconds: Callable[[float], float], threads: int = 1, nice: int = 0
    ) -> simpy.Event:
        """Begin work that takes ``seconds(cpus)`` on so many CPUs; the event is its end.

        ``nice``: as of Linux, where each step is worth a quarter of a share.
        """
        if math.isinf(self._count):  # nobody shares anything
            self.busy.add(threads)
            end = self._env.timeout(seconds(float(threads)))
            assert end.callbacks is not None
            end.callbacks.append(lambda _: self.busy.add(-threads))
            return end
        work = _Work(seconds, float(threads), self._env.event(), NICE**-nice)
        if seconds(work.threads) <= 0:
            work.done.succeed()
            return work.done
        self._advance()
        self._works.append(work)
        self._plan()
        return work.done

    def _advance(self) -> None:
        passed = self._env.now - self._since
        self._since = self._env.now
        for work in self._works:
            work.left -= passed * work.rate

    def _plan(self) -> None:
        """Share the CPUs anew, and wake when the next work is done."""
        ended = [work for work in self._works if work.left <= _DONE]
        if ended:
            self._works = [work for work in self._works if work.left > _DONE]
            for work in ended:
                work.done.succeed()
        self._turn += 1
        wanted = sum(work.threads for work in self._works)
        speed = 1.0 if wanted <= self._count else self._shared_speed
        self.busy.set(min(wanted, self._count))
        if not self._works:
            return
        after = math.inf
        for work, share in self._shares():
            seconds = work.seconds(share * speed)
            work.rate = 1.0 / seconds
            after = min(after, max(0.0, work.left) * seconds)
        turn = self._turn
        wake = self._env.timeout(after)
        assert wake.callbacks is not None
        wake.callbacks.append(lambda _: self._wake(turn))

    def _shares(self) -> list[tuple[_Work, float]]:
        """CPUs for each: by weight, up to its threads, and the rest to those who want more."""
        found: list[tuple[_Work, float]] = []
        wanting, left = self._works, self._count
        while wanting:
            level = left / sum(work.threads * work.weight for work in wanting)
            sated = [work for work in wanting if level * work.weight >= 1.0]
            if not sated:
                return found + [(work, work.threads * work.weight * level) for work in wanting]
            found += [(work, work.threads) for work in sated]
            left -= sum(work.threads for work in sated)
            wanting = [work for work in wanting if level * work.weight < 1.0]
        return found

    def _wake(self, turn: int) -> None:
        if turn == self._turn:  # otherwise something came or went, and planned anew
            self._advance()
            soonest = min(self._works, key=lambda work: work.left / work.rate)
            soonest.left = 0.0  # this is its time, whatever rounding has left of it
            self._plan()


def one_cpu(seconds: float) -> Callable[[float], float]:
    """Work of one thread that takes ``seconds`` on a CPU of its own."""
    return lambda cpus: seconds / cpus
