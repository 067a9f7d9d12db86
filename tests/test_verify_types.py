"""Comparing answers: what counts as a mismatch, and what a precision may cost."""

from __future__ import annotations

import pytest

from export.options import PRECISIONS
from export.precision import PRECISIONS as KNOWN
from export.verify_cli import RUNNERS
from export.verify_report import parity_table
from export.verify_runners import RUNNERS as OPENED
from export.verify_types import (
    QUESTIONS,
    TOLERANCES,
    Answer,
    Mismatch,
    Parity,
    compare_answers,
    refuse_mismatches,
)
from hmer.errors import ParityError
from hmer.vocab import EOS_ID
from tests import tiny

X, Y = tiny.VOCABULARY.encode(["x", "y"])


def compare(ours: Answer, theirs: Answer, **options: object) -> Parity:
    return compare_answers(
        {"a": ours},
        {"a": theirs},
        tiny.VOCABULARY,
        runtime="test",
        **options,  # type: ignore[arg-type]
    )


def test_equal_answers_have_no_mismatch() -> None:
    result = compare(Answer((X, EOS_ID), (-0.1, -0.2)), Answer((X, EOS_ID), (-0.1004, -0.2)))
    assert result.mismatches == ()
    assert result.tokens == 2
    assert result.score_difference == pytest.approx(4e-4)
    refuse_mismatches([result])


def test_only_what_comes_before_a_difference_is_scored() -> None:
    ours = Answer((X, X, EOS_ID), (-0.1, -0.2, -0.3))
    theirs = Answer((X, Y, EOS_ID), (-0.1, -9.0, -9.0))
    result = compare(ours, theirs)
    (mismatch,) = result.mismatches
    assert (mismatch.step, mismatch.expected, mismatch.found) == (1, "'x'", "'y'")
    assert result.score_difference == 0.0


@pytest.mark.parametrize("longer", ["ours", "theirs"])
def test_an_answer_that_goes_on_is_a_mismatch(longer: str) -> None:
    long, short = Answer((X, Y), (-0.1, -0.2)), Answer((X,), (-0.1,))
    result = compare(long, short) if longer == "ours" else compare(short, long)
    (mismatch,) = result.mismatches
    assert mismatch.step == 1
    assert "the end" in (mismatch.expected, mismatch.found)
    assert mismatch.margin is None
    assert len(result.refused) == 1


def test_a_probability_beyond_the_tolerance_is_a_mismatch_and_no_tie() -> None:
    result = compare(Answer((X,), (-0.1,)), Answer((X,), (-0.2,)))
    assert "x with log-probability -0.20000" in str(result.mismatches[0])
    assert result.score_difference == pytest.approx(0.1)
    assert result.refused
    assert compare(Answer((X,), (-0.1,)), Answer((X,), (-0.15,)), precision="fp16").mismatches == ()
    assert compare(Answer((X,), (-0.1,)), Answer((X,), (float("nan"),))).refused


def test_a_token_outside_the_vocabulary_is_shown_as_a_number() -> None:
    (mismatch,) = compare(Answer((X,), (0.0,)), Answer((999,), (0.0,))).mismatches
    assert mismatch.found == "the unknown token 999"


@pytest.mark.parametrize(
    ("images", "differing", "passes"), [(100, 5, True), (100, 6, False), (10, 1, True)]
)
def test_other_precisions_may_change_a_share(images: int, differing: int, passes: bool) -> None:
    mismatches = tuple(Mismatch(f"i{n}", 0, "a", "b", margin=9.0) for n in range(differing))
    result = Parity("openvino", images, 100, 0.1, mismatches, precision="bf16", allowed=0.05)
    assert (not result.refused) == passes
    if not passes:
        with pytest.raises(ParityError, match="on 6 of 100 images, and 5% may differ: i0, step 0"):
            refuse_mismatches([result])


def test_in_fp32_no_share_is_allowed_whatever_is_asked() -> None:
    ours, theirs = Answer((X,), (-0.1,)), Answer((Y,), (-0.1,))
    assert compare(ours, theirs, allowed=1.0).refused
    assert not compare(ours, theirs, allowed=1.0, precision="int8").refused
    assert compare(ours, theirs, margin=lambda *_: 0.001).ties == 1
    assert not compare(ours, theirs, margin=lambda *_: 0.001).refused
    assert compare(ours, theirs, margin=lambda *_: 0.003).refused


def test_tolerances_grow_as_precision_falls() -> None:
    order = [TOLERANCES[name] for name in ("fp32", "fp16", "bf16", "int8")]
    assert [t.score for t in order] == sorted(t.score for t in order)
    assert [t.share for t in order] == sorted(t.share for t in order)
    assert order[0].share == 0.0


def test_what_is_spelled_out_for_the_command_line_is_what_there_is() -> None:
    """The command line must not import torch to know them."""
    assert PRECISIONS == KNOWN == tuple(TOLERANCES)
    assert RUNNERS == OPENED


def test_the_table_shows_every_check_and_the_first_mismatches() -> None:
    mismatches = tuple(Mismatch(f"i{n}", 3, "'a'", "'b'", 0.001, True) for n in range(12))
    results = [
        Parity("onnxruntime", 40, 600, 1e-5, mismatches),
        Parity("pytorch", 40, 600, 2e-5, (), check="padding"),
        Parity("openvino", 2, 9, 0.3, mismatches[:2], precision="int8", allowed=0.1),
    ]
    text = parity_table(results)
    lines = text.splitlines()
    assert lines[2].split() == [
        *("onnxruntime", "fp32", "answers", "40", "600", "12", "12", "30.00", "0", "1.0e-05", "ok")
    ]
    assert lines[4].split()[-1] == "FAILED"
    assert "onnxruntime answers: i0, step 3: 'a' became 'b' (margin 0.001, a tie)" in lines
    assert "and 2 more: see --json." in lines


def test_every_check_has_its_wording() -> None:
    for check, question in QUESTIONS.items():
        result = Parity("x", 3, 9, 1.0, (Mismatch("i", 0, "a", "b"),), check=check)
        with pytest.raises(ParityError, match=f"in x {question} on 1 of 3 images"):
            refuse_mismatches([result])
