"""Single expressions of a report, drawn: the picture, truth and prediction as formulas."""

from __future__ import annotations

import base64
import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2

from hmer.confusions import edits_of, faults_of
from hmer.errors import BadParameter, InputError
from hmer.evaluation import Answers, rank_of_truth
from hmer.latex import to_latex
from hmer.mathml import to_mathml
from hmer.preprocess import PreprocessSettings, decode, preprocess
from hmer.score import Scored, structures

# Larger than networks read it: for eyes.
_FOR_EYES = PreprocessSettings(
    symbol_height=34.0, margin=8, multiple=1, max_height=400, max_width=1200, max_pixels=300_000
)


@dataclass(frozen=True)
class Token:
    """A token of one side; ``wrong`` if the other side has another, or none, in its place."""

    text: str
    wrong: bool


@dataclass(frozen=True)
class Case:
    """One expression as the page shows it; ``picture`` is a data URI, maths are MathML or empty."""

    id: str
    picture: str
    truth: list[Token]
    prediction: list[Token]
    truth_latex: str
    prediction_latex: str
    truth_math: str
    prediction_math: str
    score: float | None
    confidence: float | None
    distance: int
    length: int
    faults: tuple[str, ...]
    structures: tuple[str, ...]
    rank: int | None  # of the truth among n answers, from 1


Convert = Callable[[str], str]


def worst(answers: Answers, count: int) -> list[int]:
    """Indices of the worst wrong answers: most token edits first, then the surest of itself."""
    scored = answers.scored
    wrong = [index for index, item in enumerate(scored) if not item.correct]

    def badness(index: int) -> tuple[int, float, str]:
        score = answers.scores[index] if answers.scores else None
        return -scored[index].distance, -(score or 0.0), scored[index].id

    return sorted(wrong, key=badness)[:count]


def draw(
    answers: Answers, indices: Iterable[int], inputs: Mapping[str, bytes], to_math: Convert
) -> list[Case]:
    """The cases at ``indices``; ``inputs`` are what was recognised, by id, as far as is known."""
    cases = []
    for index in indices:
        item = answers.scored[index]
        rank = rank_of_truth(item, answers.candidates[index]) if answers.candidates else None
        truth_latex, latex = to_latex(item.truth), to_latex(item.prediction or ())
        truth, prediction = _sides(item)
        cases.append(
            Case(
                item.id,
                picture(inputs[item.id]) if item.id in inputs else "",
                truth,
                prediction,
                truth_latex,
                latex,
                to_math(truth_latex),
                to_math(latex) if item.parsable else "",
                answers.scores[index] if answers.scores else None,
                answers.confidences[index] if answers.confidences else None,
                item.distance,
                len(item.truth),
                faults_of(item),
                structures(item.truth),
                rank,
            )
        )
    return cases


def _sides(item: Scored) -> tuple[list[Token], list[Token]]:
    if item.prediction is None:
        return [Token(text, True) for text in item.truth], []
    edits = edits_of(item)
    truth = [Token(e.truth, not e.is_match) for e in edits if e.truth is not None]
    found = [Token(e.prediction, not e.is_match) for e in edits if e.prediction is not None]
    return truth, found


def picture(data: bytes) -> str:
    """An input as a data URI of a PNG, black on white; empty if it cannot be read."""
    try:
        ink = preprocess(decode(data), _FOR_EYES)
    except InputError:
        return ""
    encoded: Any = cv2.imencode(".png", 255 - ink)[1]
    return "data:image/png;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")


def math_converter() -> Convert | None:
    """LaTeX to MathML, "" where that fails; ``None`` without latex2mathml."""
    if importlib.util.find_spec("latex2mathml") is None:
        return None

    def convert(latex: str) -> str:
        try:
            return to_mathml(latex)
        except BadParameter:  # a prediction may be any nonsense
            return ""

    return convert


def kinds_in(cases: Sequence[Case]) -> list[str]:
    """All faults and structures of ``cases``, for the page's filter."""
    return sorted({name for case in cases for name in (*case.faults, *case.structures)})
