"""hmer.score: distances, intervals and the rules about predictions that cannot be used."""

from __future__ import annotations

import random

import pytest

from hmer.score import (
    by_length,
    by_structure,
    compare,
    edit_distance,
    structures,
    summarise,
    wilson,
)


def words(text: str) -> list[str]:
    """Tokens of a space-separated label."""
    return text.split()


def recursive_distance(a: list[str], b: list[str]) -> int:
    """The definition, without dynamic programming."""
    if not a or not b:
        return len(a) + len(b)
    return min(
        recursive_distance(a[1:], b) + 1,
        recursive_distance(a, b[1:]) + 1,
        recursive_distance(a[1:], b[1:]) + (a[0] != b[0]),
    )


def test_edit_distance_equals_its_definition() -> None:
    chance = random.Random(5)
    for _ in range(60):
        a = chance.choices("xyz", k=chance.randrange(6))
        b = chance.choices("xyz", k=chance.randrange(6))
        assert edit_distance(a, b) == recursive_distance(a, b)


def test_edit_distance_counts_tokens_not_characters() -> None:
    assert edit_distance(["\\alpha", "+"], ["\\beta", "+"]) == 1


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Newcombe (1998), Statistics in Medicine 17:857-872, table I, method 3.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(
    successes: int, n: int, low: float, high: float
) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_of_nothing_is_everything() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def test_canonical_forms_are_compared() -> None:
    truth = words(r"\sum \limits _ { i } ^ { n } x ^ { 2 }")
    scored = compare("a", truth, words(r"\sum ^ n _ i x ^ 2"))
    assert scored.correct
    assert "\\limits" not in scored.truth


def test_a_prediction_that_cannot_be_parsed_is_wrong_in_every_column() -> None:
    scored = compare("a", words("x ^ { 2 }"), words("x ^ { 2"))
    assert scored.distance == 1
    assert not scored.within(1)
    assert not scored.within(3)
    assert summarise([scored]).unparsable == 1


def test_a_missing_prediction_loses_all_its_tokens() -> None:
    summary = summarise([compare("a", ["x", "+", "y"], None)])
    assert summary.token_error_rate == 1.0
    assert (summary.missing, summary.unparsable, summary.exprate) == (1, 0, 0.0)


def test_summary_counts_each_column() -> None:
    truth = list("abcdef")
    predictions = [truth, list("abcdex"), list("abcdxx"), list("abcxxx"), list("abxxxx")]
    summary = summarise(compare(str(i), truth, p) for i, p in enumerate(predictions))
    assert [summary.rate(errors) for errors in (0, 1, 2, 3)] == [0.2, 0.4, 0.6, 0.8]
    assert summary.token_error_rate == pytest.approx(10 / 30)
    document = summary.to_dict()
    assert document["n"] == 5
    assert document["correct"] == 1
    assert document["exprate_95"] == list(wilson(1, 5))


def test_an_empty_set_has_no_division_by_zero() -> None:
    summary = summarise([])
    assert (summary.exprate, summary.token_error_rate) == (0.0, 0.0)


def test_length_buckets_hold_every_expression_once() -> None:
    scored = [compare(str(n), ["x"] * n, ["x"] * n) for n in (1, 5, 6, 10, 11, 20, 21, 40, 41, 99)]
    buckets = by_length(scored)
    assert {name: summary.n for name, summary in buckets.items()} == {
        "1-5": 2,
        "6-10": 2,
        "11-20": 2,
        "21-40": 2,
        ">=41": 2,
    }


def test_structure_buckets() -> None:
    assert structures(words(r"\frac { a } { \sqrt { x ^ { 2 } } }")) == (
        "fraction",
        "root",
        "scripts",
    )
    assert structures(["x", "+", "y"]) == ("plain",)
    scored = [
        compare("a", ["x", "+", "y"], ["x", "+", "y"]),
        compare("b", words(r"\frac { a } { b _ { 1 } }"), ["a"]),
    ]
    buckets = by_structure(scored)
    assert list(buckets) == ["plain", "scripts", "fraction"]
    assert buckets["plain"].exprate == 1.0
    assert buckets["fraction"].exprate == 0.0
