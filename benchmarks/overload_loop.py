"""An open loop that may last for hours at more than a server takes, and each request's fate.

As ``benchmarks.loops.open_loop``, but the times are drawn as they come, a request's coroutine lives
from when it is due to its answer, and a refusal is an answer like others: nothing is tried again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from benchmarks.asking import Ask, Reply
from hmer.errors import DeadlineExceeded, HmerError, InputError, Overloaded

Clock = Callable[[], float]

# A server that lets requests pile up beyond this is broken; so is what would be measured then.
MOST_UNDER_WAY = 20_000


class Fate(Enum):
    """What became of a request. ``LOST``: it was accepted, as far as anybody knows, and failed."""

    ANSWERED = "answered"
    REFUSED = "refused"
    LATE = "deadline_exceeded"
    BAD_INPUT = "bad_input"
    LOST = "lost"
    UNSENT = "unsent"


@dataclass(frozen=True)
class Sent:
    """One request; times in seconds since the phase began. ``hint``: its refusal said when to try
    again. ``reason``: of a request that was lost."""

    due: float
    sent: float
    done: float
    priority: str
    fate: Fate
    hint: bool = False
    reason: str = ""

    @property
    def latency_ms(self) -> float:
        """From when it was due."""
        return (self.done - self.due) * 1e3

    @property
    def late_ms(self) -> float:
        """By how much the generator itself missed the time."""
        return (self.sent - self.due) * 1e3


def fate_of(reply: Reply) -> Fate:
    """What a reply means."""
    kinds: tuple[tuple[type[HmerError], Fate], ...] = (
        (Overloaded, Fate.REFUSED),
        (DeadlineExceeded, Fate.LATE),
        (InputError, Fate.BAD_INPUT),
        (HmerError, Fate.LOST),
    )
    return next((fate for kind, fate in kinds if isinstance(reply, kind)), Fate.ANSWERED)


async def poisson_loop(
    asks: Mapping[str, Ask],
    inputs: int,
    rate: float,
    seconds: float,
    *,
    seed: int = 0,
    most: int = MOST_UNDER_WAY,
    clock: Clock = time.perf_counter,
) -> list[Sent]:
    """Ask for ``seconds`` at ``rate`` a second: every request in the order in which it was due.

    ``asks``: by priority, each drawn equally often. ``inputs``: so many, in an order of their own
    in every turn. Returns once everything is answered.
    """
    rng = np.random.default_rng(seed)
    names = list(asks)
    found: list[Sent | None] = []
    tasks: set[asyncio.Task[None]] = set()
    begin = clock()

    async def send(place: int, name: str, index: int, due: float) -> None:
        sent = clock() - begin
        reply = await asks[name](index)
        fate = fate_of(reply)
        hint = isinstance(reply, Overloaded) and reply.retry_after is not None
        reason = str(reply)[:200] if fate is Fate.LOST else ""
        found[place] = Sent(due, sent, clock() - begin, name, fate, hint, reason)

    due = float(rng.exponential(1.0 / rate))
    order: Sequence[int] = ()
    while due < seconds:
        if (ahead := begin + due - clock()) > 0:
            await asyncio.sleep(ahead)
        if not len(order):
            order = [int(i) for i in rng.permutation(inputs)]
        index, order = order[0], order[1:]
        name = names[int(rng.integers(len(names)))]
        if len(tasks) < most:
            found.append(None)
            task = asyncio.create_task(send(len(found) - 1, name, index, due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        else:
            found.append(Sent(due, due, due, name, Fate.UNSENT))
        due += float(rng.exponential(1.0 / rate))
    while tasks:
        await asyncio.gather(*tasks)
    return [sent for sent in found if sent is not None]
