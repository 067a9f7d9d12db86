"""Which tokens are taken for which: counts over the alignments of truths and predictions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from hmer.alignment import Edit, align
from hmer.score import Scored

CASE, LOOK_ALIKE, STRUCTURE, OTHER = "case", "look-alike", "structure", "other symbol"
MISSED, ADDED = "symbol missed", "symbol added"
UNPARSABLE, MISSING = "unparsable", "no prediction"
FAULTS = (UNPARSABLE, MISSING, STRUCTURE, MISSED, ADDED, CASE, LOOK_ALIKE, OTHER)
"""All that ``faults_of`` may name, in its order."""

STRUCTURAL = frozenset({"{", "}", "_", "^", "\\frac", "\\sqrt", "[", "]"})
"""Tokens that say where symbols stand rather than which they are (brackets: a root's index).

``[`` and ``]`` are also written symbols; they count as structure only if nothing stands in
their place.
"""

LOOK_ALIKES = r"""
0 o O a \theta \sigma
1 l I | / ( ) i [ ] , \prime
2 z Z \alpha
3 \exists z
4 y 9 Y
5 s S
6 b G \sigma
7 > \gamma \rightarrow
8 B \beta \infty g
9 q g y a
x X \times n k \lambda y
t + T f \pm
- = \cdot .
= \neq
. , \cdot \ldots \cdots \prime
a \alpha d u
b \beta h B
c C ( < e
e \in \epsilon l
n h \pi m \eta r
u v \mu \nu U V
w \omega W \mu
p \rho P \phi
r \gamma y Y
E \sum \Sigma F
\Delta A \triangle
d \delta \partial
i j ; !
k K h R
\leq < \geq >
f \int s \beta F
\theta \phi \Theta Q
L \alpha h l
m M N H
"""
"""Groups of signs whose handwriting is alike, one a line; the choice is ours."""

_GROUPS = [frozenset(line.split()) for line in LOOK_ALIKES.splitlines() if line]


def kind_of(edit: Edit) -> str:
    """The kind of an edit that is no match, one of the last six of ``FAULTS``.

    "case": the same letter, large for small (``x`` for ``X``, ``\\Delta`` for ``\\delta``).
    "structure": a brace, script, fraction or root is missing, added or in a symbol's place.
    """
    truth, prediction = edit.truth, edit.prediction
    if prediction is None:
        return STRUCTURE if truth in STRUCTURAL else MISSED
    if truth is None:
        return STRUCTURE if prediction in STRUCTURAL else ADDED
    if truth.lower() == prediction.lower():
        return CASE
    if any(truth in group and prediction in group for group in _GROUPS):
        return LOOK_ALIKE
    if {truth, prediction} & (STRUCTURAL - {"[", "]"}):
        return STRUCTURE
    return OTHER


@dataclass(frozen=True)
class Confusion:
    """How often ``truth`` became ``prediction``; ``None``: nothing (an addition, an omission).

    ``expressions`` counts the expressions in which that happened, ``of`` how often ``truth``
    occurs in all truths that were compared (0 for an addition).
    """

    truth: str | None
    prediction: str | None
    operation: str  # substitution, deletion, insertion
    kind: str
    count: int
    expressions: int
    of: int

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def edits_of(scored: Scored) -> list[Edit]:
    """The alignment of one expression; empty where there is no prediction."""
    return [] if scored.prediction is None else align(scored.truth, scored.prediction)


def confusions(scored: Iterable[Scored]) -> list[Confusion]:
    """Every confusion of a set of expressions, the most frequent first.

    Expressions without a prediction tell nothing about confusions and are left out.
    """
    counts: Counter[Edit] = Counter()
    spread: Counter[Edit] = Counter()
    occurrences: Counter[str | None] = Counter()
    for item in scored:
        edits = [edit for edit in edits_of(item) if not edit.is_match]
        counts.update(edits)
        spread.update(set(edits))
        if item.prediction is not None:
            occurrences.update(item.truth)
    found = [
        Confusion(
            edit.truth,
            edit.prediction,
            edit.operation,
            kind_of(edit),
            count,
            spread[edit],
            occurrences[edit.truth],
        )
        for edit, count in counts.items()
    ]
    return sorted(found, key=lambda c: (-c.count, c.truth or "", c.prediction or ""))


def faults_of(scored: Scored) -> tuple[str, ...]:
    """What is wrong with one expression, of ``FAULTS`` in that order; empty if it is right."""
    if scored.correct:
        return ()
    if scored.prediction is None:
        return (MISSING,)
    kinds = {kind_of(edit) for edit in edits_of(scored) if not edit.is_match}
    if not scored.parsable:
        kinds.add(UNPARSABLE)
    return tuple(kind for kind in FAULTS if kind in kinds)


def count_faults(scored: Sequence[Scored]) -> dict[str, dict[str, int]]:
    """By fault: ``any``, the expressions that have it, and ``only``, those with no other."""
    counts: dict[str, dict[str, int]] = {}
    for kind in FAULTS:
        having = [faults for faults in map(faults_of, scored) if kind in faults]
        if having:
            counts[kind] = {"any": len(having), "only": sum(len(f) == 1 for f in having)}
    return counts
