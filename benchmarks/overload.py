"""More requests than a server can take: what becomes of those that it accepts, and of the others.

Phases: one at a time; a closed loop, for the capacity; an open loop at 80 % of it, and at twice it;
the same with two priorities; and one at a time again.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from benchmarks.asking import Ask, GrpcAsker
from benchmarks.crohme import Expression
from benchmarks.figures import percentiles
from benchmarks.inputs import shuffled
from benchmarks.load import Server
from benchmarks.loops import closed_loop
from benchmarks.overload_loop import Fate, Sent, poisson_loop
from benchmarks.overload_watch import glance, looking
from benchmarks.server_metrics import PUBLISHED_S
from hmer.errors import HmerError, InferenceFailed
from hmer.serving import BATCH, INTERACTIVE, to_request

USUAL, TWICE = 0.8, 2.0  # of the capacity
ALONE = 10  # requests one at a time, before and after
BUCKETS = 60  # of a phase, over time
_WARM_UP = 16


@dataclass(frozen=True)
class Plan:
    """How long, in seconds, and how the capacity is found: so many requests under way."""

    seconds: float
    capacity_seconds: float = 20.0
    concurrency: int = 16
    capacity: float | None = None  # requests a second, where it is known
    timeout: float = 60.0
    priorities: bool = True  # whether the phase with two priorities is run


def overload(
    url: str,
    expressions: Sequence[Expression],
    plan: Plan,
    server: Server,
    say: Callable[[str], object] = lambda text: None,
) -> dict[str, Any]:
    """Run all phases; their figures by name. Raises ``ServerError``."""

    async def work() -> dict[str, Any]:
        async with AsyncExitStack() as stack:
            asks: dict[str, Ask] = {
                name: await stack.enter_async_context(
                    GrpcAsker(
                        url,
                        expressions,
                        timeout=plan.timeout,
                        parameters=to_request(priority=name),
                    )
                )
                for name in (INTERACTIVE, BATCH)
            }
            return await phases(asks, len(expressions), plan, server, say)

    return asyncio.run(work())


async def phases(
    asks: Mapping[str, Ask],
    inputs: int,
    plan: Plan,
    server: Server,
    say: Callable[[str], object],
    settle_s: float = 2 * PUBLISHED_S,
) -> dict[str, Any]:
    """See ``overload``; ``asks`` by priority. ``settle_s``: until the page tells of the end."""
    ask = asks[INTERACTIVE]
    await closed_loop(ask, [i % inputs for i in range(_WARM_UP)], 4)
    say("one at a time ...")
    found: dict[str, Any] = {"alone_before": await alone(ask, inputs)}
    if plan.capacity is None:
        say(f"capacity, {plan.concurrency} at once ...")
        found["capacity"] = await capacity(ask, inputs, plan.concurrency, plan.capacity_seconds)
    else:
        found["capacity"] = plan.capacity
    both = {name: asks[name] for name in (INTERACTIVE, BATCH)}
    wanted: list[tuple[str, Mapping[str, Ask], float]] = [
        ("usual", {INTERACTIVE: ask}, USUAL),
        ("twice", {INTERACTIVE: ask}, TWICE),
    ]
    wanted += [("mixed", both, TWICE)] * plan.priorities
    for seed, (name, chosen, share) in enumerate(wanted):
        rate = share * found["capacity"]
        say(f"{name}: {rate:.1f} requests a second for {plan.seconds:.0f} s ...")
        own, wall = time.process_time(), time.perf_counter()
        async with looking(server, max(1.0, plan.seconds / BUCKETS)) as glances:
            sent = await poisson_loop(chosen, inputs, rate, plan.seconds, seed=seed)
        wall = time.perf_counter() - wall
        found[name] = {
            **figures_of(sent, rate, plan.seconds),
            "client_cpu": (time.process_time() - own) / wall,
            "glances": [one for one in glances if one["t"] <= plan.seconds],
        }
        if name == "twice":
            found["next"] = await alone(ask, inputs)
    await asyncio.sleep(settle_s)
    found["at_the_end"] = await asyncio.to_thread(glance, server)
    return found


async def alone(ask: Ask, inputs: int, count: int = ALONE) -> dict[str, float | None]:
    """Latencies in milliseconds of the same requests, one at a time."""
    order = shuffled(inputs)
    run = await closed_loop(ask, [order[i % inputs] for i in range(count)], 1)
    return percentiles([s.latency * 1e3 for s in run.samples if s.tokens is not None])


async def capacity(ask: Ask, inputs: int, concurrency: int, seconds: float) -> float:
    """Answers a second with ``concurrency`` requests under way. Raises ``InferenceFailed``."""
    order = shuffled(inputs)
    first = await closed_loop(ask, [order[i % inputs] for i in range(2 * concurrency)], concurrency)
    count = max(4 * concurrency, int(first.throughput * seconds))
    run = await closed_loop(ask, [order[i % inputs] for i in range(count)], concurrency)
    if not run.throughput:
        reasons = [str(s.reply) for s in run.samples if isinstance(s.reply, HmerError)]
        raise InferenceFailed(
            f"The server answered nothing while its capacity was looked for: {reasons[0]}"
        )
    return run.throughput


def figures_of(sent: Sequence[Sent], rate: float, seconds: float) -> dict[str, Any]:
    """The figures of a phase, of each priority in it, and over time."""
    names = sorted({one.priority for one in sent})
    return {
        "rate": rate,
        "seconds": seconds,
        **counts(sent),
        "late_p99_ms": percentiles([one.late_ms for one in sent])["p99"],
        "priorities": {
            name: counts([one for one in sent if one.priority == name]) for name in names
        },
        "series": over_time(sent, seconds),
    }


def counts(sent: Sequence[Sent]) -> dict[str, Any]:
    """How many met which fate; latencies of the accepted, and how soon refusals came, both in ms.

    ``hints``: refusals that said when to try again.
    """
    by = Counter(one.fate for one in sent)
    refused = [one for one in sent if one.fate is Fate.REFUSED]
    return {
        "requests": len(sent),
        **{fate.value: by[fate] for fate in Fate},
        "refused_share": by[Fate.REFUSED] / len(sent) if sent else 0.0,
        "hints": sum(one.hint for one in refused),
        "latency_ms": percentiles([one.latency_ms for one in sent if one.fate is Fate.ANSWERED]),
        "refusal_ms": percentiles([(one.done - one.sent) * 1e3 for one in refused]),
        "reasons": dict(Counter(one.reason for one in sent if one.reason).most_common(5)),
    }


def over_time(sent: Sequence[Sent], seconds: float, buckets: int = BUCKETS) -> list[dict[str, Any]]:
    """By when requests were due: latencies of the accepted ones, in ms, and the share refused."""
    width = max(seconds / buckets, 1.0)
    parts: dict[int, list[Sent]] = {}
    for one in sent:
        parts.setdefault(int(one.due / width), []).append(one)
    found = []
    for number, part in sorted(parts.items()):
        told = counts(part)
        found.append(
            {
                "t": (number + 0.5) * width,
                "requests": told["requests"],
                "refused_share": told["refused_share"],
                **{name: told["latency_ms"][name] for name in ("p50", "p95", "p99")},
            }
        )
    return found
