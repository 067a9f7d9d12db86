r"""Whether scores mean what they say, and confidences that do.

A recogniser is calibrated if, of the answers with confidence p, a share p is right. The score
of an answer (the product of its tokens' probabilities) is not meant to be: here is how far it
is off, and a mapping to a confidence that is closer, fitted on held-out answers.

Sources: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017
(ECE, equation 3); Nguyen and O'Connor, EMNLP 2015 (bins of equal mass); Brier, Monthly Weather
Review 78, 1950; Platt, "Probabilistic outputs for support vector machines", 1999 (the sigmoid
and its smoothed targets); Bröcker and Smith, Weather and Forecasting 22, 2007 (consistency
resampling).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hmer.decode_types import GREEDY, SearchOptions
from hmer.errors import CorruptBundle, DatasetError

Floats = NDArray[np.float64]
Binning = Literal["width", "mass"]

BINS = 10
DETAILS_KEY = "calibration"  # of a bundle's details
MIN_ANSWERS = 20  # for a fit
_FLOOR = 1e-300  # a score that underflowed


@dataclass(frozen=True)
class Bin:
    """Answers of like confidence: ``n`` of them, their mean confidence, the share that is right."""

    low: float  # the bounds of their confidences
    high: float
    n: int
    confidence: float
    accuracy: float


def reliability(
    confidences: ArrayLike, correct: ArrayLike, bins: int = BINS, binning: Binning = "width"
) -> list[Bin]:
    """The reliability diagram's data: bins that are not empty, lowest confidence first.

    ``confidences`` (n,) 0..1, ``correct`` bool (n,). "width": [0, 1] in ``bins`` equal parts, the
    lower bound excluded (the first bin includes 0). "mass": as many answers in each, within one;
    equal confidences may be in two bins, in their given order.
    """
    p, right = np.asarray(confidences, np.float64), np.asarray(correct, np.float64)
    if binning == "width":
        place = np.clip(np.ceil(p * bins).astype(np.int64) - 1, 0, bins - 1)
    else:
        place = np.empty(len(p), np.int64)
        place[np.argsort(p, kind="stable")] = np.arange(len(p)) * bins // max(len(p), 1)
    result = []
    for index in range(bins):
        chosen = place == index
        if n := int(chosen.sum()):
            inside = p[chosen]
            low, high = (
                (index / bins, (index + 1) / bins)
                if binning == "width"
                else (float(inside.min()), float(inside.max()))
            )
            result.append(Bin(low, high, n, float(inside.mean()), float(right[chosen].mean())))
    return result


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """ECE = sum_m (n_m / n) |accuracy_m - confidence_m| (Guo et al. 2017, equation 3); 0..1."""
    n = sum(part.n for part in bins)
    return sum(part.n * abs(part.accuracy - part.confidence) for part in bins) / n if n else 0.0


def brier_score(confidences: ArrayLike, correct: ArrayLike) -> float:
    """The mean of (confidence - right)^2, right being 1 or 0; lower is better. 0 for none."""
    p, right = np.asarray(confidences, np.float64), np.asarray(correct, np.float64)
    return float(np.mean((p - right) ** 2)) if p.size else 0.0


def measure(confidences: Sequence[float], correct: Sequence[bool]) -> dict[str, Any]:
    """How well ``confidences`` (0..1) tell how often answers are right, JSON-ready.

    ``ece_if_calibrated`` is the mean equal-mass ECE of 200 draws in which every answer is right
    with just its confidence: what is left of the error by chance alone with so few answers.
    """
    p, right = np.asarray(confidences, np.float64), np.asarray(correct, np.float64)
    by_mass = reliability(p, right, binning="mass")
    clipped = np.clip(p, 1e-12, 1 - 1e-12)
    rng = np.random.default_rng(0)
    draws = [
        expected_calibration_error(reliability(p, rng.random(len(p)) < p, binning="mass"))
        for _ in range(200)
    ]
    return {
        "n": len(p),
        "bins": BINS,
        "mean_confidence": float(p.mean()) if len(p) else 0.0,
        "accuracy": float(right.mean()) if len(p) else 0.0,
        "ece_equal_mass": expected_calibration_error(by_mass),
        "ece_equal_width": expected_calibration_error(reliability(p, right)),
        "ece_if_calibrated": float(np.mean(draws)),
        "brier": brier_score(p, right),
        "log_loss": float(
            -np.mean(right * np.log(clipped) + (1 - right) * np.log1p(-clipped)) if len(p) else 0.0
        ),
        "reliability": [asdict(part) for part in by_mass],
    }


@dataclass(frozen=True)
class Calibration:
    """confidence = 1 / (1 + exp(-(intercept + log_probability * s + length * t))).

    s is the sum of the answer's log-probabilities (<eos> included), t the number of its tokens
    (without <eos>). ``origin`` says what it was fitted on.
    """

    intercept: float
    log_probability: float
    length: float
    origin: dict[str, Any]

    def confidence(self, log_probability: float, length: int) -> float:
        """The probability, 0..1, that an answer with these is right."""
        z = self.intercept + self.log_probability * log_probability + self.length * length
        return 1.0 / (1.0 + math.exp(-z)) if z >= 0 else math.exp(z) / (1.0 + math.exp(z))

    def fits(self, search: SearchOptions) -> bool:
        """Whether it holds for answers that were searched for like this.

        One that was fitted on greedy answers holds for every beam: a score is the probability of
        the same tokens however they were found. Cross-validated with the shipped weights on the 196
        held-out expressions (10 folds, mean of 20 divisions), for a beam of 3: expected
        calibration error 7.5 %, Brier score 0.146; fits to the beam's own answers 7.7 % and 0.146.
        """
        return self.origin.get("decoding") in (GREEDY.describe(), search.describe())

    def of_score(self, score: float, length: int) -> float:
        """``confidence`` from a ``Recognition``'s score and its number of tokens."""
        return self.confidence(math.log(max(score, _FLOOR)), length)

    def to_dict(self) -> dict[str, Any]:
        """For ``bundle.json``."""
        return asdict(self)

    @classmethod
    def from_details(cls, details: dict[str, Any]) -> Calibration | None:
        """The calibration in a bundle's ``details``; ``None`` if there is none.

        Raises ``CorruptBundle``.
        """
        if (entry := details.get(DETAILS_KEY)) is None:
            return None
        try:
            names = ("intercept", "log_probability", "length")
            intercept, slope, length = (float(entry[name]) for name in names)
            if not all(map(math.isfinite, (intercept, slope, length))):
                raise ValueError("a value is not finite")
            return cls(intercept, slope, length, dict(entry.get("origin", {})))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptBundle(
                f"The bundle's calibration cannot be read ({type(error).__name__}: {error}). Make "
                "it again with hmer-bench calibrate --write."
            ) from error


def log_probabilities(scores: Sequence[float]) -> list[float]:
    """Scores (sequence probabilities) as log-probabilities; an underflow becomes very small."""
    return [math.log(max(score, _FLOOR)) for score in scores]


def fit(
    log_probability: Sequence[float],
    lengths: Sequence[int],
    correct: Sequence[bool],
    *,
    use_length: bool = True,
    origin: dict[str, Any] | None = None,
) -> Calibration:
    """Platt scaling of held-out answers; never of a test set or of what the network saw.

    Logistic regression by Newton's method on Platt's targets, (N+ + 1) / (N+ + 2) for the N+
    right answers and 1 / (N- + 2) for the others, which keep it finite where the two can be
    told apart without error. ``use_length`` false: the length's weight is 0. Raises
    ``DatasetError`` for fewer than ``MIN_ANSWERS`` answers, all right or all wrong, or scores
    that fall as answers get better.
    """
    right = np.asarray(correct, np.bool_)
    positive, negative = int(right.sum()), int((~right).sum())
    if len(right) < MIN_ANSWERS or not positive or not negative:
        raise DatasetError(
            f"A calibration needs at least {MIN_ANSWERS} answers, right ones and wrong ones; "
            f"there are {positive} right and {negative} wrong. Give more held-out expressions."
        )
    columns = [np.ones(len(right)), np.asarray(log_probability, np.float64)]
    if use_length:
        columns.append(np.asarray(lengths, np.float64))
    targets = np.where(right, (positive + 1) / (positive + 2), 1 / (negative + 2))
    weights = _logistic(np.column_stack(columns), targets)
    intercept, slope, *rest = weights.tolist()
    if slope <= 0:
        raise DatasetError(
            "Answers with a higher score are not more often right here, so no confidence can be "
            "had from the scores. Is it the right pack and label set?"
        )
    return Calibration(intercept, slope, rest[0] if rest else 0.0, origin or {})


def _logistic(features: Floats, targets: Floats) -> Floats:
    """The weights with the least cross entropy: Newton's method, steps halved while they fail."""
    scale = np.abs(features).max(axis=0).clip(1e-9)  # columns of like size, for the solver
    x = features / scale
    weights = np.zeros(x.shape[1])
    loss = _cross_entropy(x @ weights, targets)
    for _ in range(100):
        p = 1.0 / (1.0 + np.exp(-np.clip(x @ weights, -500, 500)))
        gradient = x.T @ (p - targets)
        curvature = (x * (p * (1 - p))[:, None]).T @ x + 1e-9 * np.eye(x.shape[1])
        step = np.linalg.solve(curvature, gradient)
        rate = 1.0
        while (new := _cross_entropy(x @ (weights - rate * step), targets)) > loss and rate > 1e-6:
            rate /= 2
        if new > loss or loss - new < 1e-12:
            break
        weights, loss = weights - rate * step, new
    result: Floats = weights / scale
    return result


def _cross_entropy(z: Floats, targets: Floats) -> float:
    return float(np.sum(np.logaddexp(0.0, z) - targets * z))


def cross_validate(
    log_probability: Sequence[float],
    lengths: Sequence[int],
    correct: Sequence[bool],
    *,
    use_length: bool = True,
    folds: int = 10,
    seed: int = 0,
) -> list[float]:
    """The confidence of each answer from a fit on the other folds: what to measure ``fit`` by.

    Folds are random, with right and wrong answers spread evenly. Raises as ``fit``.
    """
    s, t = np.asarray(log_probability), np.asarray(lengths)
    right = np.asarray(correct, np.bool_)
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(right))
    order = shuffled[np.argsort(right[shuffled], kind="stable")]
    fold = np.empty(len(right), np.int64)
    fold[order] = np.arange(len(right)) % folds
    result = np.empty(len(right))
    for index in range(folds):
        inside = fold == index
        rest = ~inside
        fitted = fit(
            s[rest].tolist(), t[rest].tolist(), right[rest].tolist(), use_length=use_length
        )
        result[inside] = [
            fitted.confidence(a, b)
            for a, b in zip(s[inside].tolist(), t[inside].tolist(), strict=True)
        ]
    found: list[float] = result.tolist()
    return found
