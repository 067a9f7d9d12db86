"""Many JSON files of ``hmer-bench`` -> one report, as Markdown and as a page."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import latency, limits, load, speed_plots
from benchmarks.compare_cli import contenders_table
from benchmarks.machine import describe
from benchmarks.targets import Target
from benchmarks.targets import table as targets_table
from hmer.errors import BadParameter, MissingDependency, MissingInput
from hmer.tables import Table

TEMPLATE = "speed.html"


@dataclass(frozen=True)
class Plot:
    """A caption and an SVG."""

    caption: str
    svg: str


@dataclass(frozen=True)
class Section:
    """One JSON file. ``lines`` say on what and how it was measured."""

    title: str
    lines: list[str]
    tables: list[Table]
    plots: list[Plot] = field(default_factory=list)


def read(path: Path) -> dict[str, Any]:
    """A file that ``--output`` wrote. Raises ``MissingInput`` or ``BadParameter``."""
    if not path.is_file():
        raise MissingInput(f"There is no file {path}. Write one with --output.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadParameter(f"{path} is not a JSON file ({error}).") from None
    if not isinstance(found, dict) or found.get("benchmark") not in SECTIONS:
        raise BadParameter(
            f"{path} holds no figures of {', '.join(SECTIONS)}. Write one with their --output."
        )
    return found


def section(found: Mapping[str, Any], plots: bool) -> Section:
    """The section of one file; ``plots`` need matplotlib."""
    kind = str(found["benchmark"])
    title, tables, draw = SECTIONS[kind]
    about = found["machine"]
    lines = [_what(found), describe(about), f"Repeat: {shlex.join(about['command'])}"]
    before = about.get("load_before")
    if before and before[0] > 0.5 * about["cpus"]:
        lines.append(
            f"The machine was not idle before it (load {before[0]:.1f} on {about['cpus']} CPUs): "
            "take the figures as leads."
        )
    return Section(title, lines, tables(found), draw(found) if plots else [])


def markdown(sections: Sequence[Section]) -> str:
    """All sections, without plots."""
    parts = ["# Speed"]
    for one in sections:
        parts.append(f"## {one.title}")
        parts += [table.markdown() for table in one.tables]
        parts.append("\n".join(f"- {line}" for line in one.lines))
    return "\n\n".join(parts) + "\n"


def page(sections: Sequence[Section]) -> str:
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
    return environment.get_template(TEMPLATE).render(title="Speed", sections=sections)


def _what(found: Mapping[str, Any]) -> str:
    parts = [str(found["data"])]
    if "inputs" in found:
        parts.append(f"{found['inputs']} inputs ({found['input']})")
    if "rounds" in found:
        parts.append(f"{found['rounds']} rounds")
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
    return [Plot("Distance to the machine's limits", speed_plots.limits(found))]


Tables = Callable[[Mapping[str, Any]], list[Table]]
Plots = Callable[[Mapping[str, Any]], list[Plot]]
SECTIONS: dict[str, tuple[str, Tables, Plots]] = {
    "compare": ("Ours beside what it replaces", _compare_tables, _compare_plots),
    "latency": (
        "One request at a time",
        lambda found: latency.tables(found["paths"]),
        _latency_plots,
    ),
    "load": ("Under load", lambda found: [load.table(found["levels"])], _load_plots),
    "limits": ("Limits of the machine", lambda found: limits.tables(dict(found)), _limits_plots),
}
