"""The comparison: the same pictures through every contender, in turn, round after round.

A round gives every contender one turn alone (one request at a time) and one under load; the next
round goes the other way round. Ratios are made within a round and their median is told, so what
slows the machine for a while slows both sides.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from benchmarks.asking import GrpcAsker, Reply
from benchmarks.contenders import OURS, Contender
from benchmarks.crohme import Expression
from benchmarks.figures import percentiles
from benchmarks.in_process import InProcess
from benchmarks.inputs import shortest, shuffled
from benchmarks.load import by_length
from benchmarks.loops import closed_loop, probe_loop
from hmer.errors import HmerError

SHORT_TOKENS = 3  # "a three-token formula"
FEW, MANY = 4, 32  # requests under way beside a short one
PROBES = 8  # short formulas a turn
_TURN_S = 2.0  # what a turn under load should last at least
_MOST_PASSES = 12


@dataclass(frozen=True)
class Settings:
    """``concurrency`` of the turns under load; ``identity`` pictures for the last check."""

    rounds: int
    concurrency: int
    timeout: float


@dataclass
class Bare:
    """The runtimes without a server: one entry a round."""

    alone: list[dict[str, float | None]] = field(default_factory=list)
    ways: list[dict[str, float]] = field(default_factory=list)  # inputs a second, by way
    replies: dict[int, Reply] = field(default_factory=dict)

    @property
    def throughput(self) -> list[float]:
        """The better way of every round."""
        return [max(ways.values()) for ways in self.ways]


@dataclass
class Result:
    """What the rounds showed. ``short`` maps requests under way to p50 (ms) by round."""

    contenders: dict[str, Contender]
    bare: Bare
    short: dict[int, list[float | None]]
    identity: dict[str, Any] | None = None


def rounds(
    contenders: dict[str, Contender],
    bare: InProcess,
    expressions: Sequence[Expression],
    settings: Settings,
    check: Sequence[Expression],
    say: Callable[[str], None],
) -> Result:
    """Run the comparison over running ``contenders``.

    ``check``: pictures for the last part (``identity``); may be empty. ``bare`` has the inputs of
    ``expressions``, then those of ``check``.
    """
    return asyncio.run(_rounds(contenders, bare, expressions, settings, check, say))


async def _rounds(
    contenders: dict[str, Contender],
    bare: InProcess,
    expressions: Sequence[Expression],
    settings: Settings,
    check: Sequence[Expression],
    say: Callable[[str], None],
) -> Result:
    order = shuffled(len(expressions))
    result = Result(contenders, Bare(), {FEW: [], MANY: []})
    async with AsyncExitStack() as stack:
        for contender in contenders.values():
            asker = GrpcAsker(contender.server.grpc, expressions, timeout=settings.timeout)
            contender.asker = await stack.enter_async_context(asker)
        say("Warming up ...")
        passes = {name: await _warm(c, order, settings) for name, c in contenders.items()}
        result.bare.replies = dict(zip(order, bare.one_by_one(order).replies, strict=True))
        for turn in range(settings.rounds):
            say(f"Round {turn + 1} of {settings.rounds} ...")
            names = list(contenders)
            for name in names if turn % 2 == 0 else reversed(names):
                await _turn(contenders[name], order, passes[name], settings)
            _bare_turn(bare, result.bare, order, passes.get(OURS, 1))
            if OURS in contenders:
                await _short(contenders[OURS], expressions, order, result.short)
    if check and OURS in contenders:
        say(f"Answers to {len(check)} inputs, one by one and {MANY} at a time ...")
        first = len(expressions)
        result.identity = await _identity(contenders[OURS], check, bare, first, settings)
    return result


def _ask(contender: Contender) -> GrpcAsker:
    assert contender.asker is not None
    return contender.asker


async def _warm(contender: Contender, order: Sequence[int], settings: Settings) -> int:
    """One pass under load that does not count; how many passes make a turn long enough."""
    run = await closed_loop(_ask(contender), order, settings.concurrency)
    failed = next((s.reply for s in run.samples if isinstance(s.reply, HmerError)), None)
    if failed is not None:
        raise type(failed)(f"{contender.title}: {failed}")
    return max(1, min(_MOST_PASSES, math.ceil(run.throughput * _TURN_S / len(order))))


async def _turn(
    contender: Contender, order: Sequence[int], passes: int, settings: Settings
) -> None:
    contender.alone.append(contender.take(await closed_loop(_ask(contender), order, 1)))
    run = await closed_loop(_ask(contender), list(order) * passes, settings.concurrency)
    contender.loaded.append(contender.take(run))
    contender.throughput.append(run.throughput)


def _bare_turn(bare: InProcess, found: Bare, order: Sequence[int], passes: int) -> None:
    alone = bare.one_by_one(order)
    found.alone.append(percentiles([s * 1e3 for s in alone.seconds]))
    found.ways.append(bare.throughput(list(order) * passes))


async def _short(
    contender: Contender,
    expressions: Sequence[Expression],
    order: Sequence[int],
    found: dict[int, list[float | None]],
) -> None:
    probes = shortest(expressions, SHORT_TOKENS)
    for concurrency in (FEW, MANY):
        samples = await probe_loop(_ask(contender), probes, order, concurrency, PROBES)
        times = [s.latency * 1e3 for s in samples if s.tokens is not None]
        found[concurrency].append(percentiles(times)["p50"])


async def _identity(
    contender: Contender,
    check: Sequence[Expression],
    bare: InProcess,
    first: int,
    settings: Settings,
) -> dict[str, Any]:
    """Whether answers depend on their neighbours: one by one, many at a time, without a server.

    ``first``: the number of the first of ``check`` among the inputs of ``bare``.
    """
    order = shuffled(len(check))
    async with GrpcAsker(contender.server.grpc, check, timeout=settings.timeout) as ask:
        alone = await closed_loop(ask, order, 1)
        many = await closed_loop(ask, order, MANY)
    found = bare.answers([first + index for index in order])
    without = {index: found[first + index] for index in order}
    one = {s.index: s.tokens for s in alone.samples}
    other = {s.index: s.tokens for s in many.samples}
    return {
        "n": len(check),
        "concurrency": MANY,
        "equal_to_one_by_one": sum(one[i] is not None and one[i] == other[i] for i in order),
        "equal_to_in_process": sum(other[i] is not None and other[i] == without[i] for i in order),
        "differing": [check[i].id for i in sorted(order) if not one[i] == other[i] == without[i]],
        "alone_by_length_ms": by_length(alone.samples),
        "loaded_by_length_ms": by_length(many.samples),
    }
