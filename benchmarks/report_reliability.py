"""Sections of the report on what a server stands: long load, overload, faults, hostile input."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks import faults, hostile_report, overload_plots, overload_tables, soak_cli
from benchmarks import overload_verdicts as judging
from benchmarks.hostile_send import ANSWERED, CLOSED, LEFT, LOST, TIMEOUT
from benchmarks.report_types import Plot, Section
from benchmarks.speed_plots import Axes, drawn_in_rows
from hmer.tables import Table

# Of a soak's glances: a panel's label and its lines.
_SOAK_PANELS: Mapping[str, Mapping[str, str]] = {
    "open files, threads": {"fds": "open files", "threads": "threads"},
    "shared memory, MB": {"shm_mb": "shared memory"},
    "latency, ms": {"p50_ms": "p50", "p95_ms": "p95"},
    "requests": {"rate": "a second", "under_way": "under way"},
}


def soak_tables(found: Mapping[str, Any]) -> list[Table]:
    """The drifts with their verdicts and the outcomes; of a bare series the first and last glance.

    A figure that is 0 at first has no ratio.
    """
    if "drift" in found:
        return soak_cli.tables(dict(found))
    series = found["series"]
    rows = []
    for name, values in _lines(series).items():
        there = [value for value in values if value is not None]
        if there:
            ratio = f"{there[-1] / there[0]:.3f}" if there[0] else "-"
            shown = (f"{there[0]:.1f}", f"{there[-1]:.1f}", f"{max(there):.1f}", ratio)
            rows.append((name, *shown))
    minutes = series[-1]["t"] / 60 if series else 0.0
    header = ("", "first", "last", "most", "last / first")
    return [Table(f"{minutes:.0f} minutes", header, tuple(rows))]


def soak_plots(found: Mapping[str, Any]) -> list[Plot]:
    """Memory by process, files, shared memory, latencies and rates over time."""
    series: Sequence[Mapping[str, Any]] = found["series"]
    if not series:
        return []
    draws = [_memory(series)] if any(glance.get("own_mb") for glance in series) else []
    for label, lines in _SOAK_PANELS.items():
        there = {k: n for k, n in lines.items() if any(g.get(k) is not None for g in series)}
        if there:
            draws.append(_panel(series, label, there))
    if not draws:
        return []
    svg = drawn_in_rows(draws, (7.5, 1.7 * len(draws) + 0.5), "minutes")
    return [Plot("The server over time", svg)]


def _memory(series: Sequence[Mapping[str, Any]]) -> Callable[[Axes], None]:
    names = sorted({name for glance in series for name in glance.get("own_mb", ())})

    def draw(axes: Axes) -> None:
        stacks = [[glance.get("own_mb", {}).get(name, 0.0) for glance in series] for name in names]
        axes.stackplot(_minutes(series), *stacks, labels=names, alpha=0.8)
        axes.set(ylabel="memory, MB")
        _legend(axes)

    return draw


def _panel(
    series: Sequence[Mapping[str, Any]], label: str, lines: Mapping[str, str]
) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        for key, name in lines.items():
            y = [float("nan") if g.get(key) is None else g[key] for g in series]
            axes.plot(_minutes(series), y, label=name)
        axes.set(ylabel=label, ylim=(0, 1.1 * axes.get_ylim()[1]))
        _legend(axes)

    return draw


def _legend(axes: Axes) -> None:
    """Beside the lines, which are too many to leave room."""
    axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1.0, 0.5))


def _minutes(series: Sequence[Mapping[str, Any]]) -> list[float]:
    return [glance["t"] / 60 for glance in series]


def _lines(series: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    """Every figure of the glances, memory in all."""
    found: dict[str, list[float | None]] = {
        "memory without files, MB": [
            sum(glance["own_mb"].values()) if glance.get("own_mb") else None for glance in series
        ]
    }
    for lines in _SOAK_PANELS.values():
        for key in lines:
            found[key] = [glance.get(key) for glance in series]
    return found


def overload_tables_(found: Mapping[str, Any]) -> list[Table]:
    """The phases, and the verdicts."""
    return [overload_tables.phases(found), judging.table(judging.verdicts(found))]


def overload_plots_(found: Mapping[str, Any]) -> list[Plot]:
    """Latencies and refusals, and the server meanwhile."""
    plots = [Plot("Accepted and refused over time", overload_plots.overload(found))]
    if server := overload_plots.server(found):
        plots.append(Plot("The server at twice its capacity", server))
    return plots


def faults_tables(found: Mapping[str, Any]) -> list[Table]:
    """One row a fault."""
    return [faults.table([faults.Finding(**one) for one in found["faults"]])]


def hostile_tables(found: Mapping[str, Any]) -> list[Table]:
    """One row a kind of input."""
    rows = []
    for kind, told in found["kinds"].items():
        refused: Mapping[str, int] = told["refused"]
        shown = ", ".join(sorted(refused, key=lambda code: -refused[code])[:3])
        numbers = (
            *(told["cases"], sum(refused.values()), told[ANSWERED]),
            *(told[CLOSED] + told[LEFT], told[TIMEOUT], told[LOST]),
        )
        rows.append((kind, shown, *(str(number) for number in numbers), f"{told['slowest_s']:.2f}"))
    header = (
        *("kind", "refused with", "cases", "refused", "answered", "closed or cut", "hung"),
        *("connection lost", "slowest, s"),
    )
    return [Table("Hostile input", header, tuple(rows), figures=2)]


def hostile_plots(found: Mapping[str, Any]) -> list[Plot]:
    """The server's memory over the cases, where it was seen."""
    memory = found["memory"]
    if not memory or len(memory["all_mb"]) < 2:
        return []

    def draw(axes: Axes) -> None:
        there = memory["all_mb"]
        x = [found["cases"] * place / (len(there) - 1) for place in range(len(there))]
        axes.plot(x, there, marker=".")
        axes.set(xlabel="cases", ylabel="memory of all processes, MB", ylim=(0, None))

    return [Plot("Memory while it was attacked", drawn_in_rows([draw], (7.0, 3.0)))]


def _no_notes(found: Mapping[str, Any]) -> list[str]:
    return []


def _none(found: Mapping[str, Any]) -> list[Plot]:
    return []


RELIABILITY: dict[str, Section] = {
    "soak": Section("A long time under load", soak_tables, soak_plots, _no_notes),
    "overload": Section(
        "More than it can take",
        overload_tables_,
        overload_plots_,
        lambda found: [f"Capacity {found['capacity']:.1f} requests a second."],
    ),
    "faults": Section("Faults", faults_tables, _none, _no_notes),
    "hostile": Section("Hostile input", hostile_tables, hostile_plots, hostile_report.lines),
}
