"""A running server under load: one level after another, and what each showed."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.asking import Ask, GrpcAsker
from benchmarks.crohme import Expression
from benchmarks.figures import percentiles
from benchmarks.inputs import shuffled
from benchmarks.loops import Run, Sample, closed_loop, open_loop, poisson
from benchmarks.process_tree import cpu_seconds, usage
from hmer.errors import DeadlineExceeded, HmerError, Overloaded, ServerUnavailable
from hmer.score import LENGTHS, compare, summarise
from hmer.tables import Table

CLOSED, OPEN = "closed", "open"
_REFUSED = (Overloaded, ServerUnavailable)


@dataclass(frozen=True)
class Level:
    """One load: ``value`` requests under way (closed loop), or requests a second (open loop)."""

    kind: str
    value: float

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.value:g} at once" if self.kind == CLOSED else f"{self.value:g} a second"


def run_levels(
    url: str,
    expressions: Sequence[Expression],
    levels: Sequence[Level],
    *,
    requests: int,
    timeout: float,
    pid: int | None = None,
    warm_up: int = 16,
    on_level: Callable[[Level], None] = lambda level: None,
) -> list[dict[str, Any]]:
    """``requests`` counted requests at each level; the figures of each (``figures_of``).

    ``pid``: the server's process if it runs on this machine. Raises ``ServerUnavailable``.
    """

    async def work() -> list[dict[str, Any]]:
        found = []
        async with GrpcAsker(url, expressions, timeout=timeout) as ask:
            turns = shuffled(len(expressions))
            order = [turns[i % len(turns)] for i in range(requests)]
            if warm_up:
                await closed_loop(ask, [order[i % len(order)] for i in range(warm_up)], 4)
            for level in levels:
                on_level(level)
                found.append(await _measure(ask, level, order, expressions, pid))
        return found

    return asyncio.run(work())


async def _measure(
    ask: Ask, level: Level, order: Sequence[int], expressions: Sequence[Expression], pid: int | None
) -> dict[str, Any]:
    cpu = cpu_seconds(pid) if pid is not None else 0.0
    own, wall = time.process_time(), time.perf_counter()
    if level.kind == CLOSED:
        run = await closed_loop(ask, order, int(level.value))
    else:
        run = await open_loop(ask, order, poisson(level.value, len(order)))
    wall = time.perf_counter() - wall
    found: dict[str, Any] = {"kind": level.kind, "level": level.value}
    found |= figures_of(run, expressions)
    found["client_cpu"] = (time.process_time() - own) / wall
    if pid is not None:
        after = usage(pid)
        found["server"] = {
            "cpu": (after.cpu_s - cpu) / wall,  # CPUs' worth of work, the whole level
            "pss_mb": after.total_mb,
            "processes_mb": after.pss_mb,
        }
    return found


def figures_of(run: Run, expressions: Sequence[Expression]) -> dict[str, Any]:
    """Throughput, latencies in milliseconds, errors, and the score of the answers given.

    ``rejected`` are the errors of a server that was full; ``late_p99_ms`` says by how much this
    program itself missed the times of an open loop. ``unstable``: inputs that were answered in
    more than one way.
    """
    samples = run.samples
    errors = [s.reply for s in samples if isinstance(s.reply, HmerError)]
    answered = [s for s in samples if s.tokens is not None]
    ways: defaultdict[int, set[tuple[str, ...]]] = defaultdict(set)
    for sample in answered:
        ways[sample.index].add(sample.tokens or ())
    score = summarise(
        compare(expressions[s.index].id, expressions[s.index].truth, s.tokens) for s in samples
    )
    return {
        "requests": len(samples),
        "throughput": run.throughput,
        "seconds": run.seconds,
        "latency_ms": percentiles([s.latency * 1e3 for s in answered]),
        "by_length_ms": by_length(answered),
        "late_p99_ms": percentiles([(s.sent - s.due) * 1e3 for s in samples])["p99"],
        "errors": dict(Counter(error.code for error in errors)),
        "rejected": sum(isinstance(error, _REFUSED) for error in errors),
        "timed_out": sum(isinstance(error, DeadlineExceeded) for error in errors),
        "exprate": score.exprate,
        "exprate_95": list(score.interval),
        "unstable": [expressions[i].id for i, found in sorted(ways.items()) if len(found) > 1],
    }


def by_length(samples: Sequence[Sample]) -> dict[str, dict[str, Any]]:
    """Percentiles in milliseconds by the number of tokens of the answer."""
    found = {}
    for low, high in LENGTHS:
        chosen = [
            s.latency * 1e3
            for s in samples
            if s.tokens is not None
            and low <= len(s.tokens)
            and (high is None or len(s.tokens) <= high)
        ]
        if chosen:
            name = f"{low}-{high}" if high is not None else f">={low}"
            found[name] = {"n": len(chosen), **percentiles(chosen)}
    return found


def table(levels: Sequence[dict[str, Any]]) -> Table:
    """One row a level."""
    header = (
        *("load", "requests/s", "p50 ms", "p90 ms", "p95 ms", "p99 ms"),
        *("errors", "rejected", "ExpRate %", "server CPUs", "server MB"),
    )
    rows = []
    for level in levels:
        server = level.get("server")
        rows.append(
            (
                Level(level["kind"], level["level"]).name,
                f"{level['throughput']:.1f}",
                *(_ms(value) for value in level["latency_ms"].values()),
                str(sum(level["errors"].values())),
                str(level["rejected"]),
                f"{level['exprate'] * 100:.2f}",
                f"{server['cpu']:.2f}" if server else "-",
                f"{server['pss_mb']:.0f}" if server else "-",
            )
        )
    return Table("Under load", header, tuple(rows))


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
