"""A soak over time: memory, files and shared memory, latencies, requests."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from hmer.errors import BadParameter, MissingDependency


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Write the plot of ``hmer-bench soak``'s figures. Raises ``MissingDependency``."""
    try:
        matplotlib = import_module("matplotlib")
        figures = import_module("matplotlib.figure")
    except ImportError as error:
        raise MissingDependency(
            "The plot is drawn with matplotlib. Install it with: pip install 'hmer[report]'"
        ) from error
    series = report["series"]
    minutes = [glance["t"] / 60 for glance in series]
    with matplotlib.rc_context({"svg.hashsalt": "hmer", "svg.fonttype": "none"}):
        figure = figures.Figure(figsize=(8, 9), layout="constrained")
        memory, held, latency, rate = figure.subplots(4, sharex=True)
        _memory(memory, minutes, series)
        held.plot(minutes, [g.get("fds") for g in series], label="open files")
        held.plot(minutes, [g.get("threads") for g in series], label="threads")
        held.plot(minutes, [g.get("shm_mb") for g in series], label="shared memory, MB")
        held.set_ylim(bottom=0)
        latency.plot(minutes, [g["p50_ms"] for g in series], label="p50")
        latency.plot(minutes, [g["p95_ms"] for g in series], label="p95")
        latency.set(ylabel="ms from when it was due", yscale="log")
        rate.plot(minutes, [g["rate"] for g in series], label="requests a second")
        rate.plot(minutes, [g["under_way"] for g in series], label="under way")
        rate.plot(minutes, [g["unexpected"] for g in series], label="not as expected", color="C3")
        rate.set(xlabel="minutes")
        for axes in (memory, held, latency, rate):
            axes.grid(alpha=0.25)
            axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.suptitle(f"{report['rate']:.1f} requests a second, {report['load']:.0%} of capacity")
        try:
            figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        except (OSError, ValueError) as error:
            raise BadParameter(f"The plot cannot be written to {path}: {error}.") from error


def _memory(axes: Any, minutes: list[float], series: list[dict[str, Any]]) -> None:
    names = sorted({name for glance in series for name in glance.get("own_mb", ())})
    stacks = [[glance.get("own_mb", {}).get(name, 0.0) for glance in series] for name in names]
    if names:
        axes.stackplot(minutes, *stacks, labels=names, alpha=0.8)
    axes.set(ylabel="memory without files, MB")
