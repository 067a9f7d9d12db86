"""What an answer is, and how an outcome of the decoder becomes one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmer import notebook
from hmer.calibration import Calibration
from hmer.decode_types import Outcome
from hmer.errors import InferenceFailed
from hmer.latex import to_latex
from hmer.vocab import Vocabulary


@dataclass(frozen=True)
class Alternative:
    """One of the n best answers; ``score`` is its probability, 0 to 1.

    The probability of exactly these tokens: the product of the tokens' own, <eos> included. A
    beam's answers are ordered by probability normalised by length (``hmer.beam``), so a longer
    one may precede a shorter one with a greater score.
    """

    latex: str
    tokens: tuple[str, ...]
    score: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; also the form in the served ``alternatives``."""
        return {"latex": self.latex, "tokens": list(self.tokens), "score": self.score}


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """Where the network looked for each token of an answer.

    ``maps`` float32 (T, h, w), each of sum 1. ``box``: left, top, right, bottom of what they cover,
    in pixels of the picture (of ink: of its rendering); it may reach beyond the picture.
    """

    maps: NDArray[np.float32]
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Recognition(Alternative):
    """An answer. ``alternatives`` are the next best, best first, without the answer itself.

    ``confidence`` is the probability, 0 to 1, that the answer is right, where the bundle has a
    calibration for the way it was searched for (``hmer.calibration``).
    ``timings`` are milliseconds by stage, as far as they are known: "preprocess", "encode",
    "queue", "decode", or, of a served answer, "request". ``attention`` only where asked for.
    ``request_id``: of a served answer, what the server's log calls the request.
    """

    alternatives: tuple[Alternative, ...] = ()
    confidence: float | None = None
    timings: Mapping[str, float] = field(default_factory=dict)
    attention: AttentionMaps | None = field(default=None, compare=False, repr=False)
    request_id: str = field(default="", compare=False)

    def _repr_latex_(self) -> str:
        """For notebooks."""
        return rf"$\displaystyle {self.latex}$"

    def _repr_html_(self) -> str:
        """For notebooks: the formula, its source, confidence and alternatives."""
        return notebook.table(self)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return super().to_dict() | {
            "confidence": self.confidence,
            "alternatives": [other.to_dict() for other in self.alternatives],
            "timings": {stage: round(ms, 3) for stage, ms in self.timings.items()},
            **({"request_id": self.request_id} if self.request_id else {}),
        }


@dataclass(frozen=True)
class Partial:
    """The beginning of an answer while it is decoded; ``tokens`` are all so far.

    ``scores`` are the tokens' probabilities, 0 to 1. ``attention``, where asked for, is the newest
    token's alone.
    """

    tokens: tuple[str, ...]
    scores: tuple[float, ...]
    attention: AttentionMaps | None = field(default=None, compare=False, repr=False)

    @property
    def latex(self) -> str:
        """LaTeX of the tokens so far; braces may still be open."""
        return to_latex(self.tokens)


def answer(
    vocabulary: Vocabulary, outcome: Outcome, calibration: Calibration | None = None
) -> Recognition:
    """What an outcome of the decoder says. Raises the outcome's error, if it is one.

    ``calibration`` is one that fits the outcome's search.
    """
    if outcome.error is not None:
        raise outcome.error
    best = _alternative(vocabulary, outcome.ids, outcome.scores)
    return Recognition(
        latex=best.latex,
        tokens=best.tokens,
        score=best.score,
        confidence=calibration.of_score(best.score, len(best.tokens)) if calibration else None,
        alternatives=tuple(
            _alternative(vocabulary, other.ids, other.scores) for other in outcome.alternatives
        ),
        timings={"queue": outcome.queued_s * 1e3, "decode": outcome.decode_s * 1e3},
    )


def _alternative(
    vocabulary: Vocabulary, ids: Sequence[int], scores: Sequence[float]
) -> Alternative:
    if unknown := [index for index in ids if index >= len(vocabulary)]:
        raise InferenceFailed(
            f"The decoder gave the token {unknown[0]}, and the vocabulary has {len(vocabulary)}. "
            "Graphs and vocabulary are not of one bundle."
        )
    tokens = tuple(vocabulary.decode(ids))
    return Alternative(to_latex(tokens), tokens, math.exp(min(0.0, math.fsum(scores))))
