"""The stroke pack: JSON lines of labelled ink, gzip or plain."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from training.sources_entry import (
    BAD_ENTRY,
    EMPTY_LABEL,
    UNREADABLE_INK,
    Entry,
    Problem,
    numbered_lines,
)


def read_entries(path: Path, label: str) -> Iterator[Entry | Problem]:
    """The entries of a stroke pack, one JSON object a line.

    Fields: ``id``, ``writer`` (optional), ``strokes`` ``[[[x, y], ...], ...]``, ``segs``
    (optional) ``[[symbol, [stroke indices]], ...]`` and the label field: tokens separated by
    spaces.
    """
    for number, line in numbered_lines(path):
        yield _entry(line, label, f"{path}, line {number}")


def _entry(line: str, label: str, where: str) -> Entry | Problem:
    try:
        row = json.loads(line)
        if label not in row and "strokes" in row:
            return Problem(EMPTY_LABEL, where, f"there is no label in the field {label!r}.")
        name, tokens = str(row["id"]), tuple(row[label].split())
        strokes = [np.array(stroke, np.float32).reshape(-1, 2) for stroke in row["strokes"]]
        segments = tuple((str(s), tuple(map(int, i))) for s, i in row.get("segs") or ())
        if any(not 0 <= i < len(strokes) for _, indices in segments for i in indices):
            return Problem(BAD_ENTRY, where, "a segment names a stroke that is not there.")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"not a labelled writing ({type(error).__name__}: {error})."
        return Problem(BAD_ENTRY, where, reason)
    if not strokes or not all(len(s) and np.isfinite(s).all() for s in strokes):
        reason = "the ink has no strokes, an empty stroke, or a point that is not a number."
        return Problem(UNREADABLE_INK, where, reason)
    return Entry(where, name, tokens, str(row.get("writer") or ""), strokes, segments)
