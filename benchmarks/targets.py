"""What serving should reach, beside what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.compare import FEW, MANY, SHORT_TOKENS, Result
from benchmarks.contenders import OURS, warm_ready
from benchmarks.figures import Spread, ratios, spread
from benchmarks.repositories import EAGER, EAGER_ALONE, NAIVE
from hmer.tables import Table

# Bounds, each for the medians of one run.
OVER_EAGER, OVER_NAIVE = 6.5, 9.5
ALONE_TO_EAGER, ALONE_TO_BARE = 0.45, 1.2
OF_BARE, TAIL = 0.9, 1.4
READY_S, MEMORY_MB = 4.0, 400.0
SHORT, LIMIT = 2.0, 2.0
SAME_FP32, SAME_REDUCED = 1.0, 0.998


@dataclass(frozen=True)
class Target:
    """One target; ``value`` is ``None`` where it could not be measured, for ``note``."""

    name: str
    bound: float
    at_most: bool
    value: float | None
    rounds: Spread | None = None
    note: str = ""
    unit: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the value keeps the bound; ``None`` if there is none."""
        if self.value is None:
            return None
        return self.value <= self.bound if self.at_most else self.value >= self.bound

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "target": self.name,
            "bound": self.bound,
            "at": "most" if self.at_most else "least",
            "unit": self.unit,
            "value": self.value,
            "rounds": self.rounds.to_dict() if self.rounds else None,
            "met": self.met,
            "note": self.note,
        }

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Target:
        """Read back what ``to_dict`` gave."""
        rounds = found["rounds"]
        return cls(
            found["target"],
            found["bound"],
            found["at"] == "most",
            found["value"],
            Spread(rounds["median"], rounds["q1"], rounds["q3"], rounds["n"]) if rounds else None,
            found["note"],
            found["unit"],
        )


def _least(values: Iterable[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)


def _of_rounds(name: str, bound: float, at_most: bool, values: list[float | None]) -> Target:
    seen = spread(values)
    note = "" if seen else "not measured: a contender is missing"
    return Target(name, bound, at_most, seen.median if seen else None, seen, note)


def targets(result: Result, limits: Mapping[str, Any] | None, precision: str) -> list[Target]:
    """All targets, in order. ``limits``: ``benchmarks.limits.measure``'s report, if it was made."""
    there, bare = result.contenders, result.bare
    ours = there[OURS]
    found: list[Target] = []
    # The eager loop with one thread, too: where it is the better one, it is what is compared with.
    eager = [there[kind] for kind in (EAGER, EAGER_ALONE) if kind in there]
    naive = there[NAIVE].throughput if NAIVE in there else []
    fastest = [max(values) for values in zip(*(c.throughput for c in eager), strict=True)]
    alone = ours.column("alone", "p50")
    quickest = [_least(row) for row in zip(*(c.column("alone", "p50") for c in eager), strict=True)]
    found += [
        _of_rounds(
            "throughput under load / eager",
            OVER_EAGER,
            False,
            ratios(ours.throughput, fastest) if fastest else [],
        ),
        _of_rounds(
            "throughput under load / naive",
            OVER_NAIVE,
            False,
            ratios(ours.throughput, naive) if naive else [],
        ),
        _of_rounds(
            "p50 alone / eager",
            ALONE_TO_EAGER,
            True,
            ratios(alone, quickest) if quickest else [],
        ),
        _of_rounds(
            "p50 alone / in process",
            ALONE_TO_BARE,
            True,
            ratios(alone, [row["p50"] for row in bare.alone]),
        ),
        _of_rounds(
            "throughput under load / in process, all CPUs",
            OF_BARE,
            False,
            ratios(ours.throughput, bare.throughput),
        ),
        _of_rounds(
            "p95 / p50 under load",
            TAIL,
            True,
            ratios(ours.column("loaded", "p95"), ours.column("loaded", "p50")),
        ),
        Target("ready, warm", READY_S, True, warm_ready(ours), unit="s"),
        Target("memory of all processes", MEMORY_MB, True, ours.server.usage().total_mb, unit="MB"),
        _of_rounds(
            f"p50 of up to {SHORT_TOKENS} tokens, {MANY} at once / {FEW} at once",
            SHORT,
            True,
            ratios(result.short[MANY], result.short[FEW]),
        ),
    ]
    found += _limits(limits)
    found += _same(result.identity, precision)
    return found


def _limits(limits: Mapping[str, Any] | None) -> list[Target]:
    found = []
    for part, name in (
        ("encoder", "encoder's time / the time that its FLOPs need"),
        ("step", "step's time / the time that reading its weights needs"),
    ):
        gap = limits[part]["gap"] if limits else None
        note = limits[part]["against"] if limits else "not measured: --no-limits"
        found.append(Target(name, LIMIT, True, gap, note=note))
    return found


def _same(identity: Mapping[str, Any] | None, precision: str) -> list[Target]:
    bound = SAME_FP32 if precision == "fp32" else SAME_REDUCED
    found = []
    for key, name in (
        ("equal_to_one_by_one", f"answers, {MANY} at once, equal to one by one"),
        ("equal_to_in_process", f"answers, {MANY} at once, equal to in process"),
    ):
        value = identity[key] / identity["n"] if identity else None
        note = f"{identity[key]} of {identity['n']}" if identity else "not measured: --identity 0"
        found.append(Target(name, bound, False, value, note=note))
    return found


def table(found: list[Target]) -> Table:
    """Targets beside their values."""
    rows = []
    for target in found:
        unit = f" {target.unit}" if target.unit else ""
        shown = "-"
        if target.rounds is not None:
            shown = target.rounds.text()
        elif target.value is not None:
            shown = f"{target.value:.4g}"
        rows.append(
            (
                target.name,
                f"{'<=' if target.at_most else '>='} {target.bound:g}{unit}",
                f"{shown}{unit}" if target.value is not None else "-",
                {True: "met", False: "not met", None: "-"}[target.met],
                target.note,
            )
        )
    return Table("Targets", ("target", "bound", "measured", "", "note"), tuple(rows), figures=5)
