"""The tables of ``hmer-bench growth``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.figures import Spread
from benchmarks.growth_axes import AXES, PICTURE
from hmer.tables import Table

_COLUMNS = {
    "throughput": "requests/s",
    "p50_ms": "p50 ms",
    "p95_ms": "p95 ms",
    "p50_alone_ms": "p50 ms alone",
}


def tables(report: Mapping[str, Any]) -> list[Table]:
    """One for the axes of the picture, and one for every other axis."""
    lines = [
        (
            f"{stage}, by {AXES[name].label}",
            *(f"{line[key]:.3f}" for key in ("at_0_ms", "a_unit_ms", "r2")),
        )
        for name, found in report["axes"].items()
        if AXES[name].of == PICTURE
        for stage, line in found["lines"].items()
        if line is not None
    ]
    shown = []
    if lines:
        header = ("stage", "ms at 0", "ms a unit", "R²")
        shown.append(Table("What a picture costs", header, tuple(lines)))
    return shown + [
        _served(found) for name, found in report["axes"].items() if AXES[name].of != PICTURE
    ]


def _served(found: Mapping[str, Any]) -> Table:
    first = found["points"][0] if found["points"] else {}
    rows = [
        (
            str(point["x"]),
            *(_spread(point[key]) for key in _COLUMNS),
            *(_ratio(point[key], first[key]) for key in ("throughput", "p50_ms")),
        )
        for point in found["points"]
    ]
    # Whatever was left out stands where its value would.
    rows += [(value, *["-"] * len(_COLUMNS), reason, "-") for value, reason in _skipped(found)]
    rows.sort(key=lambda row: int(row[0]))
    header = (found["axis"], *_COLUMNS.values(), "requests/s / first", "p50 / first")
    return Table(f"{found['label']}; {found['load']}", header, tuple(rows), figures=0)


def _skipped(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    return list(found["skipped"].items())


def _spread(found: Mapping[str, float] | None) -> str:
    if not found:
        return "-"
    return Spread(found["median"], found["q1"], found["q3"], int(found["n"])).text(1)


def _ratio(value: Mapping[str, float] | None, first: Mapping[str, float] | None) -> str:
    return f"x {value['median'] / first['median']:.2f}" if value and first else "-"
