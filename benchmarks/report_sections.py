"""Sections of the report beyond plain speed: accuracy, invariance, tuning, simulation, ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import growth_plots, growth_tables, quick, rivals, simulation_report, tune_cli
from benchmarks.invariance import judged
from benchmarks.report_types import Plot, Section
from benchmarks.speed_plots import Axes, drawn
from hmer import evaluation
from hmer.tables import Table

ACCURACY, INVARIANCE = "accuracy", "invariance"


def kind_of(found: Mapping[str, Any]) -> str | None:
    """Which command wrote ``found``: accuracy and invariance do not say, but look like nothing
    else."""
    if "benchmark" in found:
        return str(found["benchmark"])
    if "transformations" in found:
        return INVARIANCE
    if "scheme" in found and _ways(found):
        return ACCURACY
    return None


def _ways(found: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The sets of answers that were scored: those of a server, those in process."""
    return {
        name: part
        for name, part in found.items()
        if isinstance(part, Mapping) and "exprate" in part and "by_length" in part
    }


def accuracy_tables(found: Mapping[str, Any]) -> list[Table]:
    """The score, and by length and structure."""
    shown = []
    for name, part in _ways(found).items():
        for table in evaluation.tables(part)[:3]:
            title = f"{table.title or 'Score'}, {name}"
            shown.append(Table(title, table.header, table.rows, table.figures, table.code))
    return shown


def accuracy_plots(found: Mapping[str, Any]) -> list[Plot]:
    """ExpRate by length, with its 95 % interval."""
    ways = {name: part["by_length"] for name, part in _ways(found).items()}

    def draw(axes: Axes) -> None:
        for name, lengths in ways.items():
            x = list(lengths)
            y = [100 * lengths[length]["exprate"] for length in x]
            bounds = [lengths[length]["exprate_95"] for length in x]
            errors = [
                [middle - 100 * low for middle, (low, _) in zip(y, bounds, strict=True)],
                [100 * high - middle for middle, (_, high) in zip(y, bounds, strict=True)],
            ]
            axes.errorbar(x, y, yerr=errors, marker="o", capsize=3, label=name)
        axes.set(xlabel="tokens of the truth", ylabel="ExpRate, %", ylim=(0, 100))
        axes.legend()

    return [Plot("ExpRate by length, with 95 % intervals", drawn(draw, (6.5, 3.6)))]


def invariance_tables(found: Mapping[str, Any]) -> list[Table]:
    """One row a transformation."""
    rows = tuple(
        (
            str(row["transformation"]),
            str(row["about"]),
            judged(row["answers_unchanged"], row["aim"]),
            judged(row["tokens_unchanged"], row["aim"]),
            f"{row['aim']:.0f}",
        )
        for row in found["transformations"]
    )
    header = ("transformation", "what", "answers unchanged, %", "tokens unchanged, %", "aim, %")
    return [Table("Answers when the picture changes", header, rows, 2)]


def invariance_plots(found: Mapping[str, Any]) -> list[Plot]:
    """Bars of the answers that stayed, with their intervals and aims."""
    rows: Sequence[Mapping[str, Any]] = found["transformations"]

    def draw(axes: Axes) -> None:
        names = [row["transformation"] for row in rows]
        y = [row["answers_unchanged"] for row in rows]
        errors = [
            [max(0.0, row["answers_unchanged"] - row["interval"][0]) for row in rows],
            [max(0.0, row["interval"][1] - row["answers_unchanged"]) for row in rows],
        ]
        colours = ["C0" if row["reached"] else "C1" for row in rows]
        axes.barh(names, y, xerr=errors, capsize=2, color=colours)
        axes.scatter([row["aim"] for row in rows], names, marker="|", s=140, color="black",
                     label="aim", zorder=3)  # fmt: skip
        axes.invert_yaxis()
        axes.set(xlabel="answers unchanged, % (95 % interval; orange: aim missed)", xlim=(0, 105))
        axes.legend(loc="lower left")

    return [Plot("Answers unchanged", drawn(draw, (7.5, 0.32 * len(rows) + 1.0)))]


def growth_section_plots(found: Mapping[str, Any]) -> list[Plot]:
    """One for each axis."""
    return [
        Plot(f"By {one.get('label', name)}", growth_plots.plot(one))
        for name, one in found["axes"].items()
    ]


def simulation_plots(found: Mapping[str, Any]) -> list[Plot]:
    """Measured beside simulated, and replicas over time."""
    plots = []
    if any(level["kind"] == "open" for level in found["validation"]):
        plots.append(Plot("Simulated beside measured", simulation_report.validation_plot(found)))
    if found["autoscaling"]:
        plots.append(Plot("Replicas by autoscaling signal", simulation_report.scaling_plot(found)))
    return plots


def tune_plots(found: Mapping[str, Any]) -> list[Plot]:
    """Every duel's median gain."""
    duels = [duel for duel in found["duels"] if duel["gain"] is not None]
    if not duels:
        return []

    def draw(axes: Axes) -> None:
        names = [
            f"{number}. {duel['changed']}: {_value(duel, 'incumbent')} to "
            f"{_value(duel, 'challenger')}"
            for number, duel in enumerate(duels, 1)
        ]
        colours = ["C0" if duel["kept"] else "0.7" for duel in duels]
        axes.barh(names, [100 * duel["gain"] for duel in duels], color=colours)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.invert_yaxis()
        axes.set(xlabel="median gain over the settings so far, % (blue: kept)")

    return [Plot("What was tried, in order", drawn(draw, (8.5, 0.32 * len(duels) + 1.0)))]


def _value(duel: Mapping[str, Any], side: str) -> str:
    value = duel[side][duel["changed"]]
    return " ".join(value) if isinstance(value, list) else str(value)


def quick_tables(found: Mapping[str, Any]) -> list[Table]:
    """The ratios beside the baseline, if there was one."""
    return [quick.table(found["ratios"], found["missing"], found.get("baseline"))]


def rivals_tables(found: Mapping[str, Any]) -> list[Table]:
    """One row a side."""
    return [rivals.table(found["rivals"], found["missing"])]


def _none(found: Mapping[str, Any]) -> list[Plot]:
    return []


def _no_notes(found: Mapping[str, Any]) -> list[str]:
    return []


def _invariance_notes(found: Mapping[str, Any]) -> list[str]:
    return [f"{found['n']} expressions, seed {found['seed']}, {found['target']}"]


def _tune_notes(found: Mapping[str, Any]) -> list[str]:
    return [f"The search ended because {found['ended']}."]


MORE: dict[str, Section] = {
    "rivals": Section("Rivals", rivals_tables, _none, lambda found: [str(found["notes"])]),
    "growth": Section("How cost grows", growth_tables.tables, growth_section_plots, _no_notes),
    ACCURACY: Section(
        "Accuracy",
        accuracy_tables,
        accuracy_plots,
        lambda found: evaluation.describe(found).splitlines(),
    ),
    INVARIANCE: Section("Invariance", invariance_tables, invariance_plots, _invariance_notes),
    "tune": Section("Settings for this machine", tune_cli.tables, tune_plots, _tune_notes),
    "simulate": Section(
        "Internet scale, simulated",
        simulation_report.tables,
        simulation_plots,
        simulation_report.notes,
    ),
    quick.KIND: Section("Ratios in one run", quick_tables, _none, _no_notes),
}
