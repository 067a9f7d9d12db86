"""What runs the steps of searches: one machine for greedy requests, one for beams.

The scheduler gives a machine all searches of its kind at once and hands each its part of the
result, whatever the steps look like. The machines share the slots' numbers, so a slot is at work
in one of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

from numpy.typing import NDArray

from hmer.beam import BeamSearch
from hmer.decode_types import BeamStep, DecodeRequest, StepFn
from hmer.errors import InferenceFailed
from hmer.guards import Guards
from hmer.search import GreedySearch, Search, Taken

S = TypeVar("S", bound=Search)


class Machine(Protocol, Generic[S]):
    """Searches of one kind and the steps under them."""

    def begin(
        self, slots: tuple[int, ...], request: DecodeRequest, queued_s: float, since: float
    ) -> S:
        """A search for ``request`` in ``slots``."""

    def admit(self, search: S) -> None:
        """Put its image into its slots."""

    def release(self, search: S) -> None:
        """Free its slots."""

    def step(self, searches: Sequence[S]) -> Iterator[tuple[S, Taken]]:
        """One step of all its searches: run at once, and taken one by one as they are asked for.

        An exception before the first one fails them all.
        """


class GreedyMachine:
    """Greedy searches over a ``StepFn``."""

    def __init__(self, step_fn: StepFn, guards: Guards | None = None) -> None:
        self._step_fn, self._guards = step_fn, guards
        self._ks: tuple[int, ...] = getattr(step_fn, "ks", ())

    def begin(
        self, slots: tuple[int, ...], request: DecodeRequest, queued_s: float, since: float
    ) -> GreedySearch:
        """See ``Machine``."""
        return GreedySearch(slots, request, queued_s, since, self._guards)

    def admit(self, search: GreedySearch) -> None:
        """See ``Machine``."""
        self._step_fn.admit(search.slots[0], search.request.encoded)

    def release(self, search: GreedySearch) -> None:
        """See ``Machine``."""
        self._step_fn.release(search.slots[0])

    def step(self, searches: Sequence[GreedySearch]) -> Iterator[tuple[GreedySearch, Taken]]:
        """See ``Machine``."""
        if self._ks:
            self._step_fn.k = tokens_a_call(self._ks, searches)
        result = self._step_fn.step([search.slots[0] for search in searches])
        expected = (len(searches), self._step_fn.k)
        _check("tokens", result.tokens, expected)
        _check("scores", result.scores, expected)
        tokens, scores = result.tokens.tolist(), result.scores.tolist()
        return (
            (search, search.take(ids, row))
            for search, ids, row in zip(searches, tokens, scores, strict=True)
        )


def tokens_a_call(ks: Sequence[int], searches: Sequence[GreedySearch]) -> int:
    """Which of ``ks`` tokens the next call should bring, the same for all ``searches``.

    As many as there are: a call's fixed cost is shared by its tokens, and on one core of a CPU
    decoding token by token took 1.14 (16 formulas) to 1.26 times (one) the time of four a call,
    the steps wasted after <eos> included. So requests that wait for a slot gain nothing by
    smaller calls. Fewer are brought where somebody waits for a first token, where a request asks
    for it, and where every answer is about to reach its limit.
    """
    most = max(search.request.max_tokens - len(search.ids) for search in searches)
    for search in searches:
        if search.request.eager and not search.ids:
            most = 1
        if search.request.k is not None:
            most = min(most, search.request.k)
    return max((k for k in ks if k <= most), default=min(ks))


class BeamMachine:
    """Beam searches over a ``BeamStep``."""

    def __init__(self, beam_step: BeamStep, guards: Guards | None = None) -> None:
        self._beam_step, self._guards = beam_step, guards

    def begin(
        self, slots: tuple[int, ...], request: DecodeRequest, queued_s: float, since: float
    ) -> BeamSearch:
        """See ``Machine``."""
        return BeamSearch(slots, request, queued_s, since, self._guards)

    def admit(self, search: BeamSearch) -> None:
        """See ``Machine``."""
        self._beam_step.admit(search.slots, search.request.encoded)

    def release(self, search: BeamSearch) -> None:
        """See ``Machine``."""
        self._beam_step.release(search.slots)

    def step(self, searches: Sequence[BeamSearch]) -> Iterator[tuple[BeamSearch, Taken]]:
        """See ``Machine``."""
        moves = [move for search in searches for move in search.moves]
        result = self._beam_step.step(moves)
        _check("candidates", result.candidates, (len(moves), result.candidates.shape[-1]))
        _check("scores", result.scores, result.candidates.shape)
        candidates, scores = result.candidates.tolist(), result.scores.tolist()
        return self._taken(searches, candidates, scores)

    @staticmethod
    def _taken(
        searches: Sequence[BeamSearch], candidates: list[list[int]], scores: list[list[float]]
    ) -> Iterator[tuple[BeamSearch, Taken]]:
        first = 0
        for search in searches:
            rows = slice(first, first + len(search.slots))
            first = rows.stop
            yield search, search.take(candidates[rows], scores[rows])


def _check(name: str, found: NDArray[Any], expected: tuple[int, ...]) -> None:
    if found.shape != expected:
        raise InferenceFailed(
            f"The decoder step gave {name} of shape {found.shape} instead of {expected}."
        )
