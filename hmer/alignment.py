"""Token edits between a truth and a prediction: their fewest number, and which they are.

Levenshtein distance with unit costs (Wagner and Fischer, "The String-to-String Correction
Problem", J. ACM 21, 1974), on tokens instead of characters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Edit:
    """One column of an alignment; ``None`` where the other side has a token and this has not."""

    truth: str | None
    prediction: str | None

    @property
    def is_match(self) -> bool:
        """Whether both sides have the same token."""
        return self.truth == self.prediction

    @property
    def operation(self) -> str:
        """What happened to the truth: "match", "substitution", "deletion" or "insertion"."""
        if self.is_match:
            return "match"
        if self.truth is None:
            return "insertion"
        return "deletion" if self.prediction is None else "substitution"


def edit_distance(a: Sequence[str], b: Sequence[str]) -> int:
    """The fewest insertions, deletions and substitutions of tokens that turn one into the other."""
    return _costs(a, b)[-1][-1]


def align(truth: Sequence[str], prediction: Sequence[str]) -> list[Edit]:
    """One alignment with the fewest edits, in reading order; all of its columns, matches too.

    Where several have as few, the one that pairs tokens (match or substitution) as late in the
    formula as it can, and leaves out before it adds: so equal inputs give equal lists.
    """
    costs = _costs(truth, prediction)
    i, j = len(truth), len(prediction)
    edits = []
    while i or j:
        here = costs[i][j]
        if i and j and here == costs[i - 1][j - 1] + (truth[i - 1] != prediction[j - 1]):
            i, j = i - 1, j - 1
            edits.append(Edit(truth[i], prediction[j]))
        elif i and here == costs[i - 1][j] + 1:
            i -= 1
            edits.append(Edit(truth[i], None))
        else:
            j -= 1
            edits.append(Edit(None, prediction[j]))
    edits.reverse()
    return edits


def _costs(a: Sequence[str], b: Sequence[str]) -> list[list[int]]:
    """``costs[i][j]``: the distance of the first i tokens of ``a`` and the first j of ``b``."""
    costs = [list(range(len(b) + 1))]
    for i, x in enumerate(a, start=1):
        above, row = costs[-1], [i]
        for j, y in enumerate(b, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
        costs.append(row)
    return costs
