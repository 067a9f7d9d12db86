"""The plots of a speed report, as SVG text."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from benchmarks.figures import NEEDED
from benchmarks.latency import STAGES
from hmer.errors import MissingDependency

Axes = Any  # matplotlib's


def drawn(draw: Callable[[Axes], None], size: tuple[float, float]) -> str:
    """What ``draw`` does to axes, on a picture of ``size`` inches. Raises ``MissingDependency``."""
    return drawn_in_rows([draw], size)


def drawn_in_rows(
    draws: Sequence[Callable[[Axes], None]], size: tuple[float, float], xlabel: str = ""
) -> str:
    """What each of ``draws`` does to axes of its own, one above another over the same x.

    ``xlabel``: below the last, if its own is not.
    """
    try:
        matplotlib = import_module("matplotlib")
        figures = import_module("matplotlib.figure")
    except ImportError as error:
        raise MissingDependency(
            "The plots are drawn with matplotlib. Install it with: pip install 'hmer[report]'"
        ) from error
    # Equal figures give equal files: no date, no random ids.
    with matplotlib.rc_context({"svg.hashsalt": "hmer", "svg.fonttype": "none"}):
        figure = figures.Figure(figsize=size, layout="constrained")
        rows = figure.subplots(len(draws), sharex=len(draws) > 1, squeeze=False)[:, 0]
        for draw, axes in zip(draws, rows, strict=True):
            draw(axes)
            axes.grid(alpha=0.25)
            axes.set_axisbelow(True)
        if xlabel:
            rows[-1].set_xlabel(xlabel)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def contenders(report: Mapping[str, Any], key: str, label: str) -> str:
    """Bars of ``key`` (a spread) of every contender, with the quartiles of the rounds."""
    rows = [(one["title"], one[key]) for one in report["contenders"].values() if one[key]]
    bare = report["in_process"].get(key)
    if bare:
        rows.append(("in process, without Triton", bare))

    def draw(axes: Axes) -> None:
        names = [name for name, _ in rows]
        medians = [found["median"] for _, found in rows]
        errors = (
            None
            if report["rounds"] == 1
            else [
                [found["median"] - found["q1"] for _, found in rows],
                [found["q3"] - found["median"] for _, found in rows],
            ]
        )
        ours = [name.startswith("ours") for name in names]
        colours = ["C0" if own else "0.65" for own in ours]
        axes.barh(names, medians, xerr=errors, capsize=3, color=colours)
        axes.invert_yaxis()
        rounds = report["rounds"]
        of = f"median and quartiles of {rounds} rounds" if rounds > 1 else "one round"
        axes.set(xlabel=f"{label}, {of}")

    return drawn(draw, (7.5, 0.45 * len(rows) + 1.0))


def load_curve(levels: Sequence[Mapping[str, Any]], kind: str) -> str:
    """Latency percentiles over throughput of the levels of a ``kind``, each level named."""
    chosen = [
        level
        for level in levels
        if level["kind"] == kind and level["latency_ms"]["p50"] is not None
    ]

    def draw(axes: Axes) -> None:
        x = [level["throughput"] for level in chosen]
        highest = [0.0] * len(chosen)
        for percentile in ("p50", "p95", "p99"):
            # As in the table: of too few answers there is none.
            there = [index for index, level in enumerate(chosen) if _enough(level, percentile)]
            y = [chosen[index]["latency_ms"][percentile] for index in there]
            if not there:
                continue
            axes.plot([x[i] for i in there], y, marker="o", linewidth=1.5, label=percentile)
            for index, value in zip(there, y, strict=True):
                highest[index] = max(highest[index], value)
        for level, at, top in zip(chosen, x, highest, strict=True):
            axes.annotate(
                f"{level['level']:g}",
                (at, top),
                textcoords="offset points",
                xytext=(4, 4),
                fontsize="small",
            )
        at_points = "requests under way" if kind == "closed" else "requests a second offered"
        axes.set(
            xlabel=f"answers a second (at the points: {at_points})",
            ylabel="latency, ms",
            xlim=(0, 1.08 * max(x, default=1.0)),
            ylim=(0, 1.1 * max(highest, default=1.0)),
        )
        axes.legend(loc="upper left")

    return drawn(draw, (6.5, 4.0))


def _enough(level: Mapping[str, Any], percentile: str) -> bool:
    count = level.get("answered")
    return count is None or count >= NEEDED[percentile]


def stages(paths: Mapping[str, Mapping[str, Any]]) -> str:
    """Stacked bars: where the mean time of a request goes on each path."""
    known = {name: path["stages_ms"] for name, path in paths.items() if path["stages_ms"]}

    def draw(axes: Axes) -> None:
        left = [0.0] * len(known)
        for stage in STAGES:
            widths = [max(0.0, found.get(stage, 0.0)) for found in known.values()]
            if any(widths):
                axes.barh(list(known), widths, left=left, label=stage)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axes.invert_yaxis()
        axes.set(xlabel="mean milliseconds of a request, one at a time")
        axes.legend(fontsize="small", ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.2))

    return drawn(draw, (7.5, 0.5 * len(known) + 1.8))


def by_length(series: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """p50 over the number of tokens of the answer, a line for each of ``series``."""
    names = list(dict.fromkeys(length for found in series.values() for length in found))
    names.sort(key=lambda name: int(name.lstrip(">=").partition("-")[0]))

    def draw(axes: Axes) -> None:
        for name, found in series.items():
            there = [length for length in names if length in found]
            x = [names.index(length) for length in there]
            axes.plot(x, [found[length]["p50"] for length in there], marker="o", label=name)
        axes.set_xticks(range(len(names)), names)
        axes.set(xlabel="tokens of the answer", ylabel="p50, ms", ylim=(0, None))
        # Below: lines may be anywhere.
        axes.legend(fontsize="small", ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.18))

    return drawn(draw, (6.5, 3.6 + 0.12 * len(series)))


def limits(found: Mapping[str, Any]) -> str:
    """Measured time beside the time that the limit allows."""
    encoder, step = found["encoder"], found["step"]
    rows = [("encoder, a picture", encoder["ms"], encoder["limit_ms"])] + [
        (f"step, {batch['rows']} row{'s' * (batch['rows'] > 1)}", batch["ms"], batch["weights_ms"])
        for batch in step["batches"]
    ]

    def draw(axes: Axes) -> None:
        places = range(len(rows))
        bars = axes.barh(
            [p - 0.2 for p in places], [r[1] for r in rows], height=0.4, label="measured"
        )
        times = [f"x {measured / limit:.1f}" for _, measured, limit in rows]
        axes.bar_label(bars, times, padding=3, fontsize="small")
        axes.margins(x=0.1)
        axes.barh(
            [p + 0.2 for p in places],
            [r[2] for r in rows],
            height=0.4,
            label="limit: FLOPs at the convolution's peak, or weights at the memory's bandwidth",
        )
        axes.set_yticks(places, [r[0] for r in rows])
        axes.invert_yaxis()
        axes.set(xlabel="milliseconds a call")
        axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.4, -0.25))

    return drawn(draw, (7.0, 0.5 * len(rows) + 1.6))
