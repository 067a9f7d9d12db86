"""Why a server answers an expression otherwise than the same bundle does in process.

The answers are decoded once more, streamed, so that the probability of each token is known on both
sides. Where both sides are as sure of different tokens, the two were a tie, and rounding decided:
a batch of another shape, or another runtime, adds the same numbers in another order. Anything else
is another bundle, another precision or another search, and is told as such.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from benchmarks.accuracy import Run
from benchmarks.crohme import Expression
from hmer.errors import HmerError
from hmer.recognizer import Partial, Recognition

# Probabilities of the two tokens of a tie differ by no more: fp32 adds up to about 1e-4 here.
TIE = 0.01
MOST = 20  # expressions that are decoded once more


class Streamer(Protocol):
    """The client or the local recogniser."""

    def stream(self, data: bytes) -> Iterable[Partial | Recognition]:
        """Parts of the answer, then the answer."""


@dataclass(frozen=True)
class Answer:
    """Tokens and their probabilities; ``error``: the code instead of them."""

    tokens: tuple[str, ...]
    scores: tuple[float, ...]
    error: str = ""


@dataclass(frozen=True)
class Difference:
    """``at``: the first token that differs. ``answers`` by way."""

    id: str
    at: int
    answers: Mapping[str, Answer]
    why: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        answers = {way: " ".join(a.tokens) or a.error for way, a in self.answers.items()}
        return {"id": self.id, "at": self.at, "answers": answers, "why": self.why}

    def line(self) -> str:
        """For people."""
        told = "; ".join(
            f"{way.replace('_', ' ')}: {' '.join(a.tokens) or a.error or '(nothing)'}"
            for way, a in self.answers.items()
        )
        return f"{self.id}, token {self.at + 1}: {self.why}. {told}"


def explain(
    runs: Sequence[Run],
    streamers: Sequence[Streamer],
    differing: Sequence[str],
    expressions: Sequence[Expression],
) -> list[Difference]:
    """The first ``MOST`` of the expressions ``differing``, decoded once more by both."""
    data = {e.id: e.data for e in expressions}
    found = []
    for id in differing[:MOST]:
        answers = {
            run.way: _again(streamer, data[id])
            for run, streamer in zip(runs, streamers, strict=True)
        }
        found.append(difference(id, answers))
    return found


def difference(id: str, answers: Mapping[str, Answer]) -> Difference:
    """What is to be said of two answers."""
    first, second = answers.values()
    length = min(len(first.tokens), len(second.tokens))
    at = next((i for i in range(length) if first.tokens[i] != second.tokens[i]), length)
    if first.error or second.error:
        one = not (first.error and second.error)
        return Difference(id, at, answers, "an error on one side" if one else "two errors")
    if first.tokens == second.tokens:
        why = "equal when asked alone: the answer depended on what was decoded beside it"
        return Difference(id, at, answers, why)
    sure = [a.scores[at] for a in answers.values() if at < len(a.scores)]
    if len(sure) < 2:
        why = "one answer ends where the other goes on"
    elif abs(sure[0] - sure[1]) <= TIE:
        why = f"a tie, probabilities {sure[0]:.4f} and {sure[1]:.4f}: rounding decides"
    else:
        why = (
            f"no tie, probabilities {sure[0]:.4f} and {sure[1]:.4f}: another bundle, precision "
            "or search"
        )
    return Difference(id, at, answers, why)


def _again(streamer: Streamer, data: bytes) -> Answer:
    scores: tuple[float, ...] = ()
    try:
        for part in streamer.stream(data):
            if isinstance(part, Recognition):
                return Answer(part.tokens, scores)
            scores = part.scores
    except HmerError as error:
        return Answer((), (), error.code)
    return Answer((), scores)
