"""A page about an artefact: facts and tables, for JSON and for a person alike."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hmer.tables import render_table

WIDTH = 80  # characters of a value before it goes on in the next line


@dataclass(frozen=True)
class Section:
    """Facts by name (in snake case), or the rows of a table under equal names, or both."""

    title: str
    facts: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]] = ()
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        result: dict[str, Any] = dict(self.facts)
        if self.rows:
            result["rows"] = [dict(row) for row in self.rows]
        if self.note:
            result["note"] = self.note
        return result

    def text(self) -> str:
        """A heading, facts as aligned lines, then the table and the note."""
        lines = [self.title]
        width = max((len(name) for name in self.facts), default=0)
        for name, value in self.facts.items():
            text = _shown(name, value)
            wrapped = textwrap.wrap(text, WIDTH, break_long_words=False) or [text]
            lines.append(f"  {_words(name).ljust(width)}  {wrapped[0]}")
            lines += [" " * (width + 4) + more for more in wrapped[1:]]
        if self.rows:
            titles = list(self.rows[0])
            cells = [[_shown(name, row[name]) for name in titles] for row in self.rows]
            numbers = {i for i, name in enumerate(titles) if _is_number(self.rows[0][name])}
            table = render_table([_words(name) for name in titles], cells, right=numbers)
            lines += [f"  {line}" for line in table.splitlines()]
        if self.note:
            lines.append(f"  {self.note}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Page:
    """What something is, in sections, and the command that comes next."""

    kind: str
    path: str
    summary: str
    sections: Sequence[Section]
    next: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: one object a section, under its title in snake case."""
        sections = {s.title.lower().replace(" ", "_"): s.to_dict() for s in self.sections}
        about = {"kind": self.kind, "path": self.path, "summary": self.summary}
        return about | sections | {"next": list(self.next)}

    def text(self) -> str:
        """The page as it is printed."""
        parts = [f"{self.path}: {self.summary}", *(section.text() for section in self.sections)]
        parts.append("\n".join(["Next", *(f"  {command}" for command in self.next)]))
        return "\n\n".join(parts)


def scalars(values: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers, words and short lists of ``values``; what is nested deeper is left out."""
    return {name: value for name, value in values.items() if _is_flat(value)}


def _is_flat(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) <= 8 and all(isinstance(item, (int, float, str)) for item in value)
    return value is None or isinstance(value, (int, float, str))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _size(count: int) -> str:
    for unit, scale in (("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count} B"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name == "bytes" or name.endswith("_bytes"):
        return _size(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(str(key), item)}" for key, item in value.items()) or "-"
    if isinstance(value, (list, tuple)):
        return ", ".join(_shown("", item) for item in value) or "-"
    return str(value)
