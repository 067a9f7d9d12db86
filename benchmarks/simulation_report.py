"""The tables, remarks and plots of ``hmer-bench simulate``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.load import OPEN
from benchmarks.simulation_questions import replicas_table, validation_table
from benchmarks.simulation_scaling import scaling_table
from benchmarks.speed_plots import Axes, drawn
from hmer.tables import Table

AIM_PERCENT = 15.0  # how far off the predicted p95 of an open loop may be


def tables(report: Mapping[str, Any]) -> list[Table]:
    """Validation, replicas, and signals, as far as they are there."""
    found = []
    if report["validation"]:
        found.append(validation_table(report["validation"]))
    found.append(replicas_table(report["replicas"], report["rate"]))
    if report.get("instead"):
        found.append(replicas_table(report["instead"], report["rate"]))
    if report["autoscaling"]:
        found.append(scaling_table(report["autoscaling"]))
    return found


def notes(report: Mapping[str, Any]) -> list[str]:
    """What the tables do not say by themselves."""
    found = []
    compared = [
        level
        for level in report["validation"]
        if level["kind"] == OPEN and level["error_percent"]["p95"] is not None
    ]
    errors = [abs(level["error_percent"]["p95"]) for level in compared]
    if (pace := report["service"].get("pace")) is not None:
        found.append(
            f"All parts were taken {pace:.2f} times as long as they were timed: fitted to requests "
            "one at a time between the levels of the load test."
        )
    if (speed := report["service"].get("shared_speed")) is not None:
        found.append(
            f"CPUs that are shared have {speed:.2f} of their speed: fitted to the closed loop of "
            "the full server. The open loops were not used for it."
        )
    if errors:
        verdict = "within" if max(errors) <= AIM_PERCENT else "not within"
        found.append(
            f"Predicted p95 of the open loops is off by at most {max(errors):.0f} %: {verdict} the "
            f"aim of {AIM_PERCENT:.0f} %."
        )
        if max(errors) > AIM_PERCENT:
            found.append("Take what follows from the simulation with that reserve.")
        found += _unsteady(compared)
    elif not report["validation"]:
        found.append("The simulation was not held against a load test: give one by --validate.")
    else:
        found.append("The load test has no open loop: what the aim is about was not compared.")
    over = [row for row in report["replicas"] if row["found"] and row["found"]["rate"] is None]
    if over:
        idle = max(row["found"]["idle_ms"] for row in over)
        found.append(
            f"No number of replicas holds {report['bound_ms']:g} ms here: without any load "
            f"{over[0]['found']['percentile']} is {idle:.0f} ms. What follows is for a bound "
            "that can be held; give --bound for another, or a faster device's times."
        )
    return found


def _unsteady(levels: Sequence[Mapping[str, Any]]) -> list[str]:
    """A remark where equal rounds of the load test differ more than a prediction may."""
    apart = [
        (rounds[-1] / rounds[0], level["level"], rounds)
        for level in levels
        if (rounds := level.get("rounds_p95")) and rounds[0] > 0
    ]
    if not apart or max(apart)[0] <= (1 + AIM_PERCENT / 100) ** 2:
        return []
    times, level, rounds = max(apart)
    return [
        f"Equal rounds of the load test differ by themselves: at {level:g} a second the p95 of one "
        f"is {times:.1f} times that of another ({rounds[0]:.0f} to {rounds[-1]:.0f} ms). This "
        "machine was not steady enough to judge the aim there; more --rounds help a little."
    ]


def validation_plot(report: Mapping[str, Any]) -> str:
    """p50 and p95 of the open loops over their rate: measured and simulated."""
    levels = [level for level in report["validation"] if level["kind"] == OPEN]

    def draw(axes: Axes) -> None:
        x = [level["level"] for level in levels]
        for index, percentile in enumerate(("p50", "p95")):
            for key, name, style in (
                ("measured", "measured", "-o"),
                ("predicted", "simulated", "--x"),
            ):
                y = [level[key][percentile] for level in levels]
                axes.plot(x, y, style, color=f"C{index}", label=f"{percentile}, {name}")
        axes.set(xlabel="requests a second offered (Poisson)", ylabel="latency, ms", ylim=(0, None))
        axes.legend()

    return drawn(draw, (6.5, 4.0))


def scaling_plot(report: Mapping[str, Any]) -> str:
    """Replicas over time by signal, and what the requests of that time need."""
    found = report["autoscaling"]
    enough = found["load"] * found["enough"]

    def draw(axes: Axes) -> None:
        first = found["signals"][0]["history"]
        axes.step(
            [h["at"] / 60 for h in first],
            [h["rate"] / enough for h in first],
            where="post", color="0.6", linewidth=3, label="needed for the requests",
        )  # fmt: skip
        for one in found["signals"]:
            late = f"{100 * one['late']:.1f} % late"
            axes.step(
                [h["at"] / 60 for h in one["history"]],
                [h["replicas"] for h in one["history"]],
                where="post", label=f"{one['signal']} ({late})",
            )  # fmt: skip
        axes.set(xlabel="minutes", ylabel="replicas", ylim=(0, None))
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.legend(fontsize="small")

    return drawn(draw, (7.5, 4.2))
