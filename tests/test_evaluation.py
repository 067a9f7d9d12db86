"""hmer.evaluation and hmer.tables: one report as JSON, text and Markdown."""

from __future__ import annotations

import json

import pytest

from hmer.decode_types import SearchOptions
from hmer.evaluation import (
    Answers,
    Conditions,
    describe,
    figures,
    oracle,
    rank_of_truth,
    tables,
)
from hmer.score import Scored, compare, wilson
from hmer.tables import Table


def made(truth: str, prediction: str | None) -> Scored:
    return compare(truth, truth.split(), None if prediction is None else prediction.split())


SCORED = [made("x + y", "x + y"), made("x", "X"), made("a b", "a"), made("7", None)]


def test_figures_hold_everything_and_are_json() -> None:
    answers = Answers(SCORED, [0.9, 0.4, 0.2, None], [0.8, 0.5, 0.3, None])
    found = json.loads(json.dumps(figures(answers)))
    assert (found["n"], found["correct"], found["missing"]) == (4, 1, 1)
    assert found["token_edits"] == {"substitution": 1, "deletion": 1, "insertion": 0}
    assert [(c["truth"], c["prediction"], c["kind"]) for c in found["confusions"]] == [
        ("x", "X", "case")
    ]
    assert [(c["truth"], c["prediction"]) for c in found["omissions"]] == [("b", None)]
    assert found["faults"] == {
        "no prediction": {"any": 1, "only": 1},
        "symbol missed": {"any": 1, "only": 1},
        "case": {"any": 1, "only": 1},
    }
    # the expression without an answer has no score to be judged
    assert found["score_calibration"]["n"] == 3
    assert found["score_calibration"]["brier"] == pytest.approx((0.1**2 + 0.4**2 + 0.2**2) / 3)
    assert found["confidence_calibration"]["mean_confidence"] == pytest.approx(1.6 / 3)


def test_top_bounds_the_lists() -> None:
    found = figures(Answers([made("a b c", "x y z"), made("a", "b")]), top=2)
    assert len(found["confusions"]) == 2
    assert found["token_edits"]["substitution"] == 4


def test_what_is_not_known_is_left_out() -> None:
    found = figures(Answers(SCORED))
    assert not {"oracle", "score_calibration", "confidence_calibration"} & set(found)
    assert figures(Answers(SCORED, [None] * 4)).get("score_calibration") is None


def test_oracle_by_hand() -> None:
    candidates: list[list[tuple[str, ...]]] = [
        [("x", "+", "y")],  # the first is right
        [("X",), ("x",)],  # the second
        [("a",), ("a", "c"), ("a", "{", "b", "}")],  # the third, in another form
        [],
    ]
    assert [rank_of_truth(*pair) for pair in zip(SCORED, candidates, strict=True)] == [
        *(1, 2, 3, None)
    ]
    found = oracle(SCORED, candidates)
    assert {n: part["correct"] for n, part in found.items()} == {"1": 1, "2": 2, "3": 3}
    assert found["2"]["rate"] == 0.5
    assert found["2"]["rate_95"] == list(wilson(2, 4))


def test_the_head_names_what_was_measured() -> None:
    search = SearchOptions(beam=5, n_best=3, length_penalty=0.7)
    head = Conditions("pack", "norm", "strokes", search, 1, "held-out").to_dict(4)
    assert (head["beam"], head["length_penalty"], head["n_best"], head["n"]) == (5, 0.7, 3, 4)
    text = describe(head)
    for words in ("n = 4", "label set norm", "\\limits dropped", "beam 5, length penalty 0.7",
                  "ensemble size 1", "token edit distance", "selected on: held-out"):  # fmt: skip
        assert words in text
    greedy = Conditions("pack", search=SearchOptions()).to_dict(4)
    assert (greedy["decoding"], greedy["length_penalty"]) == ("greedy", None)
    unknown = describe(Conditions("file", ensemble_size=None).to_dict(4))
    assert "decoding not told, ensemble size not told" in unknown


def test_tables_are_generated_from_the_figures() -> None:
    answers = Answers(SCORED, [0.9, 0.4, 0.2, None], candidates=[[("x",)], [("x",)], [], []])
    made_tables = tables(figures(answers))
    text = "\n".join(table.text() for table in made_tables)
    assert "all  4      25.00  4.6-69.9  75.00  75.00  75.00" in text
    for title in ("By length", "By structure", "Oracle", "wrong answers", "Tokens taken for others",
                  "Tokens left out or added (1 and 0 in all)", "Calibration (10 bins"):  # fmt: skip
        assert title in text
    markdown = "\n".join(table.markdown() for table in made_tables)
    assert "| all | 4 | 25.00 | 4.6-69.9 | 75.00 |" in markdown
    assert "| `x` | `X` | 1 | 2 | 1 | case |" in markdown
    assert "| `b` | (nothing) | 1 |" in markdown


def test_a_table_in_both_forms() -> None:
    table = Table("Signs", ("sign", "n"), (("|", "10"), ("x", "9")), code=True)
    assert table.text().splitlines() == ["Signs", "sign   n", "----  --", "|     10", "x      9"]
    assert table.markdown().splitlines() == [
        *("**Signs**", "", "| sign | n |", "| --- | ---: |", "| `\\|` | 10 |", "| `x` | 9 |")
    ]
