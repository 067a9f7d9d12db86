"""How one request's answer grows, step by step: what every search has, and greedy search.

A search knows the slots that it holds, what it makes of a step's results (``take``) and its
answers so far. ``hmer.beam`` has the search with several hypotheses; who runs the steps is
``hmer.machines``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hmer.decode_types import DecodeRequest, Hypothesis, Reason
from hmer.errors import HmerError, InferenceFailed
from hmer.guards import Guards
from hmer.vocab import EOS_ID


class Taken(NamedTuple):
    """What a step meant to a search.

    ``reason`` is there if it has ended, ``error`` if by a fault. ``ids`` and ``scores`` are new
    tokens of the answer, without <eos>. ``tokens``: how many, <eos> included; ``wasted``: how
    many the step computed beyond the end.
    """

    reason: Reason | None
    ids: Sequence[int] = ()
    scores: Sequence[float] = ()
    tokens: int = 0
    wasted: int = 0
    error: HmerError | None = None


@dataclass(eq=False)
class Search:
    """A request in its slots.

    ``queued_s`` is how many seconds it had waited, ``since`` when it got the slots.
    """

    slots: tuple[int, ...]
    request: DecodeRequest
    queued_s: float
    since: float
    guards: Guards | None = None
    steps: int = 0

    def answers(self) -> list[Hypothesis]:
        """What it has found, best first; at least one, which may be unfinished or empty."""
        raise NotImplementedError


def broken(index: int, score: float, after: int) -> InferenceFailed:
    """The error for a negative token or a score that is not finite: it concerns one row alone."""
    return InferenceFailed(
        f"The decoder gave token {index} with score {score} after {after} tokens of this input. "
        "Its graph or weights are broken."
    )


@dataclass(eq=False)
class GreedySearch(Search):
    """The step's own argmax is the next token."""

    ids: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    def take(self, ids: Sequence[int], scores: Sequence[float]) -> Taken:
        """Append a step's tokens, one by one, so that the answer doesn't depend on k."""
        self.steps += 1
        before = len(self.ids)
        reason: Reason | None = None
        error: HmerError | None = None
        for index, score in zip(ids, scores, strict=True):
            if index < 0 or not math.isfinite(score):
                reason, error = "error", broken(index, score, len(self.ids))
                break
            self.ids.append(index)
            self.scores.append(score)
            if (reason := self._ended(index)) is not None:
                break
        after = len(self.ids)
        new = slice(before, after - (reason == "eos"))
        wasted = len(ids) - (after - before)
        return Taken(reason, self.ids[new], self.scores[new], after - before, wasted, error)

    def _ended(self, index: int) -> Reason | None:
        if index == EOS_ID:
            return "eos"
        if len(self.ids) >= self.request.max_tokens:
            return "length"
        if self.guards is not None and self.guards.loops(self.ids):
            return "repetition"
        return None

    def answers(self) -> list[Hypothesis]:
        """The one answer."""
        return [Hypothesis(tuple(self.ids), tuple(self.scores), math.fsum(self.scores))]
