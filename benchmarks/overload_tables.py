"""The tables of an overload test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.overload_watch import series
from hmer.tables import Table

TITLES = {
    "usual": "80 % of the capacity",
    "twice": "twice the capacity",
    "mixed": "twice, two priorities",
}


def phases(report: Mapping[str, Any]) -> Table:
    """One row a phase, and one for each priority of a mixed one."""
    header = (
        *("load", "requests/s", "answered", "refused", "share %", "refused in, p99 ms"),
        *("deadline", "lost", "p50 ms", "p95 ms", "p99 ms", "most in it", "MB", "threads"),
    )
    rows = []
    for name, title in TITLES.items():
        if name not in report:
            continue
        phase = report[name]
        glances = phase["glances"]
        shown = (
            _most(series(glances, "waiting_for_a_worker", "workers_in_use")),
            _most(series(glances, "pss_mb")),
            _most(series(glances, "threads")),
        )
        rows.append((title, f"{phase['rate']:.1f}", *_row(phase), *shown))
        if len(phase["priorities"]) > 1:
            for priority, part in sorted(phase["priorities"].items(), reverse=True):
                rate = part["requests"] / phase["seconds"]
                rows.append((f"- {priority}", f"{rate:.1f}", *_row(part), "", "", ""))
    return Table("Overload", header, tuple(rows))


def _row(part: Mapping[str, Any]) -> tuple[str, ...]:
    latency = part["latency_ms"]
    return (
        str(part["answered"]),
        str(part["refused"]),
        f"{100 * part['refused_share']:.1f}",
        _ms(part["refusal_ms"]["p99"]),
        str(part["deadline_exceeded"]),
        str(part["lost"]),
        *(_ms(latency[name]) for name in ("p50", "p95", "p99")),
    )


def _most(values: list[float]) -> str:
    return f"{max(values):.0f}" if values else "-"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
