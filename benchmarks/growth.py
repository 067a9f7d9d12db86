"""How cost grows along each axis (``benchmarks.growth_axes``).

Server and request axes: the values take turns, each alone (one request at a time) and under load,
round after round, the next round the other way round; throughput and latency are told as medians
with the quartiles of the rounds. Picture axes: every picture is recognised alone in process, and
its stages are medians of the rounds; a line through them says what a picture costs at least and
what each unit adds.
"""

from __future__ import annotations

import asyncio
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.asking import GrpcAsker
from benchmarks.crohme import Expression
from benchmarks.figures import percentiles, spread
from benchmarks.growth_axes import BEAM, CONCURRENCY, LENGTH, REQUEST, Axis, K, not_here, options_of
from benchmarks.in_process import Spec, Worker
from benchmarks.inputs import shuffled
from benchmarks.loops import Run, closed_loop
from benchmarks.process_tree import available_mb
from benchmarks.repositories import Chosen, assemble, with_k
from benchmarks.served import ServedProcess
from hmer.bundle import Bundle
from hmer.errors import HmerError, InferenceFailed, InputError
from hmer.preprocess import load, to_batch
from hmer.runtime import thread_count
from hmer.serving import to_request

Say = Callable[[str], None]

_LEAST_MB = 1000.0  # of free memory for one more server
_TURN_S = 1.0
_MOST_PASSES = 8
# Stage of the recogniser's timings -> its name here, for each axis of the picture.
_STAGES = {"preprocess": "preprocess", "encode": "encoder", "decode": "steps"}


@dataclass(frozen=True)
class Settings:
    """What is the same along all axes. ``concurrency``: of the turns under load."""

    bundle: Bundle
    checkpoint: Path
    target: str
    expressions: Sequence[Expression]
    rounds: int
    concurrency: int
    work: Path
    timeout: float = 120.0


@dataclass
class Point:
    """One value of a request or server axis, and its turns."""

    value: int
    server: ServedProcess
    ask: GrpcAsker | None = None
    passes: int = 1
    alone: list[float | None] = field(default_factory=list)  # p50, ms
    throughput: list[float | None] = field(default_factory=list)
    p50: list[float | None] = field(default_factory=list)
    p95: list[float | None] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        columns = {
            "throughput": self.throughput,
            "p50_alone_ms": self.alone,
            "p50_ms": self.p50,
            "p95_ms": self.p95,
        }
        seen = {name: spread(values) for name, values in columns.items()}
        return {"x": self.value, **{n: s.to_dict() if s else None for n, s in seen.items()}}


def along(
    axis: Axis, values: Sequence[int], settings: Settings, say: Say
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The points of a request or server axis, and the values that were left out, with why.

    Raises ``ServerSetupError``, ``ExportError`` or ``InferenceFailed``.
    """
    wanted, skipped = list[int](), dict[str, str]()
    for value in values:
        if reason := not_here(axis, value, settings.bundle, settings.target):
            skipped[str(value)] = reason
        else:
            wanted.append(value)
    with ExitStack() as stack:
        points = _started(axis, wanted, settings, stack, skipped, say)
        asyncio.run(_turns(axis, points, settings, skipped, say))
        return [point.to_dict() for point in points if point.throughput], skipped


def _started(
    axis: Axis,
    values: Sequence[int],
    settings: Settings,
    stack: ExitStack,
    skipped: dict[str, str],
    say: Say,
) -> list[Point]:
    """A server for each value, or one for all; those that have no room are ``skipped``."""
    points: list[Point] = []
    for value in values:
        if axis.of == REQUEST and points:
            points.append(Point(value, points[0].server))
            continue
        if (free := available_mb()) < _LEAST_MB:
            skipped[str(value)] = f"skipped: only {free:.0f} MB of memory are left"
            continue
        say(f"  starting {axis.name} = {value} ...")
        try:
            bundle = settings.bundle.folder
            if axis.name == K and value != settings.bundle.k:
                bundle = with_k(settings.checkpoint, value, settings.work)
            folder = settings.work / f"{axis.name}-{value}"
            # Cost is asked for here, also where the server would rather refuse.
            options = ["--target", settings.target, "--max-wait", "0", *options_of(axis, value)]
            repository = assemble(bundle, folder, *options)
            points.append(Point(value, stack.enter_context(ServedProcess(repository))))
        except HmerError as error:
            if not points and value == values[-1]:
                raise
            skipped[str(value)] = f"skipped: {error}"
    return points


async def _turns(
    axis: Axis, points: Sequence[Point], settings: Settings, skipped: dict[str, str], say: Say
) -> None:
    order = shuffled(len(settings.expressions))
    async with AsyncExitStack() as stack:
        for point in points:
            asker = GrpcAsker(
                point.server.grpc,
                settings.expressions,
                timeout=settings.timeout,
                parameters=to_request(point.value) if axis.name == BEAM else None,
            )
            point.ask = await stack.enter_async_context(asker)
            run = await closed_loop(asker, order, _load(axis, point, settings))
            if reason := _failed(run):
                skipped[str(point.value)] = f"skipped: {reason}"
                point.ask = None
                continue
            passes = math.ceil(run.throughput * _TURN_S / len(order))
            point.passes = max(1, min(_MOST_PASSES, passes))
        there = [point for point in points if point.ask is not None]
        if not there:
            raise InferenceFailed(f"No value of {axis.name} was answered: {skipped}")
        for turn in range(settings.rounds):
            say(f"  {axis.name}: round {turn + 1} of {settings.rounds} ...")
            for point in there if turn % 2 == 0 else reversed(there):
                await _turn(point, order, axis, settings)


async def _turn(point: Point, order: list[int], axis: Axis, settings: Settings) -> None:
    assert point.ask is not None
    if axis.name != CONCURRENCY:
        alone = await closed_loop(point.ask, order, 1)
        point.alone.append(_ms(alone)["p50"])
    run = await closed_loop(point.ask, order * point.passes, _load(axis, point, settings))
    latency = _ms(run)
    point.throughput.append(run.throughput)
    point.p50.append(latency["p50"])
    point.p95.append(latency["p95"])


def _load(axis: Axis, point: Point, settings: Settings) -> int:
    return point.value if axis.name == CONCURRENCY else settings.concurrency


def _ms(run: Run) -> dict[str, float | None]:
    return percentiles([s.latency * 1e3 for s in run.samples if s.tokens is not None])


def _failed(run: Run) -> str:
    """Why a load is more than the server takes; empty if only pictures were at fault."""
    errors = [s.reply for s in run.samples if isinstance(s.reply, HmerError)]
    faults = [error for error in errors if not isinstance(error, InputError)]
    return f"{len(faults)} of {len(run.samples)} requests failed: {faults[0]}" if faults else ""


def of_pictures(
    names: Sequence[str], settings: Settings, say: Say
) -> dict[str, tuple[list[dict[str, Any]], dict[str, Any]]]:
    """Points and lines of the axes of the picture: one measurement gives both.

    A point has ``x`` and milliseconds by stage; a line ``at_0_ms``, ``a_unit_ms`` and ``r2``.
    Raises what loading the bundle raises.
    """
    data = [e.data for e in settings.expressions]
    chosen = Chosen(settings.target, settings.target, "fp32")
    order = list(range(len(data)))
    taken: list[tuple[list[dict[str, float]], list[int]]] = []
    with Worker(Spec(settings.bundle.folder, thread_count(0), chosen), data) as worker:
        worker.ready()
        for turn in range(settings.rounds + 1):
            say(
                f"  pictures: round {turn} of {settings.rounds} ..." if turn else "  warming up ..."
            )
            worker.ask(order, together=False)
            timed = worker.answer()
            lengths = [len(r) if isinstance(r, tuple) else 0 for r in timed.replies]
            if turn:
                taken.append((timed.timings, lengths))
    stages = [_medians([timings[index] for timings, _ in taken]) for index in order]
    found = {}
    for name in names:
        x = taken[0][1] if name == LENGTH else _areas(data, settings)
        wanted = ("steps",) if name == LENGTH else ("preprocess", "encoder")
        points = [
            {"x": value, **{f"{stage}_ms": times[stage] for stage in wanted}}
            for value, times in zip(x, stages, strict=True)
            if value and all(stage in times for stage in wanted)
        ]
        points.sort(key=lambda point: float(point["x"]))
        found[name] = (points, {stage: line(points, f"{stage}_ms") for stage in wanted})
    return found


def _areas(data: Sequence[bytes], settings: Settings) -> list[float]:
    """Thousands of pixels of each picture as the encoder gets it; 0 for a picture at fault."""
    areas = []
    for item in data:
        try:
            image, _ = to_batch([load(item, settings.bundle.preprocess)])
        except InputError:
            areas.append(0.0)
        else:
            areas.append(math.prod(image.shape[2:]) / 1e3)
    return areas


def _medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """By stage, of the rounds that have it."""
    return {
        stage: statistics.median(timings[key] for timings in rounds)
        for key, stage in _STAGES.items()
        if all(key in timings for timings in rounds)
    }


def line(points: Sequence[Mapping[str, float]], key: str) -> dict[str, float] | None:
    """The least squares' line through ``key`` over ``x``; ``None`` where all are at one place."""
    x = np.array([point["x"] for point in points], np.float64)
    y = np.array([point[key] for point in points], np.float64)
    if len(np.unique(x)) < 2:
        return None
    slope, start = np.polyfit(x, y, 1)
    rest = float(np.square(y - (slope * x + start)).sum())
    spread_ = float(np.square(y - y.mean()).sum())
    return {
        "at_0_ms": float(start),
        "a_unit_ms": float(slope),
        "r2": 1.0 - rest / spread_ if spread_ else 1.0,
    }
