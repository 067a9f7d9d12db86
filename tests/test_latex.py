"""hmer.latex: tokens, the canonical form, validity; on CROHME's labels where they are there."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from hmer.errors import InputError
from hmer.latex import (
    LatexError,
    canonical,
    canonical_or_same,
    is_valid,
    to_latex,
    tokenize,
)
from hmer.latex_parser import MAX_DEPTH, Command, Group, Script, Symbol, parse

CROHME = Path(os.environ.get("HMER_CROHME", Path(__file__).parents[2] / "shared" / "crohme"))


def canon(latex: str) -> str:
    return " ".join(canonical(tokenize(latex)))


@pytest.mark.parametrize(
    ("latex", "tokens"),
    [
        (r"$x^2$", "x ^ 2"),
        (r"\frac{a+b}{12}", r"\frac { a + b } { 1 2 }"),
        (r"\sin\theta+\alpha x", r"\sin \theta + \alpha x"),
        (r"\left( a \right) \left. b \right|", "( a ) b |"),
        (r"a \to b \le c \ne d \dots", r"a \rightarrow b \leq c \neq d \ldots"),
        (r"\{ x \} \lbrack 1 \rbrack", r"\{ x \} [ 1 ]"),
        (r"\mathrm{d}x \, \quad \mbox { e }", "{ d } x { e }"),
        (r"\Bigg( \int\limits_0^1", r"( \int \limits _ 0 ^ 1"),
        (r"f'(x)", "f ' ( x )"),
        ("3\t.\n5", "3 . 5"),
        ("", ""),
    ],
)
def test_tokenize(latex: str, tokens: str) -> None:
    assert tokenize(latex) == tokens.split()


@pytest.mark.parametrize(
    ("latex", "expected"),
    [
        ("x^2_1", "x _ { 1 } ^ { 2 }"),
        (r"\frac12", r"\frac { 1 } { 2 }"),
        (r"\frac 1 {a + b}", r"\frac { 1 } { a + b }"),
        (r"\sqrt x + \sqrt[3]y", r"\sqrt { x } + \sqrt [ 3 ] { y }"),
        (r"\sum\limits_{i=1}^n i", r"\sum _ { i = 1 } ^ { n } i"),
        (r"e^\frac{1}{2}", r"e ^ { \frac { 1 } { 2 } }"),
        ("{(a)}^{{2}} {+} {{b}}", "( a ) ^ { 2 } + b"),
        ("{x_1}^2", "x _ { 1 } ^ { 2 }"),
        ("{x^2}^3", "{ x ^ { 2 } } ^ { 3 }"),
        ("f'", r"f ^ { \prime }"),
        ("f''(x)", r"f ^ { \prime \prime } ( x )"),
        ("f'^2", r"f ^ { \prime 2 }"),
        ("{y'}^2", r"y ^ { \prime 2 }"),
        ("f^{'}", r"f ^ { \prime }"),
        (r"f^{^{\prime}}", r"f ^ { \prime }"),
        ("a_{}b^{}", "a b"),
        ("^2 a {}^3 b", "^ { 2 } a { } ^ { 3 } b"),
        (r"\sqrt[{[a]}]b", r"\sqrt [ { [ a ] } ] { b }"),
        (r"\hat{ab}", r"\hat { a b }"),
    ],
)
def test_canonical(latex: str, expected: str) -> None:
    assert canon(latex) == expected
    assert canonical(expected.split()) == expected.split()


@pytest.mark.parametrize(
    ("tokens", "problem"),
    [
        ("{ a", "never closed by '}'"),
        ("a }", "never opened"),
        (r"\frac { a }", "ends too early: an argument is missing"),
        (r"\frac { } { a }", "the argument is empty"),
        (r"\sqrt [ 3 { a }", "never closed by ']'"),
        (r"\sqrt [ ] { a }", "index of the root is empty"),
        ("x ^ 2 ^ 3", "has a superscript already"),
        ("x _ 2 _ 3", "has a subscript already"),
        ("x ^ 2 '", "has a superscript already"),
        ("x ^", "an argument is missing"),
        ("x ^ _ 2", "a symbol or a group was expected"),
        (r"\begin { array }", "not supported"),
        ("{ " * 5000, "nested more than"),
        (r"\sqrt " * 5000, "nested more than"),
    ],
)
def test_broken_latex_is_a_clear_error(tokens: str, problem: str) -> None:
    with pytest.raises(LatexError, match=r"^The LaTeX .*") as caught:
        canonical(tokens.split())
    assert problem in str(caught.value)
    assert isinstance(caught.value, InputError)
    assert caught.value.to_dict()["code"] == "bad_latex"
    assert not is_valid(tokens.split())
    assert canonical_or_same(tokens.split()) == tokens.split()


def test_an_error_points_at_the_token() -> None:
    with pytest.raises(LatexError, match=r"at token 4, .\^. \(in .x \^ 2 \^ 3.\)"):
        canonical(["x", "^", "2", "^", "3"])


def test_validity_of_good_and_empty_formulas() -> None:
    assert is_valid(tokenize(r"\sqrt[3]{x^2_1}"))
    assert not is_valid([])
    assert is_valid(["{"] * (MAX_DEPTH - 1) + ["x"] + ["}"] * (MAX_DEPTH - 1))


def test_latex_is_compact_and_keeps_commands_apart() -> None:
    assert to_latex([r"2", r"\pi", r"r", r"\leq", r"\sin", r"\theta"]) == r"2\pi r\leq\sin\theta"
    assert (
        to_latex([r"\{", r"a", r"\}", r"\frac", r"{", r"1", r"}", r"{", r"b", r"}"])
        == r"\{a\}\frac{1}{b}"
    )
    assert to_latex([]) == ""


def test_tree() -> None:
    assert parse(tokenize(r"\frac{a}{2}_i \sqrt[3]x {y^2}^2")) == (
        Script(Command("\\frac", ((Symbol("a"),), (Symbol("2"),))), (Symbol("i"),), None),
        Command("\\sqrt", ((Symbol("x"),),), (Symbol("3"),)),
        Script(Group((Script(Symbol("y"), None, (Symbol("2"),)),)), None, (Symbol("2"),)),
    )


def test_canonical_is_idempotent_and_keeps_the_tree_on_random_tokens() -> None:
    generator = random.Random(0)
    alphabet = [
        "{",
        "}",
        "{",
        "}",
        "_",
        "^",
        "'",
        "\\prime",
        "\\frac",
        "\\sqrt",
        "[",
        "]",
        "x",
    ]
    parsable = 0
    for _ in range(20_000):
        tokens = generator.choices(alphabet, k=generator.randint(1, 10))
        if canonical_or_same(tokens) != tokens:
            parsable += 1
            once = canonical(tokens)
            assert canonical(once) == once
            assert parse(once) == parse(tokens)
    assert parsable > 500


def _labels(split: str) -> Iterator[dict[str, str]]:
    path = CROHME / f"{split}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"CROHME is not there: {path} (set HMER_CROHME)")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            # The strokes are most of a line and stand last: labels alone are quick to read.
            yield json.loads(line.partition(',"segs":')[0] + "}")


@pytest.mark.parametrize("split", ["train", "train_extra", "test_2014", "test_2016"])
def test_crohme_labels(split: str) -> None:
    """Canonical labels of the data, but for ``^ { ^ { \\prime } }``, an accident of 14 rows."""
    accidents = 0
    for row in _labels(split):
        label = row["norm"].split()
        if "^ { ^ {" in row["norm"]:
            accidents += 1
            label = row["norm"].replace(r"^ { ^ { \prime } }", r"^ { \prime }").split()
        assert canonical(row["tokens"].split()) == label
        assert canonical(label) == label
        assert is_valid(label)
        assert tokenize(to_latex(label)) == label
    assert accidents == (14 if split == "train" else 0)


def test_crohme_truth_as_written_by_people() -> None:
    """The raw LaTeX of the 2016 test gives the labels, whatever its spacing and sizes."""
    rows = list(_labels("test_2016"))
    wrong = [r["truth"] for r in rows if canonical(tokenize(r["truth"])) != r["norm"].split()]
    assert len(rows) == 1147
    assert wrong == []
