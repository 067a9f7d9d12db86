"""What the readers of every kind of source yield: an entry as it is written, or a problem."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hmer.errors import DatasetError
from hmer.ink import Stroke

# Kinds of problems, as they are counted and printed.
BAD_ENTRY = "broken entry"
EMPTY_LABEL = "empty label"
BAD_LABEL = "label that is no single-line formula"
TOO_LONG = "label too long"
UNKNOWN_TOKEN = "unknown token"
UNREADABLE_IMAGE = "unreadable image"
UNREADABLE_INK = "unreadable ink"
NO_IMAGE = "missing image"


@dataclass(frozen=True)
class Problem:
    """An entry that cannot be used as it is: its kind, its place, and a sentence why."""

    kind: str
    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@dataclass(frozen=True)
class Entry:
    """One entry of a source: ``tokens`` as written, and strokes or the path of a picture."""

    where: str
    name: str
    tokens: tuple[str, ...]
    writer: str = ""
    strokes: list[Stroke] = field(default_factory=list)
    segments: tuple[tuple[str, tuple[int, ...]], ...] = ()
    picture: Path | None = None


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, gzip or plain, with their numbers from 1.

    Raises ``DatasetError`` naming the line after which the file cannot be read.
    """
    number = 0
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        opener = gzip.open if zipped else open
        with opener(path, "rt", encoding="utf-8-sig", newline="") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read after line {number}: {error}.") from error
