r"""The score of recognition: ExpRate, token errors, token error rate, Wilson intervals.

Truth and prediction are compared as canonical tokens (``hmer.latex.canonical``), so ``\limits``
and redundant braces never count. The scheme is "token edit distance": label-graph metrics
(LgEval) agree on exact matches and give less in the ``<=`` columns.

A prediction that is missing or cannot be parsed is wrong, in the ``<=`` columns too; its edit
distance (of the raw tokens) still counts in the token error rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hmer.alignment import edit_distance
from hmer.latex import LatexError, canonical, canonical_or_same

__all__ = [
    "LENGTHS",
    "TOLERANCES",
    "Scored",
    "Summary",
    "by_length",
    "by_structure",
    "compare",
    "edit_distance",
    "structures",
    "summarise",
    "wilson",
]

TOLERANCES = (0, 1, 2, 3)
"""Token errors that a column of the report allows; 0 is ExpRate."""

LENGTHS = ((1, 5), (6, 10), (11, 20), (21, 40), (41, None))
"""Buckets of the truth's length in tokens, both ends included; ``None`` is no end."""


def wilson(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The Wilson score interval of a proportion; ``z`` of 1.96 is 95 %. ``(0, 1)`` for n = 0."""
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


@dataclass(frozen=True)
class Scored:
    """One expression: canonical ``truth`` and ``prediction`` and how far they are apart."""

    id: str
    truth: tuple[str, ...]
    prediction: tuple[str, ...] | None  # None: missing
    parsable: bool
    distance: int  # token edits from prediction to truth

    @property
    def correct(self) -> bool:
        """Whether the prediction is the truth."""
        return self.within(0)

    def within(self, errors: int) -> bool:
        """Whether the prediction can be parsed and has at most ``errors`` token errors."""
        return self.parsable and self.distance <= errors


def compare(id: str, truth: Sequence[str], prediction: Sequence[str] | None) -> Scored:
    """Score one ``prediction`` (tokens, or ``None`` where there is none) against ``truth``."""
    expected = tuple(canonical_or_same(truth))
    if prediction is None:
        return Scored(id, expected, None, parsable=False, distance=len(expected))
    try:
        found, parsable = tuple(canonical(prediction)), True
    except LatexError:
        found, parsable = tuple(prediction), False
    return Scored(id, expected, found, parsable, edit_distance(found, expected))


@dataclass(frozen=True)
class Summary:
    """The score of a set of expressions; rates are 0..1."""

    n: int
    within: tuple[int, ...]  # counts, one for each of TOLERANCES
    token_errors: int
    tokens: int  # of the truths
    missing: int
    unparsable: int  # of the predictions that are there

    @property
    def exprate(self) -> float:
        """Share of exact matches; 0 for an empty set."""
        return self.rate(0)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the ExpRate."""
        return wilson(self.within[0], self.n)

    @property
    def token_error_rate(self) -> float:
        """Token edits for each token of the truths; may exceed 1."""
        return self.token_errors / self.tokens if self.tokens else 0.0

    def rate(self, errors: int) -> float:
        """Share with at most ``errors`` token errors, one of ``TOLERANCES``."""
        return self.within[TOLERANCES.index(errors)] / self.n if self.n else 0.0

    def to_dict(self) -> dict[str, object]:
        """For JSON: rates 0..1, the interval of the ExpRate, and the counts."""
        low, high = self.interval
        return {
            "n": self.n,
            "correct": self.within[0],
            "exprate": self.exprate,
            "exprate_95": [low, high],
            **{f"within_{errors}": self.rate(errors) for errors in TOLERANCES[1:]},
            "token_error_rate": self.token_error_rate,
            "missing": self.missing,
            "unparsable": self.unparsable,
        }


def summarise(scored: Iterable[Scored]) -> Summary:
    """The summary of a set of scored expressions."""
    items = list(scored)
    return Summary(
        n=len(items),
        within=tuple(sum(item.within(errors) for item in items) for errors in TOLERANCES),
        token_errors=sum(item.distance for item in items),
        tokens=sum(len(item.truth) for item in items),
        missing=sum(item.prediction is None for item in items),
        unparsable=sum(item.prediction is not None and not item.parsable for item in items),
    )


def by_length(scored: Iterable[Scored]) -> dict[str, Summary]:
    """A summary for each bucket of truth length that is not empty, shortest first."""
    items = list(scored)
    result = {}
    for low, high in LENGTHS:
        members = [
            item
            for item in items
            if low <= len(item.truth) and (high is None or len(item.truth) <= high)
        ]
        if members:
            result[f"{low}-{high}" if high is not None else f">={low}"] = summarise(members)
    return result


def structures(truth: Sequence[str]) -> tuple[str, ...]:
    """Names of the structures in a formula; ``("plain",)`` for a row of symbols."""
    present = set(truth)
    found = [
        name
        for name, marks in (
            ("fraction", {"\\frac"}),
            ("root", {"\\sqrt"}),
            ("scripts", {"_", "^"}),
        )
        if marks & present
    ]
    return tuple(found) or ("plain",)


def by_structure(scored: Iterable[Scored]) -> dict[str, Summary]:
    """A summary for each structure that occurs. A formula counts in each that it contains."""
    items = list(scored)
    result = {}
    for name in ("plain", "scripts", "fraction", "root"):
        members = [item for item in items if name in structures(item.truth)]
        if members:
            result[name] = summarise(members)
    return result
