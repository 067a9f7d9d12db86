"""The plots of ``hmer-bench growth`` and the roofline of ``hmer-bench limits``, as SVG text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.growth_axes import AXES, PICTURE
from benchmarks.limits import intensity, middle
from benchmarks.speed_plots import Axes, drawn

_LATENCIES = {
    "p50_alone_ms": "p50 alone",
    "p50_ms": "p50 under load",
    "p95_ms": "p95 under load",
}


def plot(found: Mapping[str, Any]) -> str:
    """One axis' entry of a growth report. Raises ``MissingDependency`` without matplotlib."""
    if AXES[found["axis"]].of == PICTURE:
        return _pictures(found)
    return _served(found)


def _pictures(found: Mapping[str, Any]) -> str:
    """A dot for every picture, and the line through them."""

    def draw(axes: Axes) -> None:
        for stage, line in found["lines"].items():
            x = [point["x"] for point in found["points"]]
            y = [point[f"{stage}_ms"] for point in found["points"]]
            dots = axes.scatter(x, y, s=12, alpha=0.7, label=stage)
            if line is not None:
                ends = [min(x), max(x)]
                axes.plot(
                    ends,
                    [line["at_0_ms"] + line["a_unit_ms"] * end for end in ends],
                    color=dots.get_facecolor()[0],
                    label=f"{line['at_0_ms']:.2f} + {line['a_unit_ms']:.3f} x ms "
                    f"(R² {line['r2']:.2f})",
                )
        axes.set(xlabel=found["label"], ylabel="time of a picture, ms", ylim=(0, None))
        axes.set_xlim(0, None)
        axes.legend(fontsize="small")

    return drawn(draw, (6.5, 4.0))


def _served(found: Mapping[str, Any]) -> str:
    """Latency on the left, throughput on the right, with the quartiles of the rounds."""

    def draw(axes: Axes) -> None:
        right = axes.twinx()
        handles = []
        series = {**dict.fromkeys(_LATENCIES, axes), "throughput": right}
        for index, (key, side) in enumerate(series.items()):
            there = [point for point in found["points"] if point.get(key)]
            if not there:
                continue
            middle = [point[key]["median"] for point in there]
            errors = [
                [point[key]["median"] - point[key]["q1"] for point in there],
                [point[key]["q3"] - point[key]["median"] for point in there],
            ]
            handles.append(
                side.errorbar(
                    [point["x"] for point in there],
                    middle,
                    yerr=errors,
                    marker="s" if key == "throughput" else "o",
                    linestyle="--" if key == "throughput" else "-",
                    color=f"C{index}",
                    capsize=3,
                    label=_LATENCIES.get(key, "requests/s (right)"),
                )
            )
        ticks = [point["x"] for point in found["points"]]
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set(xlabel=found["label"], ylabel="latency, ms", ylim=(0, None))
        right.set(ylabel=f"requests/s, {found['load']}", ylim=(0, None))
        # Above: what stands on the right would be drawn over it.
        place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0)}
        axes.legend(handles=handles, fontsize="small", ncols=4, **place)

    return drawn(draw, (6.5, 4.0))


def roofline(found: Mapping[str, Any]) -> str:
    """Encoder and step below the machine's peaks: operations a second over operations a byte.

    ``found``: ``benchmarks.limits.measure``'s. Bytes are those of weights, inputs and outputs;
    what a layer hands to the next is taken to stay in the cache. A point above the slope has its
    weights there, too.
    """
    peaks = {f"{peak['work']} {peak['precision']}": peak["gflops"] for peak in found["peaks"]}
    memory = max(found["bandwidth_gb_s"].values())
    parts = {
        f"encoder, {image['height']} x {image['width']}": image
        for image in (middle(found["encoder"]["images"]),)
    }
    for batch in found["step"]["batches"]:
        name = f"step, {batch['rows']} row{'s' * (batch['rows'] > 1)}, k = {found['step']['k']}"
        parts[name] = batch

    def draw(axes: Axes) -> None:
        places = {name: (intensity(part), part["gflops_a_second"]) for name, part in parts.items()}
        low = min(x for x, _ in places.values()) / 4
        high = max(*(x for x, _ in places.values()), max(peaks.values()) / memory) * 4
        for index, (name, peak) in enumerate(sorted(peaks.items(), key=lambda item: item[1])):
            knee = peak / memory
            axes.plot(
                [low, knee, high],
                [low * memory, peak, peak],
                color=f"C{index}",
                linewidth=1,
                label=f"{name}: {peak:.0f} GFLOP/s",
            )
        for (name, (x, y)), marker in zip(places.items(), "os^vD", strict=False):
            axes.scatter([x], [y], marker=marker, color="black", zorder=3, label=name)
        axes.set(
            xscale="log",
            yscale="log",
            xlim=(low, high),
            xlabel="operations a byte of weights, inputs and outputs",
            ylabel="10⁹ operations a second",
        )
        axes.legend(fontsize="x-small", title=f"memory {memory:.1f} GB/s", title_fontsize="x-small")

    return drawn(draw, (7.0, 4.5))
