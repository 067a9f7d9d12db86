"""Closed and open loops of requests, and what they saw.

A *closed* loop keeps a number of requests under way: each one's answer sends the next, as
callers do that wait. An *open* loop sends at times that were drawn beforehand, as the public
does: a slow server is not spared. Its latencies count from the time at which a request was due,
not from when it went out, so a stall is seen by everyone that it delayed (no coordinated
omission).
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.asking import Ask, Reply
from hmer.errors import HmerError, Overloaded

Clock = Callable[[], float]


@dataclass(frozen=True)
class Sample:
    """One request: which input, when it was due, sent and answered (seconds), and the answer."""

    index: int
    due: float
    sent: float
    done: float
    reply: Reply

    @property
    def latency(self) -> float:
        """Seconds from when it was due."""
        return self.done - self.due

    @property
    def tokens(self) -> tuple[str, ...] | None:
        """The answer; ``None`` for an error."""
        return None if isinstance(self.reply, HmerError) else self.reply


@dataclass(frozen=True)
class Run:
    """``samples`` are those that count. ``finished`` answers came within ``seconds``.

    In a closed loop the window opens when the first counted request is sent, with the loop full,
    and closes with the last counted answer, the loop still full: neither filling nor emptying it
    is in ``throughput``. In an open one it lasts from the first request due to the last answer.
    """

    samples: list[Sample]
    finished: int
    seconds: float

    @property
    def throughput(self) -> float:
        """Answers a second, errors not among them."""
        return self.finished / self.seconds if self.seconds > 0 else 0.0


async def closed_loop(
    ask: Ask,
    order: Sequence[int],
    concurrency: int,
    *,
    lead_in: int | None = None,
    clock: Clock = time.perf_counter,
) -> Run:
    """Send the inputs of ``order``, with ``concurrency`` requests under way all the time.

    ``lead_in`` requests before them (by default as many as are under way; none for one) and those
    sent until the last counted answer keep the loop full, and do not count. A caller that a full
    server refuses comes back when it was told to.
    """
    if lead_in is None:
        lead_in = concurrency if concurrency > 1 else 0
    plan = itertools.chain(
        ((False, order[-1 - i % len(order)]) for i in range(lead_in)),
        ((True, index) for index in order),
        ((False, index) for index in itertools.cycle(order)),
    )
    everything: list[Sample] = []
    counted: list[Sample] = []

    async def worker() -> None:
        while len(counted) < len(order):
            counts, index = next(plan)
            sent = clock()
            reply = await ask(index)
            sample = Sample(index, sent, sent, clock(), reply)
            everything.append(sample)
            if counts:
                counted.append(sample)
            if isinstance(reply, Overloaded) and reply.retry_after is not None:
                await asyncio.sleep(reply.retry_after)

    await asyncio.gather(*(worker() for _ in range(concurrency)))
    begin = min(sample.sent for sample in counted)
    end = max(sample.done for sample in counted)
    within = sum(begin < s.done <= end and s.tokens is not None for s in everything)
    return Run(counted, within, end - begin)


async def open_loop(
    ask: Ask, order: Sequence[int], due: Sequence[float], *, clock: Clock = time.perf_counter
) -> Run:
    """Send input ``order[i]`` at ``due[i]`` seconds, whatever has been answered by then."""
    begin = clock()

    async def send(index: int, at: float) -> Sample:
        await asyncio.sleep(max(0.0, begin + at - clock()))
        sent = clock()
        reply = await ask(index)
        return Sample(index, begin + at, sent, clock(), reply)

    tasks = [send(index, at) for index, at in zip(order, due, strict=True)]
    samples = list(await asyncio.gather(*tasks))
    end = max(sample.done for sample in samples)
    answered = sum(sample.tokens is not None for sample in samples)
    return Run(samples, answered, end - begin - due[0])


async def probe_loop(
    ask: Ask,
    probes: Sequence[int],
    others: Sequence[int],
    concurrency: int,
    count: int,
    *,
    clock: Clock = time.perf_counter,
) -> list[Sample]:
    """``count`` requests of ``probes``, one at a time, beside ``concurrency`` - 1 of ``others``.

    The first one, which may find the server still filling, does not count.
    """
    found: list[Sample] = []
    rest = itertools.cycle(others)

    async def neighbour() -> None:
        while len(found) <= count:
            await ask(next(rest))

    async def probe() -> None:
        for index in itertools.islice(itertools.cycle(probes), count + 1):
            sent = clock()
            reply = await ask(index)
            found.append(Sample(index, sent, sent, clock(), reply))

    await asyncio.gather(probe(), *(neighbour() for _ in range(concurrency - 1)))
    return found[1:]


def poisson(rate: float, count: int, seed: int = 0) -> list[float]:
    """``count`` arrival times, in seconds from 0, of a Poisson process with ``rate`` a second."""
    gaps = np.random.default_rng(seed).exponential(1.0 / rate, count)
    return [float(t) for t in np.cumsum(gaps) - gaps[0]]
