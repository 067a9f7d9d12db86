"""One labelled writing, as strokes or as a picture: what every data source yields."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from hmer.ink import Stroke


class Picture(NamedTuple):
    """A picture on disk, read when it is needed.

    ``extent``: height and width of its ink in typical symbol heights (``hmer.preprocess``),
    so that batches of like size can be planned without reading it again.
    """

    path: Path
    extent: tuple[float, float]


@dataclass(frozen=True)
class Example:
    """One labelled writing: ``strokes``, or a ``picture`` where the ink is not known.

    ``tokens`` are canonical. ``segments`` are (symbol, stroke indices), maybe empty.
    ``writer`` is empty where the source does not tell it. ``where`` is the place in the
    source, "FILE, line N", for messages.
    """

    name: str
    writer: str
    tokens: tuple[str, ...]
    strokes: list[Stroke] = field(default_factory=list)
    segments: tuple[tuple[str, tuple[int, ...]], ...] = ()
    picture: Picture | None = None
    where: str = ""
