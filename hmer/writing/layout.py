"""A formula's tree -> strokes placed as a hand places them: rows, fractions, roots, scripts.

The unit is the alphabet's (1/100 of a digit's height), y up, the baseline of the outermost row
at 0. Sizes and distances are those that people use, so they are rougher than in print: scripts
are about two thirds as large, fraction bars stick out, symbols stand apart and off the line.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

import numpy as np

from hmer.latex_parser import Command, Node, Row, Script, Symbol
from hmer.writing.alphabet import WORDS, Points, draw, letters, trace

AXIS = 36.0
"""Height of the minus sign and of fraction bars above the baseline."""

SUB, SUP = 0.56, 0.66
"""Size of a script relative to its base's; people write subscripts smaller."""

SMALLEST = 0.42
"""Scripts of scripts shrink no further."""

_SPACED = frozenset(
    ("+", "-", "=", "<", ">", "\\pm", "\\times", "\\div", "\\leq", "\\geq", "\\neq", "\\rightarrow")
)
_OPEN = {"(": ")", "[": "]", "\\{": "\\}"}
_CLOSE = frozenset(_OPEN.values())
_LIMITS = frozenset({"\\sum", "\\lim"})


@dataclass(frozen=True)
class Hand:
    """How one writer writes; lengths in alphabet units."""

    wobble: float = 1.6  # how far the points of a glyph stray
    wander: float = 2.5  # how far symbols stray from the line
    sizes: float = 0.05  # relative spread of the symbols' sizes
    spacing: float = 24.0  # between neighbouring symbols
    slant: float = 0.08  # x shift for each unit of height
    tilt: float = 0.0  # rise of the line for each unit of length
    forms: dict[str, int] = field(default_factory=dict)  # the form of a symbol, 0 by default


class Written(NamedTuple):
    """One stroke and the symbol that it belongs to: a token, and its number in the formula.

    A fraction bar is a ``\\frac``, a root with its roof a ``\\sqrt``.
    """

    points: Points
    symbol: str
    number: int


@dataclass
class Box:
    """Strokes with the space they take: x from 0 to ``width``, y from ``bottom`` to ``top``."""

    strokes: list[Written]
    width: float
    top: float
    bottom: float

    @classmethod
    def around(cls, strokes: list[Written]) -> Box:
        """The box of ``strokes``, moved so that x begins at 0."""
        points = np.concatenate([stroke.points for stroke in strokes])
        left, bottom = points.min(axis=0)
        right, top = points.max(axis=0)
        moved = [s._replace(points=s.points - np.array((left, 0.0))) for s in strokes]
        return cls(moved, right - left, float(top), float(bottom))

    def moved(self, x: float, y: float) -> list[Written]:
        """Its strokes, displaced."""
        return [s._replace(points=s.points + np.array((x, y))) for s in self.strokes]


class Writer:
    """Lays out trees in one hand; ``random`` makes every symbol a little different."""

    def __init__(self, hand: Hand, random: Random) -> None:
        """``random`` is used up as symbols are written; the same state writes the same."""
        self.hand = hand
        self.random = random
        self._symbols = 0

    def write(self, row: Row) -> list[Written]:
        """All strokes of a formula, in pen order. Raises ``KeyError`` for an unknown symbol."""
        strokes = self.row(row, 1.0).strokes
        shear = np.array([[1.0, self.hand.tilt], [self.hand.slant, 1.0]])
        return [stroke._replace(points=stroke.points @ shear) for stroke in strokes]

    def row(self, row: Row, scale: float) -> Box:
        """Nodes side by side; brackets grow with what they enclose."""
        boxes = [self.node(node, scale) for node in row]
        for first, last in _pairs(row):
            top = max((box.top for box in boxes[first + 1 : last]), default=0.0) + 6 * scale
            bottom = min((box.bottom for box in boxes[first + 1 : last]), default=0.0) - 6 * scale
            if top > 125 * scale or bottom < -55 * scale:
                for at in (first, last):
                    boxes[at] = self.node(row[at], scale, (bottom, top))
        strokes: list[Written] = []
        x = 0.0
        for at, (node, box) in enumerate(zip(row, boxes, strict=True)):
            if at:
                x += self.gap(row[at - 1], node) * scale
            strokes += box.moved(x, self.random.gauss(0, self.hand.wander) * scale)
            x += box.width
        return Box.around(strokes)

    def gap(self, left: Node, right: Node) -> float:
        """Units between two neighbours."""
        before, after = _core(left), _core(right)
        gap = self.hand.spacing * self.random.uniform(0.8, 1.25)
        if before in _SPACED or after in _SPACED:
            gap *= 1.35
        if before in WORDS or after in WORDS or (before == "\\sum" and isinstance(left, Script)):
            gap *= 1.3
        if before in _OPEN or after in _CLOSE:
            gap *= 0.8
        if after in (",", ".", "!", "("):
            gap *= 0.6
        return gap

    def node(self, node: Node, scale: float, stretch: tuple[float, float] | None = None) -> Box:
        """Any node; ``stretch`` gives a bracket its lower and upper end."""
        match node:
            case Symbol(token):
                return self.symbol(token, scale, stretch)
            case Command("\\frac", (numerator, denominator)):
                return self.fraction(numerator, denominator, scale)
            case Command("\\sqrt", (body,), index):
                return self.root(body, index, scale)
            case Script(base, sub, sup):
                return self.scripts(base, sub, sup, scale, stretch)
        raise KeyError(f"There is no way to write {node!r}.")

    def symbol(self, token: str, scale: float, stretch: tuple[float, float] | None = None) -> Box:
        """One symbol, or the letters of a word."""
        strokes: list[Written] = []
        x = 0.0
        number = self._next()
        for letter in letters(token):
            glyph = self.glyph(letter, scale, token, number)
            strokes += glyph.moved(x, 0.0)
            x += glyph.width + 9 * scale
        box = Box.around(strokes)
        if stretch is not None:
            low, high = stretch
            factor = (high - low) / (box.top - box.bottom)
            bend = min(2.0, factor**0.5)  # taller brackets are a little wider
            strokes = [
                s._replace(points=np.column_stack(
                    [s.points[:, 0] * bend, (s.points[:, 1] - box.bottom) * factor + low]
                ))
                for s in box.strokes
            ]  # fmt: skip
            box = Box.around(strokes)
        return box

    def glyph(self, letter: str, scale: float, token: str, number: int) -> Box:
        """One glyph of the alphabet, a little larger, wider or turned than the last.

        It is the symbol ``token`` with this ``number``, or one letter of it.
        """
        form = self.hand.forms.get(letter, 0)
        size = scale * self.random.gauss(1.0, self.hand.sizes)
        width = self.random.gauss(1.0, self.hand.sizes)
        turn = self.random.gauss(0.0, 0.03)
        matrix = np.array([[width, turn], [-turn, 1.0]]) * size
        strokes = draw(letter, form, self.hand.wobble, self.random)
        return Box.around([Written(s @ matrix, token, number) for s in strokes])

    def stroke(self, text: str, scale: float, token: str) -> Written:
        """A stroke of the alphabet's notation, in final units: a symbol of its own."""
        points = trace(text, self.hand.wobble * scale, self.random)
        return Written(points, token, self._next())

    def _next(self) -> int:
        self._symbols += 1
        return self._symbols

    def fraction(self, numerator: Row, denominator: Row, scale: float) -> Box:
        """Numerator, bar and denominator, in the order of writing."""
        above, below = self.row(numerator, 0.92 * scale), self.row(denominator, 0.92 * scale)
        overhang = self.random.uniform(14, 30) * scale
        width = max(above.width, below.width) + 2 * overhang
        axis = AXIS * scale
        rise, fall = (self.random.uniform(20, 32) * scale for _ in range(2))
        lean = self.random.gauss(0, 0.01) * width
        bar = self.stroke(
            f"0,{axis - lean} {width / 2},{axis} {width},{axis + lean}", scale, "\\frac"
        )
        shift = self.random.gauss(0, 4) * scale
        top = above.moved((width - above.width) / 2 + shift, axis + rise - above.bottom)
        low = below.moved((width - below.width) / 2 - shift, axis - fall - below.top)
        return Box.around([*top, bar, *low])

    def root(self, body: Row, index: Row | None, scale: float) -> Box:
        """The sign in one stroke, from its hook to the end of its roof."""
        inner = self.row(body, scale)
        top = inner.top + self.random.uniform(14, 22) * scale
        low = min(inner.bottom, 0.0) - self.random.uniform(0, 8) * scale
        height = top - low
        hook, left = low + 0.42 * height, 34 * scale
        end = left + inner.width + self.random.uniform(24, 36) * scale
        tick = f" | {end + 2},{top - 20 * scale}" if self.hand.forms.get("\\sqrt") else ""
        sign = self.stroke(
            f"0,{hook} {7 * scale},{hook + 7 * scale} | {18 * scale},{low} | {left},{top}"
            f" | {(left + end) / 2},{top + 2 * scale} {end},{top}{tick}",
            scale,
            "\\sqrt",
        )
        strokes = [sign, *inner.moved(left + 14 * scale, 0.0)]
        if index is not None:
            small = self.row(index, 0.55 * scale)
            strokes = small.moved(6 * scale - small.width, hook + 22 * scale) + strokes
        return Box.around(strokes)

    def scripts(
        self,
        base: Node | None,
        sub: Row | None,
        sup: Row | None,
        scale: float,
        stretch: tuple[float, float] | None,
    ) -> Box:
        """Scripts at the right of a base, or limits above and below it."""
        if base is None:
            raise KeyError("A script without a base cannot be placed.")
        core = self.node(base, scale, stretch)
        lower = self.row(sub, max(SUB * scale, SMALLEST)) if sub else None
        upper = self.row(sup, max(SUP * scale, SMALLEST)) if sup else None
        name = _core(base)
        strokes = list(core.strokes)
        if name in _LIMITS:
            middle = core.width / 2
            if lower:
                y = core.bottom - self.random.uniform(16, 26) * scale - lower.top
                strokes += lower.moved(middle - lower.width / 2, y)
            if upper:
                y = core.top + self.random.uniform(14, 24) * scale - upper.bottom
                strokes += upper.moved(middle - upper.width / 2, y)
            return Box.around(strokes)
        beside = core.width + self.random.uniform(7, 13) * scale
        if lower:
            x = 0.6 * core.width + 14 * scale if name == "\\int" else beside
            y = core.bottom if name == "\\int" else min(-32 * scale, core.bottom - 4 * scale)
            strokes += lower.moved(x, y + self.random.gauss(0, 3) * scale)
        if upper:
            y = max(54 * scale, core.top - 38 * scale)
            x = beside + 8 * scale if name == "\\int" else beside
            strokes += upper.moved(x, y + self.random.gauss(0, 3) * scale)
        return Box.around(strokes)


def _core(node: Node | None) -> str:
    """The token that decides the space around a node; '' for a compound."""
    while isinstance(node, Script):
        node = node.base
    return node.token if isinstance(node, Symbol) else ""


def _pairs(row: Row) -> list[tuple[int, int]]:
    """Positions of matching brackets in a row, inner ones first."""
    opened: list[tuple[int, str]] = []
    pairs = []
    for at, node in enumerate(row):
        name = _core(node)
        if name in _OPEN:
            opened.append((at, _OPEN[name]))
        elif opened and opened[-1][1] == name:
            pairs.append((opened.pop()[0], at))
    return pairs
