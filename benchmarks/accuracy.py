"""Accuracy on a pack, through a running server, in process, or both."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.crohme import Expression
from client import Recognizer
from hmer.errors import (
    BadParameter,
    BundleError,
    HmerError,
    MissingDependency,
    ServerUnavailable,
    UnknownModel,
)
from hmer.recognizer import LocalRecognizer, Recognition
from hmer.score import Scored, by_length, by_structure, compare, summarise

SERVER, IN_PROCESS = "server", "in_process"

# Errors of the set-up, not of one expression: a score that counted them would mean nothing.
_FATAL = (ServerUnavailable, UnknownModel, BadParameter, BundleError, MissingDependency)

_CHUNK = 64  # expressions between two movements of the progress bar

DECODING = "greedy"
"""The only search that recognition has (``hmer.search``)."""

Outcome = Recognition | HmerError
Bar = Callable[[Iterable[Outcome], int], Iterable[Outcome]]


@dataclass(frozen=True)
class Run:
    """The outcomes of one way to recognise, in the order of the expressions."""

    way: str  # SERVER or IN_PROCESS
    where: str  # URL or bundle folder
    outcomes: list[Outcome]
    scored: list[Scored]
    wall_s: float

    def to_dict(self) -> dict[str, Any]:
        """Scores, their breakdown, and how many expressions failed with which error."""
        return {
            "where": self.where,
            **summarise(self.scored).to_dict(),
            "by_length": {name: s.to_dict() for name, s in by_length(self.scored).items()},
            "by_structure": {name: s.to_dict() for name, s in by_structure(self.scored).items()},
            "errors": dict(Counter(o.code for o in self.outcomes if isinstance(o, HmerError))),
            "wall_s": round(self.wall_s, 3),
        }


def through_server(
    expressions: list[Expression], recognizer: Recognizer, concurrency: int, bar: Bar
) -> Run:
    """Recognise by requests to a server. Raises the errors that concern the server as a whole."""
    answers = recognizer.recognize_many((e.data for e in expressions), concurrency)
    return _run(SERVER, recognizer.url, expressions, answers, bar)


def in_process(
    expressions: list[Expression], recognizer: LocalRecognizer, where: str, bar: Bar
) -> Run:
    """Recognise in this process."""

    def answers() -> Iterator[Outcome]:
        for first in range(0, len(expressions), _CHUNK):
            yield from recognizer.recognize_many(
                [e.data for e in expressions[first : first + _CHUNK]]
            )

    return _run(IN_PROCESS, where, expressions, answers(), bar)


def _run(
    way: str, where: str, expressions: list[Expression], answers: Iterable[Outcome], bar: Bar
) -> Run:
    start = time.perf_counter()
    outcomes: list[Outcome] = []
    for outcome in bar(answers, len(expressions)):
        if isinstance(outcome, _FATAL):
            raise outcome
        outcomes.append(outcome)
    wall = time.perf_counter() - start
    scored = [
        compare(e.id, e.truth, None if isinstance(o, HmerError) else o.tokens)
        for e, o in zip(expressions, outcomes, strict=True)
    ]
    return Run(way, where, outcomes, scored, wall)


def agreement(a: Run, b: Run) -> dict[str, Any]:
    """How often two runs gave the same tokens, or failed with the same error."""
    differing = [
        scored.id
        for scored, x, y in zip(a.scored, a.outcomes, b.outcomes, strict=True)
        if _essence(x) != _essence(y)
    ]
    n = len(a.scored)
    return {"equal": n - len(differing), "n": n, "differing": differing}


def _essence(outcome: Outcome) -> tuple[str, ...]:
    if isinstance(outcome, HmerError):
        return ("error", outcome.code)
    return ("tokens", *outcome.tokens)


def predictions(run: Run) -> list[dict[str, Any]]:
    """One object an expression: truth, canonical prediction, score, and whether it is right."""
    result = []
    for scored, outcome in zip(run.scored, run.outcomes, strict=True):
        entry: dict[str, Any] = {
            "id": scored.id,
            "gt": " ".join(scored.truth),
            "pred": None if scored.prediction is None else " ".join(scored.prediction),
            "score": None if isinstance(outcome, HmerError) else outcome.score,
            "correct": scored.correct,
            "distance": scored.distance,
        }
        if isinstance(outcome, HmerError):
            entry["error"] = outcome.to_dict()
        elif not scored.parsable:
            entry["unparsable"] = True
        result.append(entry)
    return result
