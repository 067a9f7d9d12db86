"""The HTML page of an accuracy report: self-contained, safe, and of the worst cases."""

from __future__ import annotations

import base64
import io
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.cases import draw, math_converter, picture, worst
from benchmarks.page import render_page
from hmer.errors import MissingDependency
from hmer.evaluation import Answers, figures, tables
from hmer.score import compare

pytest.importorskip("jinja2")

INK = json.dumps({"strokes": [[[0, 0], [40, 60], [80, 0]], [[0, 90], [90, 95]]]}).encode()
ANSWERS = Answers(
    [
        compare("right", ["x"], ["x"]),
        compare("sure", ["x", "+", "y"], ["x", "+", "z"]),
        compare("unsure", ["x", "+", "y"], ["X", "+", "y"]),
        compare("bad", [*"abcd"], ["\\frac", "{", "7"]),
        compare("none", ["7"], None),
    ],
    [0.9, 0.8, 0.1, 0.3, None],
    candidates=[[("x",)], [("x",), tuple("x+y")], [("X",)], [], []],
)


class Seen(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def made(answers: Answers = ANSWERS, count: int = 100) -> str:
    return render_page(
        "Test", ["head"], tables(figures(answers)), answers, {"sure": INK, "bad": b"no"}, count
    )


def test_the_worst_come_first() -> None:
    assert [ANSWERS.scored[i].id for i in worst(ANSWERS, 9)] == ["bad", "sure", "unsure", "none"]
    assert len(worst(ANSWERS, 2)) == 2


def test_every_wrong_case_is_on_the_page() -> None:
    seen = Seen(made())
    cases = [attributes for tag, attributes in seen.tags if tag == "article"]
    assert [case["data-id"] for case in cases] == ["bad", "sure", "unsure", "none"]
    assert [case["data-distance"] for case in cases] == ["4", "1", "1", "1"]
    assert cases[1]["data-kinds"] == "other symbol|plain"
    assert cases[2]["data-kinds"] == "case|plain"
    assert "The 4 worst of 4 wrong answers" in seen.text
    assert "truth is answer 2" in seen.text
    assert "ExpRate %" in seen.text


def test_differing_tokens_are_marked() -> None:
    (case,) = draw(ANSWERS, [1], {}, lambda latex: "")
    assert [(t.text, t.wrong) for t in case.truth] == [("x", False), ("+", False), ("y", True)]
    assert [(t.text, t.wrong) for t in case.prediction] == [
        *(("x", False), ("+", False), ("z", True))
    ]
    (nothing,) = draw(ANSWERS, [4], {}, lambda latex: "")
    assert [t.wrong for t in nothing.truth] == [True]
    assert nothing.prediction == []


def test_the_page_asks_for_nothing_outside_itself() -> None:
    page = made()
    seen = Seen(page)
    for tag, attributes in seen.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base", "form"}
        assert "href" not in attributes
        if source := attributes.get("src"):
            assert source.startswith("data:image/png;base64,")
    policy = next(a["content"] for _, a in seen.tags if a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    addresses = set(re.findall(r"https?://[^\"'\s<>]+", page))
    assert addresses <= {"http://www.w3.org/1998/Math/MathML"}


def test_pictures_are_black_on_white_and_only_where_the_input_can_be_read() -> None:
    data = picture(INK)
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))))
    assert image[0, 0] == 255
    assert image.min() < 40
    assert picture(b"no picture") == ""
    assert made().count("<img ") == 1


def test_what_a_prediction_says_cannot_become_markup() -> None:
    nasty = ["<script>", "alert(1)", "</script>", "&amp;", '"']
    answers = Answers([compare('<img src="x">', ["x", "<", "y"], nasty)])
    page = made(answers)
    tags = [tag for tag, _ in Seen(page).tags]
    assert (tags.count("script"), tags.count("img")) == (1, 0)
    assert "&lt;script&gt;" in page


def test_mathml_is_escaped_and_has_no_links() -> None:
    pytest.importorskip("latex2mathml")
    convert = math_converter()
    assert convert is not None
    assert "<mo>&lt;</mo>" in convert("x<y")
    assert "<mfrac>" in convert(r"\frac{a}{b}")
    for latex in (r"\href{https://example.org}{x}", r"\text{<b>}", r"\class{c}{x}"):
        tags = {tag for tag, _ in Seen(convert(latex)).tags}
        attributes = {name for _, found in Seen(convert(latex)).tags for name in found}
        assert not tags & {"b", "a", "script"}
        assert not attributes & {"href", "class", "style", "id"}
    assert convert(r"\frac{") == ""


def test_without_latex2mathml_there_is_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("latex2mathml", "latex2mathml.converter"):
        monkeypatch.setitem(sys.modules, name, None)
    page = made()
    assert "<math" not in page
    assert "Without latex2mathml" in page


def test_without_jinja2_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingDependency, match=r"hmer\[report\]"):
        made()


def test_the_template_lies_beside_the_code() -> None:
    import benchmarks.page as module

    assert module.__file__ is not None
    assert (Path(module.__file__).parent / module.TEMPLATE).is_file()
