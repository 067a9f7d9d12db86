r"""What no formula is: unbalanced braces, a missing argument, one piece again and again.

``Guards`` follows a hypothesis token by token, by a table made from the vocabulary, and says
which continuations are out of the question. Beam search leaves those out; greedy decoding, whose
next token is chosen inside the graph, only uses ``loops`` to end what would never end. Every
sequence that the guards let through until <eos> parses (``hmer.latex_parser``).

The state of a hypothesis is a stack of frames, linked so that hypotheses share what they have in
common: a ``Row`` of symbols that some bracket closes, or ``Missing`` arguments of a command or
script.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from hmer.latex_parser import ARITY
from hmer.vocab import EOS_ID, PAD_ID, SOS_ID, Vocabulary

REPEATS = ((1, 16), (4, 10), (16, 6))
"""(period, repeats): a piece of up to so many tokens may follow itself so often in all.

Twice as often as in any label of CROHME's training sets, where the longest are eight zeros, five
nested roots, ``9^{9^{9^{9^{9^{`` and ``(-a)\times(-a)\times(-a)\times``.
"""

_OPEN, _CLOSE, _SUB, _SUP, _PRIME, _INDEX, _CLOSE_INDEX = range(-7, 0)
_SYMBOL = 0  # and a command of n arguments is n
_IGNORED, _NEVER = 100, 101
_ROLES = {
    "{": _OPEN,
    "}": _CLOSE,
    "_": _SUB,
    "^": _SUP,
    "'": _PRIME,
    "[": _INDEX,
    "]": _CLOSE_INDEX,
    "\\limits": _IGNORED,
    "\\nolimits": _IGNORED,
}
_SCRIPTS = {_SUB: 1, _SUP: 2}


class Row(NamedTuple):
    """Symbols up to ``closer`` (a role; 0 at the top, which <eos> closes).

    ``scripts``: which the last base has, 1 for a subscript, 2 for a superscript. An ``argument``
    must not be left empty; ``filled`` says whether it is.
    """

    below: State | None
    closer: int = 0
    argument: bool = True
    filled: bool = False
    scripts: int = 0


class Missing(NamedTuple):
    """``needed`` arguments are still to come; a ``root`` may have an index in [ ] before them."""

    below: State
    needed: int
    root: bool = False


State: TypeAlias = Row | Missing


class Guards:
    """The rules over the ids of one vocabulary. Immutable; threads may share it."""

    start: State = Row(None)

    def __init__(
        self, vocabulary: Vocabulary, repeats: Sequence[tuple[int, int]] = REPEATS
    ) -> None:
        """``repeats`` as in ``REPEATS``, in ascending order of periods."""
        self._roles = [_ROLES.get(token, ARITY.get(token, 0)) for token in vocabulary.tokens]
        self._roles[PAD_ID] = self._roles[SOS_ID] = _NEVER
        self._root = vocabulary.encode(["\\sqrt"])[0] if "\\sqrt" in vocabulary else -1
        # (tokens of the first r repeats, period): so much of the end equals what precedes it
        self._spans = []
        period = 0
        for most, allowed in repeats:
            while period < most:
                period += 1
                self._spans.append((period * allowed, period))
        self._shortest = min((span + period for span, period in self._spans), default=0)

    def loops(self, ids: Sequence[int]) -> bool:
        """Whether ``ids`` end in more repeats of one piece than any formula has."""
        n = len(ids)
        if n < self._shortest:
            return False
        return any(
            span + period <= n and ids[n - span :] == ids[n - span - period : n - period]
            for span, period in self._spans
        )

    def follow(self, state: State, index: int) -> State | None:
        """The state after token ``index``; ``None`` if it cannot come there.

        <eos> can come where every brace is closed and every argument there.
        """
        if index == EOS_ID:
            ends = isinstance(state, Row) and state.closer == 0 and state.filled
            return state if ends else None
        role = self._roles[index] if index < len(self._roles) else _NEVER
        if role == _NEVER:
            return None
        if role == _IGNORED:
            return state
        if isinstance(state, Missing):
            return self._argument(state, role, index)
        return self._in_row(state, role, index)

    def _argument(self, state: Missing, role: int, index: int) -> State | None:
        if role in (_CLOSE, _SUB, _SUP):
            return None
        if role == _INDEX and state.root:
            return Row(Missing(state.below, state.needed), _CLOSE_INDEX)
        rest = Missing(state.below, state.needed - 1) if state.needed > 1 else state.below
        if role == _OPEN:
            return Row(rest, _CLOSE)
        return self._symbol(rest, role, index)

    def _symbol(self, state: State, role: int, index: int) -> State:
        return Missing(state, role, index == self._root) if role > 0 else state

    def _in_row(self, row: Row, role: int, index: int) -> State | None:
        if role == _CLOSE or (role == _CLOSE_INDEX and row.closer == _CLOSE_INDEX):
            closes = role == row.closer and (row.filled or not row.argument)
            return row.below if closes else None
        if role in _SCRIPTS:
            bit = _SCRIPTS[role]
            if row.scripts & bit:
                return None  # x_1_2
            return Missing(row._replace(filled=True, scripts=row.scripts | bit), 1)
        if role == _PRIME:
            return None if row.scripts & _SCRIPTS[_SUP] else row._replace(filled=True)
        begun = row._replace(filled=True, scripts=0)  # a base of its own
        if role == _OPEN:
            return Row(begun, _CLOSE, argument=False)
        return self._symbol(begun, role, index)
