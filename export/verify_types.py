"""Answers, how two sets of them compare, and what difference is allowed in which precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmer.errors import ParityError
from hmer.vocab import Vocabulary

Images = Mapping[str, NDArray[np.uint8]]
Progress = Callable[[int, int], None]  # images done, images in all
# (image, ids before, id expected, id found) -> how far apart the checkpoint finds the two, nats.
Margin = Callable[[str, tuple[int, ...], int, int], float | None]

SHOWN = 5  # mismatches in an error's text

# What is compared with what; also the wording of the error.
ANSWERS, PADDING, BATCHING, STEPS, BEAM = "answers", "padding", "batch", "k", "beam"
QUESTIONS = {
    ANSWERS: "answer differently from the checkpoint",
    PADDING: "answer differently when an image is padded",
    BATCHING: "answer differently in a batch than one by one",
    STEPS: "answer differently with k tokens a call than with one",
    BEAM: "answer differently with one hypothesis of decoder_beam than greedily",
}


@dataclass(frozen=True)
class Tolerance:
    """What a precision may change.

    ``score``: the greatest difference of one token's log-probability, in nats. ``share``: of
    the images, how many may get another answer. Where the answers part, the two candidates'
    log-probabilities may both have moved by ``score``, so candidates that are closer than
    ``tie`` = 2 ``score`` cannot be told apart in this precision.
    """

    score: float
    share: float

    @property
    def tie(self) -> float:
        """Candidates closer than this, in nats, are a tie."""
        return 2.0 * self.score


# An error of the log-probabilities grows with the rounding unit u of the arithmetic. In fp32
# (u = 2^-24) it stays below 2e-5, at most 300 u, on a hundred writings; 1e-3 leaves room for other
# networks and is far below what can turn an answer that is no tie. For fp16 (u = 2^-11) and
# bf16 (u = 2^-8) the limit is 150 u, 0.07 and 0.6; on held-out training writings the shipped
# network stayed below 0.007 and 0.2. int8 rounds to 1/254 of a tensor's range, as coarse as
# bf16 at the range's end and coarser everywhere else, but only in the encoder: twice bf16's.
TOLERANCES = {
    "fp32": Tolerance(score=1e-3, share=0.0),
    "fp16": Tolerance(score=0.07, share=0.01),
    "bf16": Tolerance(score=0.6, share=0.05),
    "int8": Tolerance(score=1.2, share=0.10),
}


@dataclass(frozen=True)
class Answer:
    """A greedy answer: ids with the final ``<eos>`` if there is one, and their log-probs."""

    ids: tuple[int, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Mismatch:
    """The first step (from 0) where an image's answers part, and what each side says.

    ``margin``: how many nats lie between the two for the checkpoint; ``None`` where only a
    log-probability differs, or one side had ended. ``tie``: no more than the precision can
    tell apart.
    """

    image: str
    step: int
    expected: str
    found: str
    margin: float | None = None
    tie: bool = False

    def __str__(self) -> str:
        """For the text of an error or a report."""
        text = f"{self.image}, step {self.step}: {self.expected} became {self.found}"
        if self.margin is None:
            return text
        return f"{text} (margin {self.margin:.2g}{', a tie' if self.tie else ''})"


@dataclass(frozen=True)
class Parity:
    """How a runner's answers compare. ``score_difference`` is the largest, in nats.

    ``check`` is one of ``QUESTIONS``. ``allowed``: the share of images that may differ, 0 to 1;
    with 0, none may but for ties.
    """

    runtime: str
    images: int
    tokens: int
    score_difference: float
    mismatches: tuple[Mismatch, ...]
    check: str = ANSWERS
    precision: str = "fp32"
    allowed: float = 0.0

    @property
    def ties(self) -> int:
        """How many mismatches are ties."""
        return sum(mismatch.tie for mismatch in self.mismatches)

    @property
    def share(self) -> float:
        """Of the images, those that differ: 0 to 1."""
        return len(self.mismatches) / max(self.images, 1)

    @property
    def refused(self) -> tuple[Mismatch, ...]:
        """The mismatches for which the check fails; empty if it passes."""
        if self.allowed:  # of few images, one may always differ
            return () if len(self.mismatches) <= math.ceil(self.allowed * self.images) else (
                self.mismatches
            )  # fmt: skip
        return tuple(mismatch for mismatch in self.mismatches if not mismatch.tie)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {
            "mismatches": [asdict(mismatch) for mismatch in self.mismatches],
            "differing": len(self.mismatches),
            "ties": self.ties,
            "share": self.share,
            "passed": not self.refused,
        }


def compare_answers(
    expected: Mapping[str, Answer],
    found: Mapping[str, Answer],
    vocabulary: Vocabulary,
    *,
    runtime: str,
    check: str = ANSWERS,
    precision: str = "fp32",
    allowed: float | None = None,
    margin: Margin = lambda *_: None,
) -> Parity:
    """``found`` against ``expected``, image by image up to the first step that differs.

    ``allowed`` replaces the precision's share of images that may differ (not in fp32, where
    only a tie may).
    """
    tolerance = TOLERANCES[precision]
    mismatches, worst, tokens = [], 0.0, 0
    for image, wanted in expected.items():
        answer = found[image]
        tokens += len(wanted.ids)
        differences = np.abs(np.subtract(*_common(wanted.scores, answer.scores)))
        mismatch = _first_mismatch(
            image, wanted, answer, differences, vocabulary, tolerance, margin
        )
        if mismatch is not None:
            mismatches.append(mismatch)
            # What a different token is given, and what follows it, answers another question.
            same = wanted.ids[mismatch.step : mismatch.step + 1] == answer.ids[
                mismatch.step : mismatch.step + 1
            ]  # fmt: skip
            differences = differences[: mismatch.step + same]
        worst = max(worst, float(differences.max(initial=0.0)))
    share = tolerance.share if allowed is None or not tolerance.share else allowed
    return Parity(runtime, len(expected), tokens, worst, tuple(mismatches), check, precision, share)


def refuse_mismatches(results: Sequence[Parity]) -> None:
    """Raise ``ParityError`` if any of ``results`` fails."""
    for result in results:
        refused = result.refused
        if refused:
            shown = "; ".join(str(mismatch) for mismatch in refused[:SHOWN])
            more = len(refused) - SHOWN
            allowed = f", and {result.allowed:.0%} may differ" if result.allowed else ""
            raise ParityError(
                f"The graphs in {result.runtime} {QUESTIONS[result.check]} on "
                f"{len(refused)} of {result.images} images{allowed}: {shown}"
                + (f"; and {more} more." if more > 0 else ".")
            )


def _first_mismatch(
    image: str,
    wanted: Answer,
    found: Answer,
    differences: NDArray[np.float64],
    vocabulary: Vocabulary,
    tolerance: Tolerance,
    margin: Margin,
) -> Mismatch | None:
    for step in range(max(len(wanted.ids), len(found.ids))):
        ours, theirs = wanted.ids[step : step + 1], found.ids[step : step + 1]
        if ours != theirs:
            gap = margin(image, wanted.ids[:step], ours[0], theirs[0]) if ours and theirs else None
            tie = gap is not None and gap <= tolerance.tie
            sides = _token(ours, vocabulary), _token(theirs, vocabulary)
            return Mismatch(image, step, *sides, gap, tie)
        if not differences[step] <= tolerance.score:  # also if it is not a number
            token = vocabulary.tokens[ours[0]]
            said = [f"{token} with log-probability {a.scores[step]:.5f}" for a in (wanted, found)]
            return Mismatch(image, step, said[0], said[1])
    return None


def _common(
    left: Sequence[float], right: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    length = min(len(left), len(right))
    return np.array(left[:length], np.float64), np.array(right[:length], np.float64)


def _token(ids: Sequence[int], vocabulary: Vocabulary) -> str:
    if not ids:
        return "the end"
    known = 0 <= ids[0] < len(vocabulary)
    return repr(vocabulary.tokens[ids[0]]) if known else f"the unknown token {ids[0]}"
