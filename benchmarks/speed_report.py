"""Many JSON files of ``hmer-bench`` -> one report, as Markdown and as a page."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import latency, limits, load, perf_analyzer, speed_plots
from benchmarks.compare_cli import contenders_table, spread_notes
from benchmarks.growth_plots import roofline
from benchmarks.machine import describe, remarks
from benchmarks.report_reliability import RELIABILITY
from benchmarks.report_sections import ACCURACY, MORE, kind_of
from benchmarks.report_types import Plot, Section, Shown
from benchmarks.targets import Target
from benchmarks.targets import table as targets_table
from hmer.errors import BadParameter, MissingDependency, MissingInput
from hmer.tables import Table

TEMPLATE = "speed.html"


def read(path: Path) -> dict[str, Any]:
    """A file that ``--output`` wrote, or a JSON document of accuracy or invariance.

    Raises ``MissingInput`` or ``BadParameter``.
    """
    if not path.is_file():
        raise MissingInput(f"There is no file {path}. Write one with --output.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadParameter(f"{path} is not a JSON file ({error}).") from None
    if not isinstance(found, dict) or kind_of(found) not in SECTIONS:
        raise BadParameter(
            f"{path} holds no figures of {', '.join(SECTIONS)}. Write one with their --output, or "
            "redirect their --json."
        )
    return found


def section(found: Mapping[str, Any], plots: bool, name: str = "the document") -> Shown:
    """The section of one file, called ``name`` in errors; ``plots`` need matplotlib.

    Raises ``BadParameter`` if fields are missing: the file is of another version.
    """
    kind = SECTIONS[str(kind_of(found))]
    try:
        tables = kind.tables(found)
        lines = [*_conditions(found), *kind.notes(found), *_missing(found)]
        return Shown(kind.title, lines, tables, kind.plots(found) if plots else [])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise BadParameter(
            f"{name} lacks what this version of the report needs ({type(error).__name__}: {error})."
            " Measure again with this version."
        ) from error


def _conditions(found: Mapping[str, Any]) -> list[str]:
    """On what, with what, and how to repeat it, as far as the file tells."""
    # Accuracy's own remarks begin with it.
    lines = [_what(found)] if "data" in found and kind_of(found) != ACCURACY else []
    about = found.get("machine")
    if about is None:
        return lines
    lines += [describe(about), f"Repeat: {shlex.join(about['command'])}"]
    return lines + remarks(about)


def _missing(found: Mapping[str, Any]) -> list[str]:
    """What could not be measured, and why."""
    missing = found.get("missing")
    return [f"{name}: {reason}" for name, reason in missing.items()] if missing else []


def markdown(sections: Sequence[Shown]) -> str:
    """All sections, without plots."""
    parts = ["# Measurements"]
    for one in sections:
        parts.append(f"## {one.title}")
        parts += [table.markdown() for table in one.tables]
        parts.append("\n".join(f"- {line}" for line in one.lines))
    return "\n\n".join(parts) + "\n"


def page(sections: Sequence[Shown]) -> str:
    """One HTML page that asks nothing of any server. Raises ``MissingDependency``."""
    try:
        import jinja2
    except ImportError as error:
        raise MissingDependency(
            "The HTML page is made with jinja2. Install it with: pip install 'hmer[report]'"
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(title="Measurements", sections=sections)


def _what(found: Mapping[str, Any]) -> str:
    parts = [str(found["data"])]
    if "inputs" in found:
        form = f" ({found['input']})" if found.get("input") else ""
        parts.append(f"{found['inputs']} inputs{form}")
    if "rounds" in found:
        parts.append(f"{found['rounds']} round{'s' * (found['rounds'] != 1)}")
    return ", ".join(parts)


def _compare_tables(found: Mapping[str, Any]) -> list[Table]:
    goals = targets_table([Target.from_dict(goal) for goal in found["targets"]])
    tables = [contenders_table(dict(found)), goals]
    return tables + (limits.tables(found["limits"]) if found["limits"] else [])


def _compare_plots(found: Mapping[str, Any]) -> list[Plot]:
    level = found["concurrency"]
    plots = [
        Plot(
            f"Throughput with {level} requests at once",
            speed_plots.contenders(found, "throughput", "answers a second"),
        ),
        Plot(
            "Latency of one request at a time",
            speed_plots.contenders(found, "p50_alone_ms", "p50 in ms"),
        ),
    ]
    if identity := found["identity"]:
        series = {
            "one at a time": identity["alone_by_length_ms"],
            f"{identity['concurrency']} at once": identity["loaded_by_length_ms"],
        }
        plots.append(Plot("Latency by length", speed_plots.by_length(series)))
    return plots + (_limits_plots(found["limits"]) if found["limits"] else [])


def _load_plots(found: Mapping[str, Any]) -> list[Plot]:
    captions = {load.CLOSED: "Closed loop", load.OPEN: "Open loop, Poisson arrivals"}
    kinds = {level["kind"] for level in found["levels"]}
    return [
        Plot(caption, speed_plots.load_curve(found["levels"], kind))
        for kind, caption in captions.items()
        if kind in kinds
    ]


def _latency_plots(found: Mapping[str, Any]) -> list[Plot]:
    paths = found["paths"]
    series = {name: path["by_length_ms"] for name, path in paths.items()}
    return [
        Plot("Where the time of a request goes", speed_plots.stages(paths)),
        Plot("Latency by length", speed_plots.by_length(series)),
    ]


def _limits_plots(found: Mapping[str, Any]) -> list[Plot]:
    return [
        Plot("Distance to the machine's limits", speed_plots.limits(found)),
        Plot("Roofline: encoder and step below the machine's peaks", roofline(found)),
    ]


def _limits_notes(found: Mapping[str, Any]) -> list[str]:
    return [
        f"The encoder's limit: {found['encoder']['against']}.",
        f"The step's limit: {found['step']['against']}.",
        "Bytes are those of weights, inputs and outputs; what a layer hands to the next is taken "
        "to stay in the cache, and so do a small step's weights, which then beats the memory.",
    ]


def _load_tables(found: Mapping[str, Any]) -> list[Table]:
    tables = [load.table(found["levels"])]
    other = found.get("perf_analyzer")
    if other and other["levels"]:
        tables.append(perf_analyzer.table(found["levels"], other["levels"]))
    return tables


def _load_notes(found: Mapping[str, Any]) -> list[str]:
    return load.notes(found["levels"])


def _latency_notes(found: Mapping[str, Any]) -> list[str]:
    return latency.notes(found["paths"])


def _no_notes(found: Mapping[str, Any]) -> list[str]:
    return []


SECTIONS: dict[str, Section] = {
    "compare": Section(
        "Ours beside what it replaces", _compare_tables, _compare_plots, spread_notes
    ),
    "latency": Section(
        "One request at a time",
        lambda found: latency.tables(found["paths"]),
        _latency_plots,
        _latency_notes,
    ),
    "load": Section("Under load", _load_tables, _load_plots, _load_notes),
    "limits": Section(
        "Limits of the machine",
        lambda found: [*limits.tables(dict(found)), limits.roofline_table(found)],
        _limits_plots,
        _limits_notes,
    ),
    **MORE,
    **RELIABILITY,
}
