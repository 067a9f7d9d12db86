"""One request at a time, through every path at hand, and where its time goes.

A path in process times its stages itself; a served one is split in ``benchmarks.latency_served``.
The paths take turns, a pass over all pictures each. A stage's figure is a mean, so that stages add
up to the mean of the whole; the whole is told in percentiles, too.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from benchmarks.asking import Reply
from benchmarks.crohme import Expression
from benchmarks.figures import NEEDED, percentiles, shown, spread, withheld
from benchmarks.in_process import Worker
from benchmarks.load import by_length
from benchmarks.loops import Sample
from hmer.errors import HmerError
from hmer.preprocess import decode
from hmer.score import compare, summarise
from hmer.tables import Table

DECODE_IMAGE, PREPROCESS, ENCODER, STEPS = "decode image", "preprocess", "encoder", "steps"
QUEUE, REST, TRANSPORT, SERVER = "queue", "rest", "transport", "server"
# Rest: of a path in process, between its stages; server: of a server, what no other stage has.
STAGES = (DECODE_IMAGE, PREPROCESS, ENCODER, STEPS, QUEUE, REST, TRANSPORT, SERVER)
_OF_TIMINGS = {"preprocess": PREPROCESS, "encode": ENCODER, "decode": STEPS, "queue": QUEUE}


@dataclass(frozen=True)
class Pass:
    """One pass: milliseconds and answer of every input, and the mean milliseconds by stage."""

    ms: list[float]
    replies: list[Reply]
    stages: dict[str, float]


class Way(Protocol):
    """A path that pictures are sent through, one at a time."""

    load_s: float | None  # until it took requests; None: somebody else started it
    first_ms: float  # its first request

    def take(self, order: Sequence[int]) -> Pass:
        """Send these inputs."""

    def close(self) -> None:
        """Be done."""


class WorkerWay:
    """A recogniser in a process of its own, without a server."""

    def __init__(self, worker: Worker) -> None:
        """Wait for the ``worker``. Raises what its loading raised."""
        self._worker = worker
        started = worker.ready()
        self.load_s: float | None = started.load_s
        self.first_ms = started.first_s * 1e3

    def take(self, order: Sequence[int]) -> Pass:
        """See ``Way``."""
        self._worker.ask(order, together=False)
        timed = self._worker.answer()
        ms = [seconds * 1e3 for seconds in timed.seconds]
        stages = {
            stage: statistics.fmean(timings.get(name, 0.0) for timings in timed.timings)
            for name, stage in _OF_TIMINGS.items()
        }
        stages[REST] = statistics.fmean(ms) - sum(stages.values())
        return Pass(ms, timed.replies, stages)

    def close(self) -> None:
        """See ``Way``."""
        self._worker.close()


def decode_image_ms(data: Sequence[bytes]) -> float:
    """Mean milliseconds to decode the pictures (or to draw ink), the best of three each."""
    total = 0.0
    for item in data:
        best = float("inf")
        for _ in range(3):
            began = time.perf_counter()
            with contextlib.suppress(HmerError):
                decode(item)
            best = min(best, time.perf_counter() - began)
        total += best
    return total / len(data) * 1e3


@dataclass
class Found:
    """The passes of one path."""

    way: Way
    passes: list[Pass] = field(default_factory=list)

    def to_dict(
        self, order: Sequence[int], expressions: Sequence[Expression], image_ms: float
    ) -> dict[str, Any]:
        """Figures, for JSON; ``image_ms`` is taken out of preprocessing."""
        ms = [value for p in self.passes for value in p.ms]
        stages = {
            name: statistics.fmean(p.stages[name] for p in self.passes)
            for name in STAGES
            if all(name in p.stages for p in self.passes)
        }
        if PREPROCESS in stages:
            stages = {
                DECODE_IMAGE: min(image_ms, stages[PREPROCESS]),
                **stages,
                PREPROCESS: max(0.0, stages[PREPROCESS] - image_ms),
            }
        seen = spread([percentiles(p.ms)["p50"] for p in self.passes])
        samples = [
            Sample(index, 0.0, 0.0, value / 1e3, reply)
            for p in self.passes
            for index, value, reply in zip(order, p.ms, p.replies, strict=True)
        ]
        scored = [
            compare(expressions[s.index].id, expressions[s.index].truth, s.tokens)
            for s in samples[: len(order)]
        ]
        return {
            "load_s": self.way.load_s,
            "first_ms": self.way.first_ms,
            "n": sum(s.tokens is not None for s in samples),
            "ms": percentiles([s.latency * 1e3 for s in samples if s.tokens is not None]),
            "mean_ms": statistics.fmean(ms),
            "p50_ms": seen.to_dict() if seen else None,
            "stages_ms": stages,
            "by_length_ms": by_length(samples),
            "errors": sum(isinstance(s.reply, HmerError) for s in samples),
            "exprate": summarise(scored).exprate,
        }


def run(
    ways: Mapping[str, Way],
    order: Sequence[int],
    rounds: int,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Found]:
    """A pass that does not count, then ``rounds`` of them, the ways in turn."""
    found = {name: Found(way) for name, way in ways.items()}
    for turn in range(rounds + 1):
        say(f"Round {turn} of {rounds} ..." if turn else "Warming up ...")
        names = list(found)
        for name in names if turn % 2 else reversed(names):
            seen = found[name].way.take(order)
            if turn:
                found[name].passes.append(seen)
    return found


def tables(paths: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """The whole, the stages, and p50 by length."""
    whole = tuple(
        (
            name,
            *(shown(path["ms"], p, path.get("n"), 2) for p in NEEDED),
            *(_ms(path["mean_ms"]), _ms(path["first_ms"])),
            "-" if path["load_s"] is None else f"{path['load_s']:.1f}",
            f"{path['exprate'] * 100:.2f}",
        )
        for name, path in paths.items()
    )
    stages = tuple(
        (name, *(_ms(path["stages_ms"].get(stage)) for stage in STAGES))
        for name, path in paths.items()
    )
    lengths = list(dict.fromkeys(n for path in paths.values() for n in path["by_length_ms"]))
    by = tuple(
        (name, *(_ms(path["by_length_ms"].get(n, {}).get("p50")) for n in lengths))
        for name, path in paths.items()
    )
    header = ("path", "p50 ms", "p90", "p95", "p99", "mean", "first", "ready s", "ExpRate %")
    return [
        Table("One request at a time", header, whole),
        Table("Where it goes, mean ms", ("path", *STAGES), stages),
        Table("p50 ms by tokens of the answer", ("path", *lengths), by),
    ]


def notes(paths: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the tables leave out, and what failed."""
    lines = withheld([path.get("n") for path in paths.values()])
    for name, path in paths.items():
        if path.get("errors"):
            lines.append(f"{name}: {path['errors']} requests failed; percentiles are of the rest.")
    return lines


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
