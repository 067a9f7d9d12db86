"""How one request's answer grows, step by step: greedy search.

The scheduler asks a search only three things: which slot it holds, what it makes of a step's
tokens (``take``), and what it has so far. A beam would hold several slots, read a step result
with candidates, and need a ``StepFn`` that copies one slot's state to another; queue, limits,
deadlines, cancellation and failures would stay where they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from hmer.decode_types import DecodeRequest, Reason
from hmer.errors import InferenceFailed
from hmer.vocab import EOS_ID


@dataclass(eq=False)
class GreedySearch:
    """A request in a slot; the step's own argmax is the next token.

    ``queued_s`` is how many seconds it had waited, ``since`` when it got the slot.
    """

    slot: int
    request: DecodeRequest
    queued_s: float
    since: float
    ids: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    steps: int = 0

    def take(self, ids: Sequence[int], scores: Sequence[float]) -> Reason | None:
        """Append a step's tokens; returns the reason if the answer is complete.

        Token by token, so that the answer doesn't depend on k. Raises ``InferenceFailed`` for
        a score that is not finite or a negative token: that concerns this row alone.
        """
        self.steps += 1
        for index, score in zip(ids, scores, strict=True):
            if index < 0 or not math.isfinite(score):
                raise InferenceFailed(
                    f"The decoder gave token {index} with score {score} after "
                    f"{len(self.ids)} tokens of this input. Its graph or weights are broken."
                )
            self.ids.append(index)
            self.scores.append(score)
            if index == EOS_ID:
                return "eos"
            if len(self.ids) >= self.request.max_tokens:
                return "length"
        return None
