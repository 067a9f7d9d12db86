"""A server under load, looked at now and then: its queues, slots, memory and threads over time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.load import Server
from benchmarks.process_tree import threads, usage
from benchmarks.server_metrics import GAUGES, read_metrics
from hmer.errors import ServerUnavailable

Glance = dict[str, Any]


def glance(server: Server) -> Glance:
    """The gauges, memory and threads now; what cannot be read is left out."""
    found: Glance = {}
    if server.metrics is not None:
        with contextlib.suppress(ServerUnavailable):  # too busy for it
            values = read_metrics(server.metrics)
            found |= {name: values[key] for name, key in GAUGES.items() if key in values}
    if server.pid is not None:
        seen = usage(server.pid)
        found |= {"pss_mb": seen.total_mb, "threads": threads(server.pid), "cpu_s": seen.cpu_s}
    return found


@asynccontextmanager
async def looking(server: Server, every: float) -> AsyncIterator[list[Glance]]:
    """Glances every so many seconds while the body runs; ``t`` of each in seconds since then."""
    glances: list[Glance] = []
    began = time.perf_counter()

    async def look() -> None:
        while True:
            at = time.perf_counter() - began
            glances.append({"t": round(at, 3), **await asyncio.to_thread(glance, server)})
            await asyncio.sleep(every)

    task = asyncio.create_task(look())
    try:
        yield glances
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def series(glances: Sequence[Glance], *names: str) -> list[float]:
    """What the ``names`` add up to in every glance that has them all."""
    return [
        sum(float(one[name]) for name in names)
        for one in glances
        if all(name in one for name in names)
    ]


def thirds(values: Sequence[float]) -> tuple[float, float] | None:
    """The means of the second and of the last third, the first being what it takes to fill.

    ``None`` of fewer than six values.
    """
    n = len(values) // 3
    if n < 2:
        return None
    middle, last = values[n : 2 * n], values[-n:]
    return sum(middle) / len(middle), sum(last) / len(last)
