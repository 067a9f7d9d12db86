"""The server's log on the terminal: followed as it grows, as text or as JSON lines.

Every line of ``--log-format json`` is one object with ``time`` (ISO 8601, UTC), ``level`` and
``event``. Lines that the models write are such objects already, one a request with its id
(``hmer-serve --log-requests``), and pass as they are; Triton's own become ``event: triton``.
"""

from __future__ import annotations

import contextlib
import json
import re
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click

# "I1123 00:07:48.772424 6970 server.cc:2558] text", or with --log-format=ISO8601
# "2026-11-23T00:07:48Z I 6970 server.cc:2558] text".
_TRITON = re.compile(
    r"(?:(?P<iso>\d{4}-\S+Z) (?P<l1>[IWEFV])|(?P<l2>[IWEFV])\d{4} (?P<clock>[\d:.]+)) +\d+ "
    r"(?P<source>[\w./+-]+:\d+)\] (?P<text>.*)"
)
_LEVELS = {"I": "info", "W": "warning", "E": "error", "F": "fatal", "V": "debug"}


def now() -> str:
    """The time, as every line has it."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def event(name: str, /, level: str = "info", **values: Any) -> str:
    """A JSON line of this program's own."""
    return json.dumps(
        {"time": now(), "level": level, "event": name, **values}, ensure_ascii=False, default=str
    )


def as_json(line: str) -> str:
    """A line of the log as a JSON line."""
    if line.startswith("{"):
        with contextlib.suppress(ValueError):
            if isinstance(json.loads(line), dict):
                return line
    match = _TRITON.fullmatch(line)
    if match is None:
        return event("triton", message=line)
    text = match["text"]
    if text.startswith('"'):
        with contextlib.suppress(ValueError):  # Triton quotes its messages as JSON does
            text = str(json.loads(text))
    found = {"level": _LEVELS[match["l1"] or match["l2"]], "message": text}
    if match["iso"]:
        found["time"] = match["iso"]
    return event("triton", source=match["source"], **found)


class Follower:
    """Shows what is new in a log file on stderr; whole lines, each as JSON if ``as_lines``."""

    def __init__(self, path: Path, as_lines: bool = False) -> None:
        self._path, self._as_lines = path, as_lines
        self._shown = 0

    def show(self) -> None:
        """Write what was added since the last call."""
        with self._path.open("rb") as stream:
            if stream.seek(0, 2) < self._shown:  # it was cut off meanwhile
                self._shown = 0
            stream.seek(self._shown)
            added = stream.read()
        if self._as_lines:
            added = added[: added.rfind(b"\n") + 1]
        self._shown += len(added)
        if not self._as_lines:
            click.echo(added, err=True, nl=False)
            return
        for line in added.decode("utf-8", "replace").splitlines():
            # Triton begins a table with a line that says nothing.
            if line.strip() and not line.rstrip().endswith("]"):
                click.echo(as_json(line), err=True)
