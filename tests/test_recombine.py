"""Recombination keeps ink, segmentation and label in agreement."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest

from hmer.ink import Stroke
from hmer.latex import is_valid
from training.cutting import find_cuts, join, matches
from training.data import Example, read_pack
from training.recombine import KINDS, Recombiner, RecombineSettings, fit, recombination

OFF = RecombineSettings(cross=0, rename=0, swap=0, scale=0, shift=0)


def box(x: float, y: float = 0.0, width: float = 100.0, height: float = 100.0) -> Stroke:
    """A stroke along the diagonal of a box."""
    return np.array([[x, y], [x + width, y + height]], np.float32)


def row(name: str, label: str, raised: frozenset[int] = frozenset()) -> Example:
    """Symbols side by side, one stroke each; structure tokens draw nothing."""
    strokes, segments = [], []
    tokens = tuple(label.split())
    for token in tokens:
        if token in {"{", "}", "^", "_"}:
            continue
        place = len(strokes)
        strokes.append(box(150.0 * place, -60.0 if place in raised else 0.0))
        segments.append((token, (place,)))
    return Example(name, name, tokens, strokes, tuple(segments))


def bounds(strokes: Sequence[Stroke]) -> tuple[float, float, float, float]:
    points = np.concatenate(strokes)
    return (*points.min(axis=0).tolist(), *points.max(axis=0).tolist())


SUM = row("sum", "a + b = c")
POWER = row("power", "x ^ { 2 } - 1 = y", frozenset({1}))


def test_cuts_lie_at_operators_of_the_outermost_row() -> None:
    assert [SUM.tokens[cut.position] for cut in find_cuts(SUM)] == ["+", "="]
    inside = row("inside", "f ( x + y ) = z")
    assert [inside.tokens[cut.position] for cut in find_cuts(inside)] == ["="]
    script = row("script", "x ^ { a + b } = z")
    assert [script.tokens[cut.position] for cut in find_cuts(script)] == ["="]


def test_no_cut_where_ink_and_label_disagree() -> None:
    swapped = Example("s", "w", ("b", "+", "a"), SUM.strokes[:3], SUM.segments[:3])
    assert find_cuts(swapped) == []  # a stands left of +, the label says b
    over = [box(0, width=400), box(150, 150), box(300)]  # what is before + reaches beyond it
    assert find_cuts(Example("o", "w", ("a", "+", "b"), over, SUM.segments[:3])) == []


def test_joined_halves_share_the_operator_and_agree() -> None:
    first, second = find_cuts(SUM)[0], find_cuts(POWER)[0]
    joined = join(SUM, first, POWER, second)
    assert joined.tokens == ("a", "+", "1", "=", "y")
    assert matches(joined)
    # '+' of the one lies on '-' of the other, so what followed '-' follows '+' as closely.
    gap = joined.strokes[2][0, 0] - joined.strokes[1][1, 0]
    assert gap == pytest.approx(POWER.strokes[3][0, 0] - POWER.strokes[2][1, 0])
    assert joined.strokes[2][0, 1] == pytest.approx(0.0)


def test_one_half_alone() -> None:
    settings = RecombineSettings(cross=1, alone=1, rename=0, swap=0, scale=0, shift=0)
    labels = set()
    recombiner = Recombiner([SUM], settings)
    for seed in range(20):
        drawn = recombiner.draw(SUM, np.random.default_rng(seed))
        assert matches(drawn)
        labels.add(" ".join(drawn.tokens))
    assert labels == {"a", "b = c", "a + b", "c"}


def test_all_occurrences_are_renamed_within_a_kind() -> None:
    squares = row("squares", "a + a = c")
    settings = RecombineSettings(cross=0, rename=1, swap=0, scale=0, shift=0)
    recombiner = Recombiner([squares, POWER, row("big", "B")], settings)
    seen = set()
    for seed in range(80):
        drawn = recombiner.draw(squares, np.random.default_rng(seed))
        assert matches(drawn)
        seen.add(drawn.tokens)
        for before, after in zip(squares.tokens, drawn.tokens, strict=True):
            assert before == after or any({before, after} <= set(kind) for kind in KINDS)
    assert ("x", "+", "x", "=", "c") in seen
    assert not any("B" in tokens for tokens in seen)


def test_swapped_ink_fills_the_same_place() -> None:
    other = Example("other", "w", ("a",), [box(0, 0, 300, 330)], (("a", (0,)),))
    settings = RecombineSettings(cross=0, rename=0, swap=1, scale=0, shift=0)
    recombiner = Recombiner([SUM, other], settings)
    changed = 0
    for seed in range(10):
        drawn = recombiner.draw(SUM, np.random.default_rng(seed))
        assert drawn.tokens == SUM.tokens
        assert matches(drawn)
        np.testing.assert_allclose(bounds(drawn.strokes), bounds(SUM.strokes), atol=12)
        changed += not np.allclose(drawn.strokes[0], SUM.strokes[0])
    assert changed


def test_ink_of_another_shape_does_not_fit() -> None:
    assert fit([box(0, 0, 30, 100)], [box(500, 500, 100, 100)]) is None
    fitted = fit([box(0, 0, 80, 100)], [box(500, 500, 50, 50)])
    assert fitted is not None
    assert bounds(fitted) == pytest.approx((505, 500, 545, 550))


def test_what_does_not_match_is_left_alone() -> None:
    bare = Example("bare", "w", ("a",), [box(0)])
    wrong = Example("wrong", "w", ("a", "b"), [box(0), box(150)], (("a", (0,)), ("c", (1,))))
    unused = Example("unused", "w", ("a",), [box(0), box(150)], (("a", (0,)),))
    recombiner = Recombiner([SUM, bare, wrong, unused], RecombineSettings(swap=1, scale=1))
    assert recombiner.examples == [SUM]
    for example in (bare, wrong, unused):
        assert recombiner.draw(example, np.random.default_rng(0)) is example


def test_draws_hang_on_the_seed_and_spare_the_original() -> None:
    recombiner = Recombiner([SUM, POWER], RecombineSettings())
    before = [stroke.copy() for stroke in SUM.strokes]
    first = recombiner.draw(SUM, np.random.default_rng(3))
    second = recombiner.draw(SUM, np.random.default_rng(3))
    assert first.tokens == second.tokens
    assert all((a == b).all() for a, b in zip(first.strokes, second.strokes, strict=True))
    assert all((a == b).all() for a, b in zip(SUM.strokes, before, strict=True))


def test_nothing_happens_when_all_is_off() -> None:
    drawn = Recombiner([SUM], OFF).draw(SUM, np.random.default_rng(0))
    assert drawn.tokens == SUM.tokens
    assert all(np.allclose(a, b) for a, b in zip(drawn.strokes, SUM.strokes, strict=True))


def test_real_expressions_stay_consistent(crohme: object) -> None:
    examples = read_pack(crohme / "train.jsonl.gz")[:600]  # type: ignore[operator]
    recombiner = Recombiner(examples, RecombineSettings())
    assert len(recombiner.examples) > 450
    new = 0
    for index, example in enumerate(recombiner.examples):
        drawn = recombiner.draw(example, np.random.default_rng(index))
        assert matches(drawn), (example.name, drawn.tokens)
        assert is_valid(drawn.tokens), (example.name, drawn.tokens)
        new += drawn.tokens != example.tokens
    assert new > 100


def test_it_travels_to_other_processes() -> None:
    make = pickle.loads(pickle.dumps(partial(recombination, RecombineSettings())))
    there = make([SUM, POWER])(SUM, np.random.default_rng(3))
    assert there.tokens == Recombiner([SUM, POWER], RecombineSettings()).draw(
        SUM, np.random.default_rng(3)
    ).tokens  # fmt: skip
