"""How the accuracy commands report: one way out for each form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.page import write_page
from hmer.errors import BadParameter
from hmer.evaluation import Answers, describe, tables


@dataclass(frozen=True)
class Part:
    """One set of figures in a report: its key there, a line about it, and the answers."""

    key: str  # "" if the figures are the report itself
    line: str
    answers: Answers


def check_folder(path: Path | None, what: str) -> None:
    """Raise ``BadParameter`` if ``path`` cannot be written: before the work, not after it."""
    if path is not None and not path.absolute().parent.is_dir():
        raise BadParameter(f"The {what} cannot be written to {path}: there is no such folder.")


def write_json(path: Path, document: Any, what: str) -> None:
    """Write ``document``. Raises ``BadParameter``."""
    try:
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise BadParameter(f"The {what} cannot be written to {path}: {error.strerror}.") from error


def emit(
    report: Mapping[str, Any],
    parts: list[Part],
    notes: list[str],
    inputs: Mapping[str, bytes],
    *,
    html: Path | None,
    worst: int,
    markdown: bool,
    as_json: bool,
) -> None:
    """Print ``report`` in the form that is asked for, and write the page of its first part.

    ``report`` is a head (``hmer.evaluation.Conditions``) with the figures of each part under
    its key. ``notes`` are lines at the end.
    """
    if html is not None:
        first = parts[0]
        write_page(
            html,
            f"Recognition of {report['data']}",
            [*describe(report).splitlines(), first.line, *notes],
            tables(_figures(report, first)),
            first.answers,
            inputs,
            worst,
        )
    if as_json:
        click.echo(json.dumps(report, indent=1))
    else:
        click.echo("\n".join(_lines(report, parts, notes, markdown)))


def _lines(
    report: Mapping[str, Any], parts: list[Part], notes: list[str], markdown: bool
) -> list[str]:
    lines = describe(report).splitlines()
    for part in parts:
        lines += ["", part.line]
        for index, table in enumerate(tables(_figures(report, part))):
            lines += [""] * (index > 0 or markdown)
            lines.append(table.markdown() if markdown else table.text())
    return lines + [""] * bool(notes) + notes


def _figures(report: Mapping[str, Any], part: Part) -> Mapping[str, Any]:
    found: Mapping[str, Any] = report[part.key] if part.key else report
    return found
