"""A running server under load: one level after another, and what each showed."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.asking import Ask, GrpcAsker
from benchmarks.crohme import Expression
from benchmarks.figures import NEEDED, percentiles, shown, withheld
from benchmarks.inputs import shuffled
from benchmarks.loops import Run, Sample, closed_loop, open_loop, poisson
from benchmarks.process_tree import available_mb, cpu_seconds, usage
from benchmarks.server_metrics import watching
from hmer.errors import DeadlineExceeded, HmerError, InputError, Overloaded, ServerUnavailable
from hmer.score import LENGTHS, compare, summarise
from hmer.tables import Table

CLOSED, OPEN = "closed", "open"
_REFUSED = (Overloaded, ServerUnavailable)
_LEAST_MB = 512.0  # of free memory, for a level to be tried
_MOST_FAILED = 0.5  # of a level's requests, for a higher one to be tried
_BUSY = 0.8  # of a CPU: from here on the load generator may be what limits
_LATE_MS = 5.0  # of the load generator, from here on it is said


@dataclass(frozen=True)
class Level:
    """One load: ``value`` requests under way (closed loop), or requests a second (open loop)."""

    kind: str
    value: float

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.value:g} at once" if self.kind == CLOSED else f"{self.value:g} a second"


@dataclass(frozen=True)
class Server:
    """What is known of the server beside its address: ``pid`` if it runs on this machine, and the
    address of its metrics page, if it has one."""

    pid: int | None = None
    metrics: str | None = None


def run_levels(
    url: str,
    expressions: Sequence[Expression],
    levels: Sequence[Level],
    *,
    requests: int,
    timeout: float,
    server: Server,
    warm_up: int = 16,
    on_level: Callable[[Level], None] = lambda level: None,
    after_level: Callable[[Level], None] = lambda level: None,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """``requests`` counted requests at each level; the figures of each (``figures_of``).

    The second result tells of the levels that were left out why. ``after_level`` is called while
    nothing is under way. Raises ``ServerUnavailable``.
    """

    async def work() -> tuple[list[dict[str, Any]], dict[str, str]]:
        found: list[dict[str, Any]] = []
        skipped: dict[str, str] = {}
        async with GrpcAsker(url, expressions, timeout=timeout) as ask:
            turns = shuffled(len(expressions))
            order = [turns[i % len(turns)] for i in range(requests)]
            if warm_up:
                await closed_loop(ask, [order[i % len(order)] for i in range(warm_up)], 4)
            for level in levels:
                if reason := too_much(level, found, server.pid is not None):
                    skipped[level.name] = reason
                    continue
                on_level(level)
                found.append(await _measure(ask, level, order, expressions, server))
                after_level(level)
        return found, skipped

    return asyncio.run(work())


def too_much(level: Level, found: Sequence[dict[str, Any]], here: bool) -> str:
    """Why ``level`` is not tried, empty if it is: after what was ``found`` at lower ones.

    ``here``: the server runs on this machine, so that its memory is this one's.
    """
    for other in found:
        if other["kind"] != level.kind or other["level"] > level.value:
            continue
        failed = sum(other["errors"].values()) - other["bad_input"]
        if failed > _MOST_FAILED * other["requests"]:
            name = Level(other["kind"], other["level"]).name
            return f"skipped: at {name} {failed} of {other['requests']} requests failed already"
    if here and (free := available_mb()) < _LEAST_MB:
        return f"skipped: the machine has only {free:.0f} MB of memory left"
    return ""


async def _measure(
    ask: Ask,
    level: Level,
    order: Sequence[int],
    expressions: Sequence[Expression],
    server: Server,
) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": level.kind, "level": level.value}
    async with watching(server.metrics) as watched:
        pid = server.pid
        cpu = cpu_seconds(pid) if pid is not None else 0.0
        own, wall = time.process_time(), time.perf_counter()
        if level.kind == CLOSED:
            run = await closed_loop(ask, order, int(level.value))
        else:
            run = await open_loop(ask, order, poisson(level.value, len(order)))
        wall = time.perf_counter() - wall
        found |= figures_of(run, expressions)
        found["client_cpu"] = (time.process_time() - own) / wall
        if pid is not None:
            after = usage(pid)
            found["server"] = {
                "cpu": (after.cpu_s - cpu) / wall,  # CPUs' worth of work, the whole level
                "pss_mb": after.total_mb,
                "processes_mb": after.pss_mb,
            }
    if watched is not None:
        found["metrics"] = watched.to_dict()
    return found


def figures_of(run: Run, expressions: Sequence[Expression]) -> dict[str, Any]:
    """Throughput, latencies in milliseconds, errors, and the score of the answers given.

    ``rejected`` are the errors of a server that was full, ``bad_input`` those of the pictures
    themselves; ``late_p99_ms`` says by how much this program itself missed the times of an open
    loop. ``unstable``: inputs that were answered in
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
        "answered": len(answered),
        "throughput": run.throughput,
        "seconds": run.seconds,
        "latency_ms": percentiles([s.latency * 1e3 for s in answered]),
        "by_length_ms": by_length(answered),
        "late_p99_ms": percentiles([(s.sent - s.due) * 1e3 for s in samples])["p99"],
        "errors": dict(Counter(error.code for error in errors)),
        "rejected": sum(isinstance(error, _REFUSED) for error in errors),
        "bad_input": sum(isinstance(error, InputError) for error in errors),
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
        *("slots in use", "rows a step", "waiting"),
    )
    rows = []
    for level in levels:
        server, metrics = level.get("server"), level.get("metrics", {})
        rows.append(
            (
                Level(level["kind"], level["level"]).name,
                f"{level['throughput']:.1f}",
                *(shown(level["latency_ms"], name, counted(level)) for name in NEEDED),
                str(sum(level["errors"].values()) - level["rejected"]),
                str(level["rejected"]),
                f"{level['exprate'] * 100:.2f}",
                f"{server['cpu']:.2f}" if server else "-",
                f"{server['pss_mb']:.0f}" if server else "-",
                _mean_and_most(metrics, "slots_in_use"),
                f"{rows_a_step:.1f}" if (rows_a_step := metrics.get("rows_a_step")) else "-",
                _mean_and_most(metrics, "waiting_for_a_worker", "waiting_for_a_slot"),
            )
        )
    return Table("Under load", header, tuple(rows))


def _mean_and_most(metrics: Mapping[str, Any], *names: str) -> str:
    """Gauges, added up: the mean of the glances, and the most that was seen."""
    there = [metrics[name] for name in names if metrics.get(name)]
    if not there:
        return "-"
    mean, most = (sum(gauge[key] for gauge in there) for key in ("mean", "most"))
    return f"{mean:.1f} (<= {most:.0f})"


def counted(level: Mapping[str, Any]) -> int | None:
    """How many latencies the percentiles of ``level`` are of; ``None`` if it does not tell."""
    found = level.get("answered")
    return None if found is None else int(found)


def notes(levels: Sequence[Mapping[str, Any]]) -> list[str]:
    """What of the figures is not the server's: the load generator's own limits, and few answers."""
    lines = withheld([counted(level) for level in levels])
    for level in levels:
        name = Level(level["kind"], level["level"]).name
        busy, late = level.get("client_cpu"), level.get("late_p99_ms")
        if busy is not None and busy > _BUSY:
            lines.append(
                f"{name}: the load generator itself used {busy:.2f} of a CPU, and has one thread: "
                "the figures may be its limit, not the server's."
            )
        if level["kind"] == OPEN and late is not None and late > _LATE_MS:
            lines.append(
                f"{name}: the load generator sent up to {late:.0f} ms late (p99); latencies count "
                "from when a request was due, so they hold that, too."
            )
        if level.get("unstable"):
            lines.append(f"{name}: answered in more than one way: {', '.join(level['unstable'])}.")
    return lines
