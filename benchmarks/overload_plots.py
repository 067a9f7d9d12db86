"""The plots of an overload test: latencies and refusals over time, and the server meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.overload_tables import TITLES
from benchmarks.overload_watch import series
from benchmarks.speed_plots import Axes, drawn_in_rows


def overload(report: Mapping[str, Any]) -> str:
    """Latencies of the accepted requests, and the share refused, over each phase; SVG."""
    names = [name for name in ("usual", "twice") if name in report]

    def latency(axes: Axes) -> None:
        for name, colour in zip(names, ("C0", "C3"), strict=False):
            t, there = _minutes(report[name]["series"]), report[name]["series"]
            for key, style in (("p50", ":"), ("p99", "-")):
                y = [_nan(one[key]) for one in there]
                axes.plot(t, y, style, color=colour, label=f"{key}, {TITLES[name]}")
        if "usual" in report and (p99 := report["usual"]["latency_ms"]["p99"]) is not None:
            axes.axhline(2 * p99, color="0.4", linewidth=1, linestyle="--", label="bound of p99")
        axes.set(ylabel="accepted: latency, ms", ylim=(0, None))
        axes.legend(fontsize="small", ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))

    def refused(axes: Axes) -> None:
        for name, colour in zip(names, ("C0", "C3"), strict=False):
            part = report[name]["series"]
            y = [100 * one["refused_share"] for one in part]
            axes.plot(_minutes(part), y, color=colour, label=TITLES[name])
        axes.set(ylabel="refused, %", ylim=(-3, 103), xlabel="minutes since the load began")
        axes.legend(fontsize="small")

    return drawn_in_rows([latency, refused], (7.5, 5.0))


def server(report: Mapping[str, Any]) -> str:
    """Requests in the server, slots, memory and threads over the overload; SVG, or "" of none."""
    glances = report["twice"]["glances"]
    panels: list[tuple[str, dict[str, tuple[str, ...]]]] = [
        (
            "requests",
            {
                "in the server": ("waiting_for_a_worker", "workers_in_use"),
                "slots in use": ("slots_in_use",),
            },
        ),
        ("PSS, MB", {"memory": ("pss_mb",)}),
        ("threads", {"threads": ("threads",)}),
    ]
    shown = [
        (label, lines)
        for label, lines in panels
        if any(series(glances, *k) for k in lines.values())
    ]
    if not shown:
        return ""
    last = len(shown) - 1
    draws = [_panel(glances, label, lines, i == last) for i, (label, lines) in enumerate(shown)]
    return drawn_in_rows(draws, (7.5, 1.7 * len(draws) + 0.4))


def _panel(
    glances: Sequence[Mapping[str, Any]],
    label: str,
    lines: Mapping[str, tuple[str, ...]],
    last: bool,
) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        for name, keys in lines.items():
            there = [one for one in glances if all(key in one for key in keys)]
            axes.plot(_minutes(there), series([dict(one) for one in there], *keys), label=name)
        axes.set(ylabel=label, ylim=(0, 1.1 * axes.get_ylim()[1]))
        if last:
            axes.set(xlabel="minutes since the load began")
        if len(lines) > 1:
            axes.legend(fontsize="small")

    return draw


def _minutes(part: Sequence[Mapping[str, Any]]) -> list[float]:
    return [one["t"] / 60 for one in part]


def _nan(value: float | None) -> float:
    return float("nan") if value is None else value
