"""hmer.alignment and hmer.confusions: which tokens are wrong, counted by hand."""

from __future__ import annotations

import random

import pytest

from hmer.alignment import Edit, align, edit_distance
from hmer.confusions import (
    ADDED,
    CASE,
    LOOK_ALIKE,
    MISSED,
    MISSING,
    OTHER,
    STRUCTURE,
    UNPARSABLE,
    Confusion,
    confusions,
    count_faults,
    faults_of,
    kind_of,
)
from hmer.score import Scored, compare


def made(truth: str, prediction: str | None) -> Scored:
    return compare(truth, truth.split(), None if prediction is None else prediction.split())


def columns(truth: str, prediction: str) -> list[tuple[str | None, str | None]]:
    return [(e.truth, e.prediction) for e in align(truth.split(), prediction.split())]


def test_alignments_by_hand() -> None:
    assert columns("a + b", "a - b") == [("a", "a"), ("+", "-"), ("b", "b")]
    assert columns("a + b", "a b") == [("a", "a"), ("+", None), ("b", "b")]
    assert columns("a b", "a + b") == [("a", "a"), (None, "+"), ("b", "b")]
    assert columns("", "a b") == [(None, "a"), (None, "b")]
    assert columns("a b", "") == [("a", None), ("b", None)]
    assert columns("", "") == []
    # kitten -> sitting: two substitutions and an insertion
    assert [e.operation for e in align("kitten", "sitting")] == [
        *("substitution", "match", "match", "match", "substitution", "match", "insertion")
    ]


def test_an_alignment_holds_both_sides_and_has_the_fewest_edits() -> None:
    chance = random.Random(3)
    for _ in range(300):
        a = chance.choices("xyz", k=chance.randrange(9))
        b = chance.choices("xyz", k=chance.randrange(9))
        edits = align(a, b)
        assert [e.truth for e in edits if e.truth is not None] == a
        assert [e.prediction for e in edits if e.prediction is not None] == b
        assert sum(not e.is_match for e in edits) == edit_distance(a, b)


@pytest.mark.parametrize(
    ("truth", "prediction", "kind"),
    [
        ("x", "X", CASE),
        (r"\Delta", r"\delta", CASE),
        ("z", "2", LOOK_ALIKE),
        (r"\times", "x", LOOK_ALIKE),
        (r"\sum", "3", OTHER),
        ("_", "^", STRUCTURE),
        (r"\frac", "-", STRUCTURE),
        ("}", None, STRUCTURE),
        (None, r"\sqrt", STRUCTURE),
        ("[", "1", LOOK_ALIKE),
        ("[", "7", OTHER),
        ("[", None, STRUCTURE),
        ("7", None, MISSED),
        (None, "7", ADDED),
    ],
)
def test_kinds(truth: str | None, prediction: str | None, kind: str) -> None:
    assert kind_of(Edit(truth, prediction)) == kind


def test_confusions_are_counted_over_expressions() -> None:
    scored = [
        made("x + x", "X + X"),  # x for X twice in one expression
        made("x = 1", "X = 1"),
        made("y = 1", "y ="),
        made("x", None),  # no prediction: no confusion, and its x is not counted
        made("a", "a"),
    ]
    assert confusions(scored) == [
        Confusion("x", "X", "substitution", CASE, count=3, expressions=2, of=3),
        Confusion("1", None, "deletion", MISSED, count=1, expressions=1, of=2),
    ]
    (added,) = confusions([made("a", "a b")])
    assert (added.truth, added.prediction, added.operation, added.of) == (None, "b", "insertion", 0)


def test_faults_of_an_expression() -> None:
    assert faults_of(made("x", "x")) == ()
    assert faults_of(made("x", None)) == (MISSING,)
    assert faults_of(made("x ^ { 2 }", "x ^ { 2")) == (UNPARSABLE, STRUCTURE)
    assert faults_of(made("x + y", "X + y z")) == (ADDED, CASE)
    assert count_faults([made("x", "X"), made("x + y", "X + y z"), made("a", "a")]) == {
        ADDED: {"any": 1, "only": 0},
        CASE: {"any": 2, "only": 1},
    }
