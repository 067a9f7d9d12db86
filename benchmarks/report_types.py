"""What a report is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hmer.tables import Table


@dataclass(frozen=True)
class Plot:
    """A caption and an SVG."""

    caption: str
    svg: str


@dataclass(frozen=True)
class Section:
    """How the JSON of one command is shown: its tables (the main one first), plots and remarks."""

    title: str
    tables: Callable[[Mapping[str, Any]], list[Table]]
    plots: Callable[[Mapping[str, Any]], list[Plot]]
    notes: Callable[[Mapping[str, Any]], list[str]]


@dataclass(frozen=True)
class Shown:
    """One JSON file in a report. ``lines`` say on what and how it was measured."""

    title: str
    lines: list[str]
    tables: list[Table]
    plots: list[Plot] = field(default_factory=list)
