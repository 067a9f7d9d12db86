"""hmer.calibration: calibration errors by hand, and fits whose solution is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from hmer.calibration import (
    Calibration,
    brier_score,
    cross_validate,
    expected_calibration_error,
    fit,
    log_probabilities,
    measure,
    reliability,
)
from hmer.errors import CorruptBundle, DatasetError


def test_equal_width_bins_by_hand() -> None:
    confidences = [0.0, 0.05, 0.1, 0.15, 0.95, 1.0]
    correct = [False, False, True, True, True, False]
    bins = reliability(confidences, correct, bins=10)
    # (0.0 .. 0.1], (0.1 .. 0.2], (0.9 .. 1.0]
    assert [(b.low, b.high, b.n) for b in bins] == [(0.0, 0.1, 3), (0.1, 0.2, 1), (0.9, 1.0, 2)]
    assert [b.confidence for b in bins] == pytest.approx([0.05, 0.15, 0.975])
    assert [b.accuracy for b in bins] == pytest.approx([1 / 3, 1.0, 0.5])
    expected = 3 / 6 * (1 / 3 - 0.05) + 1 / 6 * 0.85 + 2 / 6 * 0.475
    assert expected_calibration_error(bins) == pytest.approx(expected)


def test_equal_mass_bins_by_hand() -> None:
    bins = reliability(
        [0.9, 0.1, 0.8, 0.2, 0.3], [True, False, False, False, True], bins=2, binning="mass"
    )
    assert [(b.low, b.high, b.n) for b in bins] == [(0.1, 0.3, 3), (0.8, 0.9, 2)]
    assert [b.confidence for b in bins] == pytest.approx([0.2, 0.85])
    assert expected_calibration_error(bins) == pytest.approx(
        3 / 5 * (1 / 3 - 0.2) + 2 / 5 * (0.85 - 0.5)
    )


def test_equal_mass_bins_are_equal() -> None:
    bins = reliability(np.linspace(0, 1, 47), np.ones(47), binning="mass")
    assert sorted({b.n for b in bins}) == [4, 5]
    assert sum(b.n for b in bins) == 47


def test_brier_score_by_hand() -> None:
    assert brier_score([0.9, 0.2], [True, True]) == pytest.approx((0.01 + 0.64) / 2)


def test_nothing_divides_by_zero() -> None:
    found = measure([], [])
    assert (found["n"], found["ece_equal_mass"], found["brier"]) == (0, 0.0, 0.0)


def test_chance_alone_gives_an_error() -> None:
    """Calibrated answers: the error is what chance leaves, which few answers make large."""
    rng = np.random.default_rng(1)
    p = rng.random(4000)
    many = measure(p.tolist(), (rng.random(4000) < p).tolist())
    assert many["ece_equal_mass"] == pytest.approx(many["ece_if_calibrated"], abs=0.01)
    few = measure(p[:60].tolist(), (rng.random(60) < p[:60]).tolist())
    assert few["ece_if_calibrated"] > 3 * many["ece_if_calibrated"]
    assert many["log_loss"] == pytest.approx(0.5, abs=0.02)  # of uniform p: int -2 p ln p = 1/2


def answers(n: int, seed: int = 0) -> tuple[list[float], list[int], list[bool]]:
    """Answers that are right with 1 / (1 + exp(-(1 + 0.5 s + 0.1 t)))."""
    rng = np.random.default_rng(seed)
    s, t = -rng.exponential(6.0, n), rng.integers(1, 30, n)
    p = 1 / (1 + np.exp(-(1 + 0.5 * s + 0.1 * t)))
    return s.tolist(), t.tolist(), (rng.random(n) < p).tolist()


def test_a_fit_finds_the_weights_that_made_the_answers() -> None:
    found = fit(*answers(20_000), origin={"data": "made"})
    assert found.intercept == pytest.approx(1.0, abs=0.1)
    assert found.log_probability == pytest.approx(0.5, abs=0.03)
    assert found.length == pytest.approx(0.1, abs=0.01)
    assert found.origin == {"data": "made"}


def test_a_fit_of_two_scores_gives_platts_targets() -> None:
    """With two scores the two weights meet both groups' mean target: a solution in closed form."""
    logs = [-1.0] * 20 + [-3.0] * 20
    right = [True] * 15 + [False] * 5 + [True] * 4 + [False] * 16
    found = fit(logs, [1] * 40, right, use_length=False)
    high, low = 20 / 21, 1 / 23  # of 19 right and 21 wrong answers
    assert found.confidence(-1.0, 1) == pytest.approx((15 * high + 5 * low) / 20, abs=1e-6)
    assert found.confidence(-3.0, 1) == pytest.approx((4 * high + 16 * low) / 20, abs=1e-6)
    assert found.length == 0.0


def test_answers_that_can_be_told_apart_give_a_finite_fit() -> None:
    found = fit([-1.0] * 10 + [-9.0] * 10, [5] * 20, [True] * 10 + [False] * 10, use_length=False)
    assert found.confidence(-1.0, 5) == pytest.approx(11 / 12, abs=1e-5)
    assert found.confidence(-9.0, 5) == pytest.approx(1 / 12, abs=1e-5)


def test_cross_validation_calibrates_answers_that_it_did_not_see() -> None:
    logs, lengths, right = answers(3000, seed=2)
    before = measure([math.exp(s) for s in logs], right)
    after = measure(cross_validate(logs, lengths, right), right)
    assert before["ece_equal_mass"] > 0.1
    assert after["ece_equal_mass"] < 0.03
    assert after["brier"] < before["brier"]


def test_cross_validation_leaves_an_answer_out_of_its_own_fit() -> None:
    logs, lengths, right = answers(40, seed=3)
    before = cross_validate(logs, lengths, right, folds=40)
    for index in (0, 17):
        others = [i for i in range(40) if i != index]
        alone = fit(
            [logs[i] for i in others], [lengths[i] for i in others], [right[i] for i in others]
        )
        assert before[index] == pytest.approx(alone.confidence(logs[index], lengths[index]))


@pytest.mark.parametrize(
    ("logs", "right", "message"),
    [
        ([-1.0] * 19, [True] * 10 + [False] * 9, "at least 20"),
        ([-1.0] * 30, [True] * 30, "30 right and 0 wrong"),
        ([-1.0] * 15 + [-5.0] * 15, [False] * 15 + [True] * 15, "not more often right"),
    ],
)
def test_fits_that_mean_nothing(logs: list[float], right: list[bool], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        fit(logs, [3] * len(logs), right)


def test_confidence_is_a_probability_for_every_score() -> None:
    found = Calibration(1.0, 0.5, 0.1, {})
    assert found.of_score(math.exp(-2.0), 10) == pytest.approx(1 / (1 + math.exp(-1.0)))
    assert found.confidence(-1e6, 1) == 0.0
    assert Calibration(800.0, 1.0, 0.0, {}).confidence(0.0, 1) == 1.0
    assert found.of_score(0.0, 3) == pytest.approx(0.0, abs=1e-100)
    assert log_probabilities([1.0, 0.0]) == [0.0, math.log(1e-300)]


def test_it_travels_in_the_details() -> None:
    made = Calibration(1.0, 0.5, 0.1, {"n": 196})
    assert Calibration.from_details({"calibration": made.to_dict()}) == made
    assert Calibration.from_details({"training": {}}) is None


@pytest.mark.parametrize(
    "entry", [{}, [], {"intercept": 1, "log_probability": "x", "length": 0}, "text",
              {"intercept": float("nan"), "log_probability": 1, "length": 0}]
)  # fmt: skip
def test_details_that_cannot_be_read(entry: Any) -> None:
    with pytest.raises(CorruptBundle, match="hmer-bench calibrate --write"):
        Calibration.from_details({"calibration": entry})
