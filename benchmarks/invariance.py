"""Does an answer survive what people do to a picture? The share that is unchanged, by kind.

The clean picture's answer is the reference, right or wrong: what is measured is whether the same
writing gives the same formula, not whether the formula is true.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.crohme import Expression
from benchmarks.invariance_pictures import Transformation, encode
from hmer import ink
from hmer.alignment import edit_distance
from hmer.errors import DatasetError, HmerError, InputError
from hmer.preprocess import Gray
from hmer.recognizer import Recognition
from hmer.score import wilson
from hmer.tables import Table

CHUNK = 64  # pictures in memory at a time


class Recogniser(Protocol):
    """What is measured: ``hmer.recognizer.LocalRecognizer`` or anything like it."""

    def recognize_many(self, inputs: Sequence[bytes]) -> list[Recognition | HmerError]:
        """The answers in the order of ``inputs``."""
        ...


@dataclass(frozen=True)
class Row:
    """One transformation's outcome over ``n`` expressions.

    ``same``: answers equal to the clean picture's, token by token. ``edits``: tokens inserted,
    deleted or replaced in all, of ``tokens`` in the clean pictures' answers. ``failed``: pictures
    that got an error instead of an answer; all their tokens count as edits.
    """

    transformation: Transformation
    n: int
    same: int
    tokens: int
    edits: int
    failed: int
    changed: tuple[str, ...]  # ids

    @property
    def answers_percent(self) -> float:
        """Unchanged answers, per cent."""
        return 100.0 * self.same / self.n

    @property
    def tokens_percent(self) -> float:
        """Unchanged tokens, per cent, not below 0."""
        return max(0.0, 100.0 * (1.0 - self.edits / max(self.tokens, 1)))

    @property
    def reached(self) -> bool:
        """Whether as many answers are unchanged as are aimed at."""
        return self.answers_percent >= self.transformation.aim

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; percentages with their 95 % interval (Wilson)."""
        low, high = wilson(self.same, self.n)
        return {
            "transformation": self.transformation.name,
            "about": self.transformation.about,
            "n": self.n,
            "answers_unchanged": round(self.answers_percent, 2),
            "interval": [round(100.0 * low, 2), round(100.0 * high, 2)],
            "tokens_unchanged": round(self.tokens_percent, 2),
            "aim": self.transformation.aim,
            "reached": self.reached,
            "failed": self.failed,
            "changed": list(self.changed),
        }


def page_of(data: bytes) -> Gray:
    """The clean picture of ``data``'s strokes: black on white, uint8 (H, W)."""
    head = data.lstrip()
    parse = ink.parse_inkml if head.startswith(b"<") else ink.parse_strokes
    return np.asarray(255 - ink.render(parse(data).strokes), np.uint8)


def samples(folder: Path) -> list[Expression]:
    """The project's own samples, written by its own alphabet. Raises ``DatasetError``."""
    files = sorted(folder.glob("*.inkml"))
    if not files:
        raise DatasetError(f"There are no samples (*.inkml) in {folder}.")
    return [Expression(path.stem, (), path.read_bytes()) for path in files]


def references(
    expressions: Sequence[Expression], recogniser: Recogniser
) -> tuple[list[Expression], list[tuple[str, ...]]]:
    """Expressions with an answer to their clean picture, and the answers' tokens."""
    kept: list[Expression] = []
    answers: list[tuple[str, ...]] = []
    for chunk in _chunks(expressions):
        outcomes = recogniser.recognize_many([encode(page_of(e.data)) for e in chunk])
        for expression, outcome in zip(chunk, outcomes, strict=True):
            if isinstance(outcome, Recognition):
                kept.append(expression)
                answers.append(outcome.tokens)
            elif not isinstance(outcome, InputError):
                raise outcome
    if not kept:
        raise DatasetError("No expression's clean picture has an answer: nothing to compare with.")
    return kept, answers


def measure(
    transformation: Transformation,
    expressions: Sequence[Expression],
    answers: Sequence[tuple[str, ...]],
    recogniser: Recogniser,
    seed: int = 0,
) -> Row:
    """Recognise each expression's transformed picture and compare with ``answers``.

    The same ``seed``, place and transformation give the same picture.
    """
    same = edits = failed = 0
    changed = []
    name = int.from_bytes(transformation.name.encode("utf-8"), "little")
    numbered = list(enumerate(zip(expressions, answers, strict=True)))
    for chunk in _chunks(numbered):
        pictures = [
            transformation.make(page_of(e.data), np.random.default_rng([seed, index, name]))
            for index, (e, _) in chunk
        ]
        outcomes = recogniser.recognize_many(pictures)
        for (_, (expression, expected)), outcome in zip(chunk, outcomes, strict=True):
            found = outcome.tokens if isinstance(outcome, Recognition) else ()
            failed += not isinstance(outcome, Recognition)
            edits += edit_distance(expected, found)
            same += found == expected
            if found != expected:
                changed.append(expression.id)
    total = sum(map(len, answers))
    return Row(transformation, len(answers), same, total, edits, failed, tuple(changed))


def _chunks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for first in range(0, len(items), CHUNK):
        yield items[first : first + CHUNK]


def judged(percent: float, aim: float) -> str:
    """The figure, and whether it is below the aim."""
    return f"{percent:.1f}{'' if percent >= aim else ' (missed)'}"


def table(rows: Sequence[Row]) -> Table:
    """The published table."""
    return Table(
        "",
        ("transformation", "what", "answers unchanged, %", "tokens unchanged, %", "aim, %"),
        tuple(
            (
                row.transformation.name,
                row.transformation.about,
                judged(row.answers_percent, row.transformation.aim),
                judged(row.tokens_percent, row.transformation.aim),
                f"{row.transformation.aim:.0f}",
            )
            for row in rows
        ),
        figures=2,
    )
