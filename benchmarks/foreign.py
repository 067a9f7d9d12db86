"""Reads predictions that were made elsewhere, in the forms that people publish them in.

::

    [{"id": ..., "gt": "x ^ { 2 }", "pred": "x ^ { 2 }"}, ...]     JSON
    {"id": ..., "gt": ..., "pred": ...}                            JSON lines, one object a line
    {"form001": "x ^ { 2 }", ...}                                  JSON, with a pack's truths
    form001 <TAB> x ^ { 2 }                                        TSV, with a pack's truths
    form001 <TAB> x ^ { 2 } <TAB> x ^ 2                            TSV: id, truth, prediction

Token strings and raw LaTeX are both taken: spaces separate tokens, and where there are none
the tokeniser of ``hmer.latex`` does.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmer.errors import DatasetError, MissingInput
from hmer.latex import tokenize

TRUTHS = ("gt", "truth", "label", "labels", "target", "reference", "ground_truth")
PREDICTIONS = ("pred", "prediction", "hyp", "hypothesis", "output", "latex")
IDS = ("id", "name", "image", "images", "file", "filename", "img_id", "input")
_ENDS = (".inkml", ".png", ".jpg", ".jpeg", ".bmp", ".lg", ".txt")

Tokens = tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """One prediction; ``where`` is its place, "entry 3" or "line 3", for messages."""

    where: str
    id: str
    truth: Tokens | None
    prediction: Tokens | None  # None: there is none
    score: float | None = None  # the sequence's probability, 0..1
    candidates: tuple[Tokens, ...] = ()  # n best, best first


def read_predictions(path: Path) -> list[Entry]:
    """The entries of a predictions file, plain or gzip, in its order.

    Raises ``MissingInput``, or ``DatasetError`` with the entry or line that cannot be used.
    """
    text = _text(path)
    head = text.lstrip()[:1]
    if not head:
        raise DatasetError(f"{path} is empty.")
    entries = list(_json(path, text) if head in "[{" else _tsv(path, text))
    if not entries:
        raise DatasetError(f"{path} holds no predictions.")
    seen: dict[str, str] = {}
    for entry in entries:
        if (first := seen.setdefault(entry.id, entry.where)) != entry.where:
            raise DatasetError(
                f"{path}, {entry.where}: the id {entry.id!r} was there before, in {first}. Give "
                "each expression once."
            )
    return entries


def with_truths(
    path: Path, entries: list[Entry], truths: Mapping[str, Tokens]
) -> tuple[list[Entry], list[str]]:
    """The entries in the order of ``truths``, with these truths; and the ids that have none.

    Those without an entry count as missing predictions. Ids are also found without their folder
    and file ending. Raises ``DatasetError`` for an entry that ``truths`` does not have.
    """
    found: dict[str, Entry] = {}
    for entry in entries:
        id_ = next((name for name in _names(entry.id) if name in truths), None)
        if id_ is None:
            raise DatasetError(
                f"{path}, {entry.where}: the pack has no expression {entry.id!r}. Is it another "
                "test set's file?"
            )
        if id_ in found:
            raise DatasetError(
                f"{path}, {entry.where}: the expression {id_!r} was there before, in "
                f"{found[id_].where}."
            )
        found[id_] = entry
    result = []
    for id_, truth in truths.items():
        entry = found.get(id_, Entry("", id_, None, None))
        result.append(
            Entry(entry.where, id_, truth, entry.prediction, entry.score, entry.candidates)
        )
    return result, [id_ for id_ in truths if id_ not in found]


def need_truths(path: Path, entries: list[Entry]) -> None:
    """Raise ``DatasetError`` if an entry has no truth."""
    for entry in entries:
        if not entry.truth:
            raise DatasetError(
                f"{path}, {entry.where}: there is no truth ({TRUTHS[0]!r}). Give the pack that "
                "has it with --data."
            )


def _text(path: Path) -> str:
    if not path.is_file():
        raise MissingInput(f"There is no file {path}. Give a file of predictions.")
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read: {error}.") from None


def _json(path: Path, text: str) -> Iterator[Entry]:
    try:
        document = json.loads(text)
    except ValueError as error:
        lines = text.strip().splitlines()
        if len(lines) < 2 or not lines[0].rstrip().endswith("}"):
            raise DatasetError(f"{path} is not JSON: {error}.") from None
        yield from _json_lines(path, text)
        return
    if isinstance(document, dict) and not _looks_like_entry(document):
        for number, (id_, value) in enumerate(document.items(), start=1):
            record = value if isinstance(value, dict) else {PREDICTIONS[0]: value}
            yield _entry(path, f"entry {number}", {IDS[0]: id_, **record})
        return
    for number, record in enumerate(
        document if isinstance(document, list) else [document], start=1
    ):
        yield _entry(path, f"entry {number}", record)


def _json_lines(path: Path, text: str) -> Iterator[Entry]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                record = json.loads(line)
            except ValueError as error:
                raise DatasetError(f"{path}, line {number}: not JSON ({error}).") from None
            yield _entry(path, f"line {number}", record)


def _looks_like_entry(document: Mapping[str, Any]) -> bool:
    return any(name in document for name in PREDICTIONS)


def _tsv(path: Path, text: str) -> Iterator[Entry]:
    fields: tuple[str, ...] | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        cells = line.split("\t")
        if fields is None:
            names = tuple(cell.strip().lower() for cell in cells)
            if names[0] in IDS and set(names) & set(PREDICTIONS):
                fields = names
                continue
            fields = (IDS[0], PREDICTIONS[0])
            if len(cells) == 3:
                fields = (IDS[0], TRUTHS[0], PREDICTIONS[0])
        if len(cells) != len(fields):
            raise DatasetError(
                f"{path}, line {number}: {len(cells)} columns where {len(fields)} were expected "
                f"({', '.join(fields)}). Separate them with tabs."
            )
        yield _entry(path, f"line {number}", dict(zip(fields, cells, strict=True)))


def _entry(path: Path, where: str, record: Any) -> Entry:
    try:
        if not isinstance(record, dict):
            raise ValueError(f"a {type(record).__name__} where an object was expected")
        if not _looks_like_entry(record):
            raise ValueError(f"no prediction ({PREDICTIONS[0]!r}) in it")
        id_ = next((record[name] for name in IDS if record.get(name) is not None), where)
        return Entry(
            where,
            str(id_).strip(),
            _tokens(next((record[name] for name in TRUTHS if name in record), None)),
            _tokens(next(record[name] for name in PREDICTIONS if name in record)),
            _probability(record.get("score")),
            tuple(filter(None, map(_candidate, record.get("n_best") or ()))),
        )
    except (ValueError, TypeError) as error:
        raise DatasetError(f"{path}, {where}: {error}.") from None


def _probability(value: Any) -> float | None:
    """A score as a probability; one outside 0..1 is another kind of score, and not used."""
    if value is None:
        return None
    score = float(value)
    return score if 0.0 <= score <= 1.0 else None


def _candidate(value: Any) -> Tokens | None:
    if isinstance(value, dict):
        value = next((value[name] for name in PREDICTIONS if name in value), None)
    return _tokens(value)


def _tokens(value: Any) -> Tokens | None:
    if value is None:
        return None
    if isinstance(value, list):
        value = " ".join(map(str, value))
    if not isinstance(value, str):
        raise ValueError(f"a {type(value).__name__} where a string of tokens was expected")
    return tuple(tokenize(value))


def _names(id_: str) -> Iterator[str]:
    yield id_
    name = id_.replace("\\", "/").rpartition("/")[2]
    yield name
    for end in _ENDS:
        if name.lower().endswith(end):
            yield name[: -len(end)]
