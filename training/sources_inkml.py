"""A folder of InkML files as CROHME distributes them: one labelled expression a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

from defusedxml.ElementTree import fromstring

from hmer.errors import BadInk
from hmer.ink import parse_inkml
from hmer.latex import tokenize
from training.sources_entry import EMPTY_LABEL, UNREADABLE_INK, Entry, Problem

Segments = tuple[tuple[str, tuple[int, ...]], ...]


def find_files(folder: Path, apart: frozenset[str] = frozenset()) -> list[Path]:
    """The InkML files in ``folder`` and below, sorted; not those in subfolders named ``apart``."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() == ".inkml"
        and not apart.intersection(part.lower() for part in path.relative_to(folder).parts[:-1])
    )


def read_entries(files: list[Path]) -> Iterator[Entry | Problem]:
    """The writings in ``files``: the label from the ``truth`` annotation of the document.

    Symbols come from ``traceGroup`` elements with a ``truth`` and ``traceView`` references.
    """
    for path in files:
        yield _entry(path)


def _entry(path: Path) -> Entry | Problem:
    where = str(path)
    try:
        data = path.read_bytes()
        ink = parse_inkml(data)
    except (OSError, BadInk) as error:
        return Problem(UNREADABLE_INK, where, str(error))
    root = fromstring(data)
    # A symbol's truth is no label: only annotations of the document itself count.
    label = _annotation(root, "truth")
    if not label:
        reason = "there is no annotation of type truth, or it is empty."
        return Problem(EMPTY_LABEL, where, reason)
    return Entry(
        where,
        path.stem,
        tuple(tokenize(label)),
        _annotation(root, "writer"),
        ink.strokes,
        _segments(root),
    )


def _local(element: Element) -> str:
    return str(element.tag).rpartition("}")[2]


def _annotation(element: Element, kind: str) -> str:
    for child in element:
        if _local(child) == "annotation" and child.get("type") == kind:
            return (child.text or "").strip()
    return ""


def _segments(root: Element) -> Segments:
    """Symbols and the indices of their strokes, as ``parse_inkml`` numbers them."""
    traces = [e for e in root.iter() if _local(e) == "trace"]
    inked = [e for e in traces if (e.text or "").replace(",", " ").strip()]
    numbers = {_identity(e): number for number, e in enumerate(inked)}
    segments = []
    for group in (e for e in root.iter() if _local(e) == "traceGroup"):
        named = [e.get("traceDataRef", "").lstrip("#") for e in group if _local(e) == "traceView"]
        symbol = tokenize(_annotation(group, "truth"))
        indices = tuple(numbers[name] for name in named if name in numbers)
        if len(symbol) == 1 and indices:
            segments.append((symbol[0], indices))
    return tuple(segments)


def _identity(element: Element) -> str:
    plain = element.get("id")
    return plain if plain is not None else element.get(f"{{{_XML}}}id", "")


_XML = "http://www.w3.org/XML/1998/namespace"
