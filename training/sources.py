"""Data sources behind one interface: labelled writings from whatever holds them.

``open_source`` finds out what a file or folder is (``training.sources_layout``), reads its
entries, brings their labels to canonical form and checks them. An entry that cannot be used
is skipped and counted, or ends everything where ``strict`` is asked for.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from hmer.console import progress
from hmer.errors import DatasetError, VocabularyMismatch
from hmer.latex import LatexError, canonical
from hmer.vocab import Vocabulary
from training import sources_images
from training.examples import Example, Picture
from training.sources_entry import (
    BAD_LABEL,
    EMPTY_LABEL,
    NO_IMAGE,
    TOO_LONG,
    UNKNOWN_TOKEN,
    UNREADABLE_IMAGE,
    Entry,
    Problem,
)
from training.sources_layout import Located, locate, own_eval

__all__ = [
    "SEQUENCE_LENGTH",
    "Loaded",
    "Located",
    "locate",
    "open_source",
    "own_eval",
    "pack_of",
    "read_pack",
]

SEQUENCE_LENGTH = 200  # most tokens of a label, unless told otherwise
PACK_FILE = "train.jsonl.gz"  # the stroke pack of a data folder
_CHUNK = 128  # entries whose pictures are looked at together


@dataclass
class Loaded:
    """What a source gave: ``examples`` in its order, and what was wrong with the others.

    ``flagged`` are entries to evaluate that stay, though they can only be answered wrongly.
    """

    source: Located
    examples: list[Example] = field(default_factory=list)
    skipped: list[Problem] = field(default_factory=list)
    flagged: list[Problem] = field(default_factory=list)

    def sentences(self, shown: int = 5) -> list[str]:
        """What was left out or cannot be answered, by kind, with the first places; or nothing."""
        lines = []
        for what, problems in (
            ("skipped", self.skipped),
            ("kept, though only a wrong answer is possible", self.flagged),
        ):
            if problems:
                total = len(self.examples) + len(self.skipped)
                kinds = ", ".join(f"{n} {kind}" for kind, n in counts(problems).items())
                lines.append(f"{self.source}: {len(problems)} of {total} entries {what}: {kinds}.")
                lines += [f"  {problem}" for problem in problems[:shown]]
                if len(problems) > shown:
                    lines.append(f"  ... and {len(problems) - shown} more")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """For JSON output: the source, and counts by kind."""
        return {
            "source": str(self.source.path),
            "kind": self.source.kind,
            "examples": len(self.examples),
            "skipped": counts(self.skipped),
            "flagged": counts(self.flagged),
        }


def counts(problems: Iterable[Problem]) -> dict[str, int]:
    """How many problems there are of each kind, the most frequent first."""
    return dict(Counter(problem.kind for problem in problems).most_common())


def open_source(
    data: Path | Located,
    *,
    split: str = "train",
    image_dir: Path | None = None,
    label: str = "norm",
    sequence_length: int | None = SEQUENCE_LENGTH,
    limit: int | None = None,
    strict: bool = False,
    vocabulary: Vocabulary | None = None,
) -> Loaded:
    """Read the labelled writings of ``data``, a file or a folder of any kind understood.

    ``split`` "train" or "eval" chooses the part of a folder that has both. ``label``: the field
    of a stroke pack. ``limit``: only the first so many examples. ``vocabulary``: labels with
    other tokens are a problem. To train, every example with a problem is skipped. To evaluate,
    labels that are too long, malformed, or with unknown tokens stay, because leaving them out
    would raise the score; what has no label or no readable ink is skipped.

    Raises ``DatasetError`` for a source that cannot be used at all, and with ``strict`` for
    the first problem, with its file and line or entry; ``VocabularyMismatch`` where
    ``vocabulary`` can write none of the labels.
    """
    found = data if isinstance(data, Located) else locate(data, split, image_dir)
    result = Loaded(found)
    check = _Check(sequence_length, vocabulary, split == "eval", strict, result)
    with ThreadPoolExecutor(os.cpu_count() or 1, "pictures") as pool:
        entries = progress(found.entries(label), 0, "reading")
        while chunk := list(islice(entries, _room(limit, result))):
            usable = [pair for entry in chunk if (pair := check.label(entry))]
            paths = [e.picture for e, _ in usable if e.picture]
            pictures = iter(pool.map(sources_images.check_picture, paths))
            for entry, tokens in usable:
                picture = next(pictures) if entry.picture else None
                if isinstance(picture, str):
                    check.skip(Problem(UNREADABLE_IMAGE, entry.where, picture))
                else:
                    result.examples.append(_example(entry, tokens, picture))
    _check_whole(result)
    return result


def pack_of(data: Path) -> Path:
    """The stroke pack that ``data`` names: a file, or a folder that holds one."""
    return data / PACK_FILE if data.is_dir() else data


def read_pack(path: Path, label: str = "norm") -> list[Example]:
    """All examples of a stroke pack. Raises ``DatasetError`` at the first that is broken."""
    if not path.is_file():
        raise DatasetError(f"There is no stroke pack {path}. Give the file with --data.")
    return open_source(path, label=label, sequence_length=None, strict=True).examples


def _check_whole(result: Loaded) -> None:
    """Refuse a source without any example, or of which a vocabulary knows none."""
    # Such labels are flagged in examples to evaluate, and skipped in those to train on.
    candidates = result.flagged if result.examples else result.skipped
    strange = [problem for problem in candidates if problem.kind == UNKNOWN_TOKEN]
    if strange and len(strange) == len(result.examples or result.skipped):
        raise VocabularyMismatch(
            f"The checkpoint's vocabulary can write none of the {len(strange)} labels of "
            f"{result.source}. {strange[0]} Give a checkpoint that was trained on such labels."
        )
    if not result.examples:
        details = "\n".join(result.sentences()) or "It is empty."
        if result.skipped and all(problem.kind == NO_IMAGE for problem in result.skipped):
            details = f"Give the folder of the pictures with --image-dir.\n{details}"
        raise DatasetError(f"{result.source} holds no example that can be used.\n{details}")


class _Check:
    """Decides about every entry and remembers what was wrong with it."""

    def __init__(
        self,
        longest: int | None,
        vocabulary: Vocabulary | None,
        evaluating: bool,
        strict: bool,
        result: Loaded,
    ) -> None:
        self.longest, self.vocabulary = longest, vocabulary
        self.evaluating, self.strict, self.result = evaluating, strict, result

    def skip(self, problem: Problem) -> None:
        self._note(problem, self.result.skipped)

    def _note(self, problem: Problem, where: list[Problem]) -> None:
        if self.strict:
            raise DatasetError(f"{problem} Without --strict it would be skipped and counted.")
        where.append(problem)

    def label(self, entry: Entry | Problem) -> tuple[Entry, tuple[str, ...]] | None:
        """An entry that is used and its canonical tokens; ``None`` if it is skipped."""
        if isinstance(entry, Problem):
            self.skip(entry)
            return None
        tokens, problem = self._judge(entry)
        if problem is None:
            return entry, tokens
        if self.evaluating and tokens:
            self._note(problem, self.result.flagged)
            return entry, tokens
        self.skip(problem)
        return None

    def _judge(self, entry: Entry) -> tuple[tuple[str, ...], Problem | None]:
        tokens, where = entry.tokens, entry.where
        try:
            tokens = tuple(canonical(tokens))
        except LatexError as error:
            return tokens, Problem(BAD_LABEL, where, str(error))
        if not tokens:
            return tokens, Problem(EMPTY_LABEL, where, "there is no label, or nothing in it.")
        if self.longest is not None and len(tokens) > self.longest:
            reason = f"the label has {len(tokens)} tokens; --sequence-length is {self.longest}."
            return tokens, Problem(TOO_LONG, where, reason)
        known = self.vocabulary
        unknown = next((t for t in tokens if known is not None and t not in known), None)
        if unknown is not None:
            reason = f"the label has the token {unknown!r}, which the vocabulary lacks."
            return tokens, Problem(UNKNOWN_TOKEN, where, reason)
        return tokens, None


def _example(entry: Entry, tokens: tuple[str, ...], picture: Picture | None) -> Example:
    return Example(
        entry.name, entry.writer, tokens, entry.strokes, entry.segments, picture, entry.where
    )


def _room(limit: int | None, result: Loaded) -> int:
    """How many entries to read next: never more than could be used."""
    return _CHUNK if limit is None else min(_CHUNK, limit - len(result.examples))
