"""The guards: what they let through parses, and no true label is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hmer.guards import Guards, State
from hmer.latex import LatexError, canonical, tokenize
from hmer.latex_parser import parse
from hmer.vocab import EOS_ID, PAD_ID, SOS_ID, Vocabulary

VOCABULARY = Vocabulary(
    [
        "{",
        "}",
        "[",
        "]",
        "_",
        "^",
        "'",
        "\\frac",
        "\\sqrt",
        "\\limits",
        "(",
        ")",
        "x",
        "1",
        "+",
        "\\prime",
    ]
)
GUARDS = Guards(VOCABULARY)


def refused(latex: str, guards: Guards = GUARDS, vocabulary: Vocabulary = VOCABULARY) -> int:
    """The place of the first token (<eos> at the end) that the guards refuse; -1 for none."""
    state: State = guards.start
    for place, token in enumerate([*vocabulary.encode(latex.split()), EOS_ID]):
        following = guards.follow(state, token)
        if following is None:
            return place
        state = following
    return -1


@pytest.mark.parametrize(
    "latex",
    [
        "x",
        "x ^ { 1 } + 1",
        "x _ { 1 } ^ { x ^ { 1 } }",
        "\\frac { 1 } { \\sqrt { x } }",
        "\\sqrt [ 1 + x ] { x } ]",
        "\\sqrt { [ x ] }",
        "[ x )",
        "x ^ 1 + \\frac 1 x",
        "\\sqrt \\frac 1 x",
        "\\sqrt [ \\sqrt [ 1 ] x ] { 1 }",
        "{ x ^ { 1 } } ^ { 1 }",
        "{ } ^ { 1 } x",
        "x ' ^ { 1 }",
        "x \\limits _ { 1 } ^ \\limits { x }",
        "^ { 1 } x _ 1",
    ],
)
def test_formulas_are_let_through(latex: str) -> None:
    assert refused(latex) == -1
    parse(latex.split())


@pytest.mark.parametrize(
    ("latex", "place"),
    [
        ("", 0),
        ("}", 0),
        ("x }", 1),
        ("{ x", 2),
        ("x ^", 2),
        ("x ^ }", 2),
        ("x ^ _ 1", 2),
        ("x ^ { }", 3),
        ("x _ 1 _ 1", 3),
        ("x ^ 1 '", 3),
        ("x ^ { 1 } _ { 1 } ^ { 1 }", 9),
        ("\\frac { 1 }", 4),
        ("\\frac { 1 } }", 4),
        ("\\sqrt [ ] x", 2),
        ("\\sqrt [ x", 3),
        ("\\sqrt [ x } 1", 3),
        ("\\sqrt [ 1 ] }", 4),
        ("{ x ] +", 4),
        ("x _ 1 \\limits _ 1", 4),
    ],
)
def test_what_is_no_formula_is_refused_where_it_goes_wrong(latex: str, place: int) -> None:
    assert refused(latex) == place


def test_special_and_unknown_ids_are_refused() -> None:
    for index in (PAD_ID, SOS_ID, len(VOCABULARY), 9999):
        assert GUARDS.follow(GUARDS.start, index) is None


def test_whatever_the_guards_let_through_parses() -> None:
    """Random walks within the guards end in LaTeX that the parser takes."""
    rng = np.random.default_rng(0)
    finished = refusals = 0
    for _ in range(3000):
        state: State = GUARDS.start
        ids: list[int] = []
        for _ in range(40):
            token = int(rng.integers(2, len(VOCABULARY)))
            following = GUARDS.follow(state, token)
            refusals += following is None
            if following is None:
                continue
            if token == EOS_ID:
                parse(VOCABULARY.decode(ids))
                finished += 1
                break
            state = following
            ids.append(token)
    assert finished > 500
    assert refusals > 5000


def test_the_guards_agree_with_the_parser() -> None:
    """Random sequences: no canonical form is refused, and nothing that cannot be parsed passes."""
    rng = np.random.default_rng(1)
    accepted = 0
    for _ in range(20000):
        tokens = [
            VOCABULARY.tokens[i] for i in rng.integers(3, len(VOCABULARY), rng.integers(1, 7))
        ]
        passed = refused(" ".join(tokens)) == -1
        try:
            label = canonical(tokens)
        except LatexError:
            label = None
        if label:
            assert refused(" ".join(label)) == -1, tokens
            accepted += 1
        if label is None:
            assert not passed, tokens
    assert accepted > 1000


@pytest.mark.parametrize(
    ("piece", "most"),
    [("1", 16), ("1 +", 10), ("x ^ {", 10), ("\\sqrt { x +", 10), ("( x ) ^ { 1 } +", 6)],
)
def test_repetition_ends_where_no_formula_goes(piece: str, most: int) -> None:
    ids = VOCABULARY.encode(piece.split())
    before = VOCABULARY.encode(["x", "+"])
    assert not GUARDS.loops(before + ids * most)
    assert GUARDS.loops(before + ids * (most + 1))
    assert GUARDS.loops(tuple(before + ids * (most + 1)))
    assert not GUARDS.loops([*before, *ids * (most + 1), before[0], before[1]])


def test_what_repeats_in_true_formulas_is_no_loop() -> None:
    for latex in ("1 0 0 0 0 0 0 0 0 0 0 0 0", "1 + " * 9 + "1", "\\sqrt { 6 + " * 5):
        vocabulary = Vocabulary(sorted(set(latex.split())))
        assert not Guards(vocabulary).loops(vocabulary.encode(latex.split()))


@pytest.mark.parametrize("pack", ["train.jsonl.gz", "train_extra.jsonl.gz"])
def test_no_training_label_is_refused(crohme: Path, pack: str) -> None:
    from training.data import read_pack

    labels = {example.tokens for example in read_pack(crohme / pack)}
    vocabulary = Vocabulary.from_labels(labels)
    guards = Guards(vocabulary)
    assert len(labels) > 1000
    for label in labels:
        assert refused(" ".join(label), guards, vocabulary) == -1, " ".join(label)
        ids = vocabulary.encode(label)
        loops = [end for end in range(len(ids) + 1) if guards.loops(ids[:end])]
        assert not loops, " ".join(label)


def test_samples_are_formulas() -> None:
    tokens = tokenize(r"\sum_{n=1}^{\infty}\frac{1}{n^2}=\frac{\pi^2}{6}")
    vocabulary = Vocabulary(sorted(set(canonical(tokens))))
    assert refused(" ".join(canonical(tokens)), Guards(vocabulary), vocabulary) == -1
