"""Who takes part in a comparison: repositories made, servers started, figures collected."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.asking import GrpcAsker, Reply
from benchmarks.crohme import Expression
from benchmarks.figures import percentiles, spread
from benchmarks.loops import Run
from benchmarks.process_tree import Usage
from benchmarks.repositories import (
    BATCHED,
    EAGER,
    EAGER_ALONE,
    NAIVE,
    Chosen,
    assemble,
    reference,
    with_k,
)
from benchmarks.served import ServedProcess
from hmer.alignment import edit_distance
from hmer.errors import HmerError
from hmer.score import compare, summarise

OURS = "ours"
TITLES = {
    EAGER: "PyTorch eager loop, one request at a time",
    EAGER_ALONE: "the same with one thread",
    NAIVE: "naive BLS loop, one request and one step a call",
    BATCHED: "dynamic batch that waits for its longest",
    OURS: "ours, default configuration",
}
KINDS = (EAGER, EAGER_ALONE, NAIVE, BATCHED, OURS)


@dataclass(frozen=True)
class Plan:
    """What to compare. ``ks``: further contenders, ours at so many tokens a call.

    ``options``: of ``hmer-export repository`` for ours. ``checkpoint``: what the graphs of other
    k are exported from, and what the PyTorch loop runs.
    """

    bundle: Path
    checkpoint: Path
    kinds: tuple[str, ...]
    ks: tuple[int, ...]
    options: tuple[str, ...]
    work: Path


@dataclass
class Contender:
    """A running server and what its turns showed, one entry a round."""

    name: str
    title: str
    server: ServedProcess
    ready_s: list[float] = field(default_factory=list)
    asker: GrpcAsker | None = None
    throughput: list[float] = field(default_factory=list)
    alone: list[dict[str, float | None]] = field(default_factory=list)  # percentiles, ms
    loaded: list[dict[str, float | None]] = field(default_factory=list)
    replies: dict[int, set[Reply]] = field(default_factory=dict)
    errors: int = 0
    idle: Usage | None = None

    def take(self, run: Run) -> dict[str, float | None]:
        """Note the answers of a turn; its latencies in milliseconds."""
        for sample in run.samples:
            if isinstance(sample.reply, HmerError):
                self.errors += 1
            else:
                self.replies.setdefault(sample.index, set()).add(sample.reply)
        return percentiles([s.latency * 1e3 for s in run.samples if s.tokens is not None])

    def column(self, which: str, percentile: str) -> list[float | None]:
        """A percentile of every round, ``alone`` or ``loaded``."""
        rows: list[dict[str, float | None]] = getattr(self, which)
        return [row[percentile] for row in rows]

    def to_dict(
        self, expressions: Sequence[Expression], reference: Mapping[int, Reply]
    ) -> dict[str, Any]:
        """Figures, for JSON; ``reference`` holds the answers that are compared with."""
        found: dict[str, Any] = {"title": self.title}
        columns: dict[str, Sequence[float | None]] = {
            "throughput": self.throughput,
            "p50_alone_ms": self.column("alone", "p50"),
            "p50_ms": self.column("loaded", "p50"),
            "p95_ms": self.column("loaded", "p95"),
        }
        for name, values in columns.items():
            seen = spread(values)
            found[name] = seen.to_dict() if seen else None
        found["rounds"] = {name: list(values) for name, values in columns.items()}
        found["ready_s"] = self.ready_s
        after = self.server.usage()
        found["pss_mb"] = {"ready": self.idle.total_mb if self.idle else None}
        found["pss_mb"] |= {"after": after.total_mb, "processes": after.pss_mb}
        found["errors"] = self.errors
        return found | agreement(self.replies, reference, expressions)


def agreement(
    replies: Mapping[int, set[Reply]],
    reference: Mapping[int, Reply],
    expressions: Sequence[Expression],
) -> dict[str, Any]:
    """How far answers equal ``reference``'s: whole answers, tokens, and the score of both.

    An input that was answered in several ways counts as different.
    """
    same = tokens = equal = 0
    for index, ways in replies.items():
        other = reference[index]
        if isinstance(other, HmerError):
            continue
        tokens += len(other)
        same += ways == {other}
        way = min(ways, key=lambda w: _overlap(w, other))
        equal += _overlap(way, other)
    scored = [
        compare(expressions[i].id, expressions[i].truth, _first(ways))
        for i, ways in sorted(replies.items())
    ]
    return {
        "answers": len(replies),
        "equal_answers": same,
        "equal_tokens": equal / tokens if tokens else None,
        "exprate": summarise(scored).exprate,
    }


def _first(ways: set[Reply]) -> tuple[str, ...]:
    found = min(ways, key=str)
    return () if isinstance(found, HmerError) else found


def _overlap(reply: Reply, reference: Reply) -> int:
    """How many of the reference's tokens no edit touches; a token more counts as an edit, too."""
    if isinstance(reply, HmerError) or isinstance(reference, HmerError):
        return 0
    return max(0, len(reference) - edit_distance(reply, reference))


def prepare(
    plan: Plan, say: Callable[[str], None]
) -> tuple[dict[str, Path], dict[str, str], Chosen]:
    """A repository for each contender, why others are missing, and what ours runs with.

    ``work`` keeps the exported graphs for the next time. Raises the errors of ours; those of the
    others only leave them out.
    """
    say("Assembling ours ...")
    folders = {OURS: assemble(plan.bundle, plan.work / OURS, *plan.options)}
    missing: dict[str, str] = {}
    chosen = Chosen.of(folders[OURS])
    for kind in (kind for kind in KINDS if kind in plan.kinds and kind != OURS):
        say(f"Assembling {kind} ...")
        try:
            bundle = with_k(plan.checkpoint, 1, plan.work) if kind == NAIVE else plan.bundle
            folders[kind] = reference(kind, bundle, plan.work / kind, chosen, plan.checkpoint)
        except HmerError as error:
            missing[kind] = str(error)
    for k in plan.ks:
        name = f"k={k}"
        say(f"Assembling ours with {name} ...")
        try:
            bundle = with_k(plan.checkpoint, k, plan.work)
            folders[name] = assemble(bundle, plan.work / f"k{k}", *fixed(plan.options, chosen))
        except HmerError as error:
            missing[name] = str(error)
    return {name: folders[name] for name in _sorted(folders)}, missing, chosen


def fixed(options: Sequence[str], chosen: Chosen) -> list[str]:
    """``options`` with what was chosen in place of ``--target auto``: not measured again."""
    options = [part for o in options for part in (o.split("=") if "--target=" in o else (o,))]
    if "auto" not in options:
        return options
    same = [chosen.target if option == "auto" else option for option in options]
    if chosen.precision == "bf16":
        same += ["--precision", "bf16"]
    if chosen.step_target != chosen.target and "--step-target" not in same:
        same += ["--step-target", chosen.step_target]
    return same


def _sorted(names: Mapping[str, Path]) -> list[str]:
    return sorted(names, key=lambda n: (KINDS.index(n) if n in KINDS else len(KINDS), n))


def start(
    folders: Mapping[str, Path], starts: int, stack: ExitStack, say: Callable[[str], None]
) -> dict[str, Contender]:
    """Start a server for each; ours ``starts`` times, so that its start is measured warm."""
    found = {}
    for name, folder in folders.items():
        say(f"Starting {name} ...")
        ready: list[float] = []
        if name == OURS:
            for _ in range(starts - 1):
                with ServedProcess(folder) as trial:
                    ready.append(trial.ready_s)
        server = stack.enter_context(ServedProcess(folder))
        title = TITLES.get(name, f"ours, k = {name.removeprefix('k=')}")
        contender = Contender(name, title, server, [*ready, server.ready_s])
        contender.idle = server.usage()
        found[name] = contender
    return found


def warm_ready(contender: Contender) -> float:
    """Seconds until ready, the median of all starts but the first."""
    return statistics.median(contender.ready_s[1:] or contender.ready_s)
