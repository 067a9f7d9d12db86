r"""Beam search: B hypotheses at a time, ranked by their probability normalised by length.

::

    rank(y) = log p(y) / lp(|y|)        lp(n) = ((5 + n) / 6) ^ alpha

with the length penalty of Wu et al., "Google's Neural Machine Translation System" (2016),
equation 14, <eos> counted. ``alpha`` 0 ranks by probability alone, which favours short answers.

Every step extends the hypotheses at work by their best tokens and keeps the most probable of
all, as many as there are places. One that ends with <eos> keeps its place and is not extended
any more (Sutskever et al., 2014), so the search ends when all places are taken; a beam of 1 is
greedy decoding. It ends earlier, without a change to its answers, once no hypothesis at work can
come among the ``n_best``: log p only falls, so however a hypothesis goes on, its rank stays below
log p / lp(max_tokens).

A step gives N candidates a row. If the beam is wider than N, one hypothesis has at most N
successors.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hmer.decode_types import Hypothesis, Move, Reason
from hmer.errors import InferenceFailed
from hmer.guards import Guards, State
from hmer.search import Search, Taken, broken
from hmer.vocab import EOS_ID, SOS_ID


def length_penalty(length: int, alpha: float) -> float:
    """lp(``length``): what a log-probability is divided by; 1 for ``alpha`` 0."""
    return float(((5.0 + length) / 6.0) ** alpha)


class Live(NamedTuple):
    """A hypothesis at work. ``total`` is the sum of ``scores``; ``state`` is the guards'."""

    ids: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()
    total: float = 0.0
    state: State = Guards.start


class Successor(NamedTuple):
    """A hypothesis, by its ``place``, continued by ``token``; ``total`` includes ``score``."""

    total: float
    place: int
    token: int
    score: float


@dataclass(eq=False)
class BeamSearch(Search):
    """A request in as many slots as its beam is wide; the hypothesis at place i is in slot i.

    ``moves`` is what the slots do next: those without a hypothesis stand still.
    """

    live: list[Live] = field(default_factory=lambda: [Live()])
    finished: list[Hypothesis] = field(default_factory=list)  # best first
    moves: list[Move] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Begin with one hypothesis, the empty one."""
        self.moves = self._all_slots([Move(self.slots[0], SOS_ID, self.slots[0])])

    def take(self, candidates: Sequence[Sequence[int]], scores: Sequence[Sequence[float]]) -> Taken:
        """Extend the hypotheses by ``candidates``, a row of every slot, best first."""
        self.steps += 1
        try:
            successors = self._successors(candidates, scores)
        except InferenceFailed as error:
            return Taken("error", error=error)
        live: list[Live] = []
        moves: list[Move] = []
        places = len(self.slots) - len(self.finished)
        for successor in successors:
            if places == 0:
                break
            extended = self._extended(successor)
            if extended is None:
                continue
            places -= 1
            if successor.token == EOS_ID:
                insort(self.finished, self._hypothesis(extended), key=lambda h: -h.rank)
            else:
                slot, parent = self.slots[len(live)], self.slots[successor.place]
                moves.append(Move(slot, successor.token, parent))
                live.append(extended)
        reason = self._reason(live)
        if live or reason != "stuck":  # those that got stuck are all the answer there is
            self.live, self.moves = live, self._all_slots(moves)
        if reason is None:
            return Taken(None)
        best = self.answers()[0]
        end = len(best.ids) - (best.ids[-1:] == (EOS_ID,))
        return Taken(reason, best.ids[:end], best.scores[:end], len(best.ids))

    def answers(self) -> list[Hypothesis]:
        """The ``n_best`` finished ones; if there are none, those at work."""
        found = self.finished
        if not found:
            found = sorted(map(self._hypothesis, self.live), key=lambda h: -h.rank)
        return found[: self.request.search.n_best]

    def _successors(
        self, candidates: Sequence[Sequence[int]], scores: Sequence[Sequence[float]]
    ) -> list[Successor]:
        """All continuations, the most probable first. Raises ``InferenceFailed``."""
        found = []
        rows = zip(self.live, candidates, scores, strict=False)
        for place, (parent, row, row_scores) in enumerate(rows):
            for index, score in zip(row, row_scores, strict=True):
                if index < 0 or not math.isfinite(score):
                    raise broken(index, score, len(parent.ids))
                found.append(Successor(parent.total + score, place, index, score))
        found.sort(key=lambda s: -s.total)  # stable: of equals, the better parent's first
        return found

    def _extended(self, successor: Successor) -> Live | None:
        """The hypothesis that follows, unless the guards refuse it."""
        parent = self.live[successor.place]
        ids = (*parent.ids, successor.token)
        state = parent.state
        if self.guards is not None:
            following = self.guards.follow(state, successor.token)
            if following is None or self.guards.loops(ids):
                return None
            state = following
        return Live(ids, (*parent.scores, successor.score), successor.total, state)

    def _reason(self, live: Sequence[Live]) -> Reason | None:
        """Why the search is over, if it is; ``live`` are at work from now on, best first."""
        if not live:
            return "eos" if self.finished else "stuck"
        limit = self.request.max_tokens
        if self.steps >= limit:
            return "eos" if self.finished else "length"
        wanted = self.request.search.n_best
        if len(self.finished) < wanted:
            return None
        best = min(0.0, live[0].total) / length_penalty(limit, self._alpha)
        return "eos" if best <= self.finished[wanted - 1].rank else None

    def _hypothesis(self, live: Live) -> Hypothesis:
        rank = live.total / length_penalty(len(live.ids), self._alpha)
        return Hypothesis(live.ids, live.scores, rank)

    def _all_slots(self, moves: list[Move]) -> list[Move]:
        return moves + [Move(slot, EOS_ID, slot) for slot in self.slots[len(moves) :]]

    @property
    def _alpha(self) -> float:
        return self.request.search.length_penalty
