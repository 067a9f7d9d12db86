"""A server under steady load for a long time: what it holds on to, and how fast it stays."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from benchmarks.figures import percentiles
from benchmarks.server_metrics import settled
from benchmarks.soak_mix import ANSWERED, LEFT, OK, REFUSED, Mix, Outcome, Request, Sender
from benchmarks.soak_watch import Held, held
from hmer.errors import Overloaded

_FULL = 16  # requests under way while the capacity is measured
_FULL_PAUSE_S = 0.05  # after a refusal, there
_SETTLING = 0.2  # share of the time that may still grow: caches, heaps, the longest formula
_ENDS = 0.2  # share of the rest at each end that is compared
_MOST_WAITING = 2000  # under way at once: above it the server is not keeping up at all
GROWTH, SLOWER = 1.05, 1.25  # bounds of last over first
FULL_SHARE = 0.02  # of the requests may find no room: they come at random, in bursts
IDLE = ("hmer_decode_slots_in_use", "hmer_decode_queue_length", "hmer_recognize_queue_length")


@dataclass
class Soak:
    """What was seen: outcomes since the last glance, and the glances."""

    outcomes: list[Outcome] = field(default_factory=list)
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    series: list[dict[str, Any]] = field(default_factory=list)
    worst_late_s: float = 0.0

    def take(self, outcome: Outcome) -> None:
        """Count one."""
        self.outcomes.append(outcome)
        self.counts.setdefault(outcome.kind, Counter())[outcome.outcome] += 1

    def glance(self, t: float, seconds: float, found: Held | None, under_way: int) -> None:
        """Sum up the outcomes since the last one, ``seconds`` ago; ``t``: since the beginning."""
        recent, self.outcomes = self.outcomes, []
        ms = percentiles([o.latency * 1e3 for o in recent if o.kind in ANSWERED and not full(o)])
        self.series.append(
            {
                "t": t,
                "rate": len(recent) / seconds,
                "p50_ms": ms["p50"],
                "p95_ms": ms["p95"],
                "unexpected": sum(not expected(o) for o in recent),
                "under_way": under_way,
            }
            | (found.to_dict() if found else {})
        )


def full(outcome: Outcome) -> bool:
    """Whether the server had no room for it."""
    return outcome.outcome == Overloaded.code


def expected(outcome: Outcome) -> bool:
    """Whether this is what should become of such a request.

    A full server may refuse any (``Overloaded``); how many it does is judged apart.
    """
    return full(outcome) or outcome.outcome in {
        "bad": (REFUSED,),
        "cancelled": (LEFT, OK),
        "left stream": (LEFT, OK),
    }.get(outcome.kind, (OK,))


async def capacity(send: Sender, mix: Mix, seconds: float) -> float:
    """Requests of the mix a second, with many under way all the time."""
    end = time.perf_counter() + seconds
    done = 0

    async def worker() -> None:
        nonlocal done
        while (now := time.perf_counter()) < end:
            if full(await send(mix.draw(), now)):
                await asyncio.sleep(_FULL_PAUSE_S)
            else:
                done += 1

    begin = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(_FULL)))
    return done / (time.perf_counter() - begin)


async def run(
    send: Sender,
    mix: Mix,
    *,
    rate: float,
    seconds: float,
    every: float,
    pid: int | None,
    on_glance: Callable[[dict[str, Any]], None] = lambda glance: None,
    seed: int = 1,
) -> Soak:
    """Poisson arrivals at ``rate`` a second for ``seconds``; a glance ``every`` so many."""
    soak = Soak()
    rng = np.random.default_rng(seed)
    tasks: set[asyncio.Task[None]] = set()
    begin = time.perf_counter()

    async def one(request: Request, due: float) -> None:
        soak.take(await send(request, due))

    async def look() -> None:
        last = begin
        while True:
            await asyncio.sleep(last + every - time.perf_counter())
            found = await asyncio.to_thread(held, pid) if pid is not None else None
            now = time.perf_counter()
            soak.glance(now - begin, now - last, found, len(tasks))
            last = now
            on_glance(soak.series[-1])

    looking = asyncio.create_task(look())
    due = begin
    try:
        while (due := due + float(rng.exponential(1 / rate))) < begin + seconds:
            if (early := due - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            soak.worst_late_s = max(soak.worst_late_s, time.perf_counter() - due)
            if len(tasks) < _MOST_WAITING:
                task = asyncio.create_task(one(mix.draw(), due))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            else:
                soak.take(Outcome("picture", "not sent: too many under way", 0.0, due))
        if tasks:
            await asyncio.wait(tasks)
    finally:
        looking.cancel()
    return soak


def drift(series: Sequence[dict[str, Any]], value: Callable[[dict[str, Any]], Any]) -> Any:
    """``{"first", "last", "ratio", "per_hour"}`` of a value, once it has settled; else ``None``.

    Medians of the first and the last glances, and the slope of a straight line through all.
    """
    begin = series[-1]["t"] * _SETTLING if series else 0.0
    chosen = [(g["t"], value(g)) for g in series if g["t"] >= begin and value(g) is not None]
    ends = int(len(chosen) * _ENDS)
    if not ends:
        return None
    values = [v for _, v in chosen]
    first, last = statistics.median(values[:ends]), statistics.median(values[-ends:])
    slope = float(np.polyfit([t for t, _ in chosen], values, 1)[0]) * 3600
    ratio = last / first if first else None
    return {"first": first, "last": last, "ratio": ratio, "per_hour": slope}


def figures(soak: Soak, metrics: str | None) -> dict[str, Any]:
    """Drifts, counts and verdicts; ``metrics``: address of the page, read once all is quiet."""
    series = soak.series
    drifts = {
        "memory_mb": drift(series, lambda g: sum(g["own_mb"].values()) if "own_mb" in g else None),
        "fds": drift(series, lambda g: g.get("fds")),
        "threads": drift(series, lambda g: g.get("threads")),
        "shm_mb": drift(series, lambda g: g.get("shm_mb")),
        "p50_ms": drift(series, lambda g: g["p50_ms"]),
        "p95_ms": drift(series, lambda g: g["p95_ms"]),
    }
    for name in sorted({name for g in series for name in g.get("own_mb", ())}):
        drifts[f"memory_mb of {name}"] = drift(series, partial(_memory_of, name))
    wrong = sum(g["unexpected"] for g in series)
    sent = sum((one for one in soak.counts.values()), Counter[str]())
    refused = sent[Overloaded.code] / max(1, sent.total())
    left = {}
    if metrics is not None:
        page = settled(metrics)
        left = {name: page[name] for name in IDLE if name in page}
    verdicts = {name: _flat(drifts[name], GROWTH) for name in ("memory_mb", "fds", "shm_mb")}
    verdicts |= {name: _flat(drifts[name], SLOWER) for name in ("p50_ms", "p95_ms")}
    verdicts[f"room for all but {FULL_SHARE * 100:g} %"] = refused <= FULL_SHARE
    verdicts["every outcome as expected"] = wrong == 0 and bool(series)
    verdicts["nothing left in the server"] = not any(left.values()) if left else None
    return {
        "counts": {kind: dict(found) for kind, found in sorted(soak.counts.items())},
        "drift": drifts,
        "refused_share": refused,
        "left": left,
        "worst_late_s": soak.worst_late_s,
        "verdicts": verdicts,
        "series": series,
    }


def _memory_of(name: str, glance: dict[str, Any]) -> Any:
    return glance.get("own_mb", {}).get(name)


def _flat(found: dict[str, Any] | None, bound: float) -> bool | None:
    return None if found is None or found["ratio"] is None else bool(found["ratio"] <= bound)
