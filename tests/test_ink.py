"""Digital ink: parsing, its errors, placing and drawing."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hmer import ink
from hmer.errors import BadInk
from tests.handwriting import writing

INKML = b"""<?xml version="1.0"?><ink xmlns="http://www.w3.org/2003/InkML">
<annotation type="truth">$x$</annotation>
<trace id="0">10 20, 11 21 5, 12.5 -3</trace><trace id="1">0 0</trace></ink>"""


def test_inkml() -> None:
    parsed = ink.parse_inkml(INKML)
    assert parsed.latex == "$x$"
    assert [s.tolist() for s in parsed.strokes] == [[[10, 20], [11, 21], [12.5, -3]], [[0, 0]]]


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"<ink><trace>1 2", "parsed"),
        (b"<ink></ink>", "no strokes"),
        (b"<ink><trace></trace></ink>", "no strokes"),
        (b"<ink><trace>1 2, x 3</trace></ink>", "x 3"),
        (b"<ink><trace>1 2, 3</trace></ink>", "'3'"),
        (b"<ink><trace>1 nan</trace></ink>", "finite"),
        (b'<!DOCTYPE a [<!ENTITY b "c">]><ink><trace>&b;</trace></ink>', "parsed"),
    ],
)
def test_broken_inkml_is_explained(data: bytes, word: str) -> None:
    with pytest.raises(BadInk, match=word):
        ink.parse_inkml(data)


@pytest.mark.parametrize("wrapped", [False, True])
def test_json_strokes(wrapped: bool) -> None:
    strokes = [[[0, 0], [1, 2]], [[3.5, 4]]]
    data = json.dumps({"strokes": strokes, "latex": "x"} if wrapped else strokes).encode()
    parsed = ink.parse_strokes(data)
    assert [s.tolist() for s in parsed.strokes] == strokes
    assert parsed.latex == ("x" if wrapped else None)


@pytest.mark.parametrize(
    "data", ["{", "[]", "{}", "[[1, 2]]", '[[["a", 1]]]', "[[[1]]]", "[[]]", "[[[NaN, 1]]]", "3"]
)
def test_broken_strokes_are_explained(data: str) -> None:
    with pytest.raises(BadInk):
        ink.parse_strokes(data.encode())


def test_too_many_points() -> None:
    data = json.dumps([[[0, 0]] * (ink.MAX_POINTS + 1)]).encode()
    with pytest.raises(BadInk, match="at most"):
        ink.parse_strokes(data)


@pytest.mark.parametrize("unit", [0.001, 1.0, 5000.0])
def test_rendering_does_not_hang_on_the_unit(unit: float) -> None:
    strokes, _ = writing(["1", "+", "0"], 3)
    there = ink.render(strokes).astype(int)
    here = ink.render([(stroke * np.float32(unit)).astype(np.float32) for stroke in strokes])
    assert here.shape == there.shape
    assert np.abs(here - there).mean() < 0.5


def test_size_of_the_writing() -> None:
    strokes, _ = writing(["0", "1", "-"], 1)
    placed = ink.place(strokes, stroke_height=60)
    assert ink.typical_height(placed) == pytest.approx(60, rel=1e-4)


@pytest.mark.parametrize(
    "stroke", [[[5, 5]], [[5, 5], [5, 5]], [[0, 0], [100, 0]], [[0, 0], [0, 100]]]
)
def test_degenerate_strokes_are_drawn(stroke: list[list[float]]) -> None:
    image = ink.render([np.array(stroke, np.float32)])
    assert image.max() == 255
    assert max(image.shape) < 1000


def test_far_flung_ink_stays_small() -> None:
    strokes = [np.array([[0, 0], [0, 1]], np.float32), np.array([[1e9, 0], [1e9, 1]], np.float32)]
    assert max(ink.render(strokes).shape) <= ink.MAX_DRAWING + 100
