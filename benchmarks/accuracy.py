"""Accuracy on a pack, through a running server, in process, or both."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.crohme import Expression
from client import Recognizer
from hmer.calibration import Calibration
from hmer.decode_types import SearchOptions
from hmer.errors import (
    BadParameter,
    BundleError,
    HmerError,
    MissingDependency,
    ServerUnavailable,
    UnknownModel,
)
from hmer.evaluation import TOP, Answers, figures
from hmer.recognizer import LocalRecognizer, Recognition
from hmer.score import Scored, compare

SERVER, IN_PROCESS = "server", "in_process"
GREEDY = SearchOptions()

# Errors of the set-up, not of one expression: a score that counted them would mean nothing.
_FATAL = (ServerUnavailable, UnknownModel, BadParameter, BundleError, MissingDependency)

_CHUNK = 64  # expressions between two movements of the progress bar

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
    calibration: Calibration | None = None

    @property
    def answers(self) -> Answers:
        """What is reported on; one without an answer has no score."""
        found = [o if isinstance(o, Recognition) else None for o in self.outcomes]
        calibration = self.calibration
        confidences: list[float | None] = []
        if calibration is not None:
            confidences = [
                None if o is None else calibration.of_score(o.score, len(o.tokens)) for o in found
            ]
        several = any(o is not None and o.alternatives for o in found)
        return Answers(
            self.scored,
            [None if o is None else o.score for o in found],
            confidences,
            [candidates(o) for o in found] if several else [],
        )

    def to_dict(self, top: int = TOP) -> dict[str, Any]:
        """Scores, their breakdown, and how many expressions failed with which error."""
        return {
            "where": self.where,
            **figures(self.answers, top),
            "errors": dict(Counter(o.code for o in self.outcomes if isinstance(o, HmerError))),
            "wall_s": round(self.wall_s, 3),
        }


def candidates(answer: Recognition | None) -> list[tuple[str, ...]]:
    """The tokens of an answer and of its alternatives, best first; empty without an answer."""
    if answer is None:
        return []
    return [answer.tokens, *(other.tokens for other in answer.alternatives)]


def through_server(
    expressions: list[Expression],
    recognizer: Recognizer,
    concurrency: int,
    bar: Bar,
    calibration: Calibration | None = None,
    *,
    search: SearchOptions = GREEDY,
    looks: int = 1,
) -> Run:
    """Recognise by requests to a server. Raises the errors that concern the server as a whole."""
    inputs = (e.data for e in expressions)
    if search == GREEDY and looks == 1:  # any server's own choice
        answers = recognizer.recognize_many(inputs, concurrency)
    else:
        answers = recognizer.recognize_many(
            inputs,
            concurrency,
            beam=search.beam,
            n_best=search.n_best,
            length_penalty=search.length_penalty,
            looks=looks,
        )
    return _run(SERVER, recognizer.url, expressions, answers, bar, calibration)


def in_process(
    expressions: list[Expression],
    recognizer: LocalRecognizer,
    where: str,
    bar: Bar,
    calibration: Calibration | None = None,
    looks: int = 1,
) -> Run:
    """Recognise in this process."""

    def answers() -> Iterator[Outcome]:
        for first in range(0, len(expressions), _CHUNK):
            yield from recognizer.recognize_many(
                [e.data for e in expressions[first : first + _CHUNK]], looks=looks
            )

    return _run(IN_PROCESS, where, expressions, answers(), bar, calibration)


def _run(
    way: str,
    where: str,
    expressions: list[Expression],
    answers: Iterable[Outcome],
    bar: Bar,
    calibration: Calibration | None,
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
    return Run(way, where, outcomes, scored, wall, calibration)


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
    """One object an expression: truth, canonical prediction, score, and whether it is right.

    With alternatives, ``n_best`` holds the answer and them, best first.
    """
    result = []
    confidences = run.answers.confidences or [None] * len(run.scored)
    for scored, outcome, confidence in zip(run.scored, run.outcomes, confidences, strict=True):
        entry: dict[str, Any] = {
            "id": scored.id,
            "gt": " ".join(scored.truth),
            "pred": None if scored.prediction is None else " ".join(scored.prediction),
            "score": None if isinstance(outcome, HmerError) else outcome.score,
            "correct": scored.correct,
            "distance": scored.distance,
        }
        if confidence is not None:
            entry["confidence"] = confidence
        if isinstance(outcome, HmerError):
            entry["error"] = outcome.to_dict()
        elif not scored.parsable:
            entry["unparsable"] = True
        if isinstance(outcome, Recognition) and outcome.alternatives:
            entry["n_best"] = [
                {"pred": " ".join(other.tokens), "score": other.score}
                for other in (outcome, *outcome.alternatives)
            ]
        result.append(entry)
    return result
