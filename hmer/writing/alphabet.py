"""A stroke alphabet: how a pen draws each symbol, and the curves through those points.

One glyph is one line of text: strokes separated by ``;``, in pen order. A stroke is a list of
``x,y`` points that a smooth curve passes through; ``|`` makes the point before it a corner. The
unit is 1/100 of a digit's height, x to the right, y **up** from the baseline: digits and capitals
reach 100, small letters 60, tails -45. Where hands differ, a symbol has several forms, and a
writer keeps to one of them.
"""

from __future__ import annotations

from random import Random

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
"""One stroke: (n, 2) of x, y in alphabet units, y up."""

GLYPHS: dict[str, tuple[str, ...]] = {
    # Digits
    "0": ("32,92 10,76 4,42 16,6 36,2 56,30 54,70 36,92 24,90",),
    "1": ("2,62 28,99 | 27,50 28,0", "6,70 26,98 | 26,40 25,0"),
    "2": ("6,76 16,95 38,99 55,82 47,55 24,24 4,2 | 32,4 66,3",),
    "3": ("8,88 28,100 52,90 50,66 24,53 | 54,46 60,22 40,0 14,2 2,16",),
    "4": ("30,100 16,64 3,34 | 30,33 64,36; 44,64 42,30 42,-4",),
    "5": ("16,97 13,76 11,57 | 34,63 56,48 57,20 36,1 4,6; 16,97 38,97 60,99",),
    "6": ("46,99 22,80 6,44 8,14 28,0 50,12 50,34 30,46 9,32",),
    "7": ("4,94 30,95 60,98 | 42,60 24,0; 18,50 58,54", "4,94 32,96 60,97 | 40,56 26,0"),
    "8": ("50,86 32,100 12,86 22,64 46,42 54,20 34,0 8,9 8,31 30,54 48,73 50,89",),
    "9": ("50,86 30,99 8,85 8,63 28,53 46,66 52,91 | 50,50 42,0",),
    # Small Latin letters
    "a": ("46,50 28,60 9,46 4,20 18,2 36,15 46,54 | 46,20 52,3 63,8",),
    "b": ("10,104 7,50 8,5 | 12,36 28,57 48,44 48,15 28,0 9,8",),
    "c": ("46,50 30,60 10,45 4,21 20,0 47,9",),
    "d": ("46,48 28,58 8,44 4,18 18,2 38,14 48,48 52,106 | 48,50 50,8 61,3",),
    "e": ("6,27 38,34 46,49 28,61 9,46 6,18 22,0 48,11",),
    "f": ("58,94 46,112 32,96 26,40 20,-18 6,-44 -8,-34; 4,50 46,54",),
    "g": ("44,48 26,60 8,46 6,22 20,6 38,18 46,55 | 46,0 36,-41 14,-44 1,-28",),
    "h": ("10,106 7,50 6,3 | 12,34 28,56 42,44 42,16 48,2 58,7",),
    "i": ("8,58 6,16 14,0 25,9; 10,86 11,83",),
    "j": ("20,58 21,-10 12,-42 -6,-36; 22,86 23,83",),
    "k": (
        "10,106 8,50 6,0; 42,60 24,44 9,29 | 26,14 46,0",
        "10,106 6,0 | 7,22 42,60 | 15,32 | 46,0",
    ),
    "l": ("4,12 26,68 23,104 12,86 9,26 18,2 32,10",),
    "m": ("4,58 6,3 | 12,36 25,56 33,42 33,3 | 39,36 53,57 61,42 61,12 69,2 78,9",),
    "n": ("4,58 6,3 | 12,38 28,58 40,42 42,12 50,1 59,9",),
    "o": ("28,60 9,48 4,22 18,2 36,7 46,32 38,55 22,59",),
    "p": ("8,58 7,10 6,-43 | 9,38 26,60 46,46 42,18 24,4 9,14",),
    "q": ("44,50 26,60 8,46 6,20 20,4 38,18 46,55 | 45,-10 45,-44 | 60,-30",),
    "r": ("4,58 8,3 | 13,36 26,55 43,56",),
    "s": ("42,53 27,62 11,50 22,34 40,20 34,2 10,0 2,9",),
    "t": ("18,92 16,22 25,0 44,9; 1,62 40,66",),
    "u": ("4,58 4,18 18,2 36,14 44,57 | 44,16 52,2 61,9",),
    "v": ("2,58 11,28 21,2 | 32,32 44,62",),
    "w": ("2,57 8,20 16,2 | 31,46 | 38,14 46,2 | 56,32 63,62",),
    "x": (
        "4,49 16,60 26,42 24,16 11,1 0,9; 55,55 42,61 29,42 29,14 42,0 57,10",
        "2,60 24,30 47,2; 47,61 24,30 1,0",
    ),
    "y": (
        "4,60 7,34 20,21 37,34 46,60 | 43,0 31,-41 9,-46 0,-30",
        "3,58 24,14; 47,61 31,14 10,-46",
    ),
    "z": (
        "4,56 25,57 47,58 | 26,28 4,2 | 27,4 51,3; 12,30 41,32",
        "4,56 25,59 47,58 | 26,28 4,2 | 51,3",
    ),
    # Capital letters
    "A": ("2,0 16,54 30,100 | 44,54 58,0; 12,36 50,38",),
    "B": ("9,98 7,50 6,0; 8,95 36,100 52,84 40,59 14,52 | 48,46 58,22 38,0 6,2",),
    "C": ("56,85 36,100 13,80 4,44 16,8 38,0 60,15",),
    "E": ("8,98 7,50 6,2 | 30,2 55,4; 8,98 53,100; 8,52 45,54",),
    "F": ("9,98 8,50 6,0; 8,98 57,100; 8,54 47,56",),
    "G": ("56,84 36,100 12,80 4,44 16,8 38,0 56,15 58,43 | 34,42",),
    "I": ("6,99 48,100; 27,99 28,0; 4,1 50,0",),
    "H": ("7,98 6,0; 53,100 52,0; 7,50 53,52",),
    "L": ("9,100 6,3 | 53,4",),
    "M": ("3,0 9,98 | 34,30 | 61,98 | 67,0",),
    "N": ("5,0 8,98 | 50,4 | 54,100",),
    "P": ("9,98 7,50 6,0; 8,95 38,100 54,78 40,54 9,49",),
    "R": ("9,98 7,50 6,0; 8,95 38,100 52,78 38,57 10,50 | 57,0",),
    "S": ("52,87 34,100 12,88 17,64 44,44 52,18 30,0 4,12",),
    "T": ("31,98 30,0; 2,98 61,100",),
    "V": ("2,100 15,50 28,1 | 57,101",),
    "X": ("2,100 57,0; 56,101 1,0",),
    "Y": ("2,100 29,53; 57,101 30,53 21,0",),
    # Greek letters
    "\\alpha": ("58,58 42,28 24,3 6,14 6,42 22,58 38,40 48,12 61,3",),
    "\\beta": ("3,-43 8,40 14,88 34,103 50,88 44,66 24,56 | 52,46 58,22 42,2 14,7",),
    "\\gamma": ("2,48 14,60 26,36 31,-10 24,-44 15,-34 24,0 51,60",),
    "\\theta": ("28,103 9,78 6,30 22,2 42,18 47,66 35,99 24,103; 8,50 46,54",),
    "\\lambda": ("6,98 20,90 34,46 50,4 60,5; 27,60 4,0",),
    "\\mu": ("2,-43 8,20 12,58 | 11,14 24,2 40,14 46,58 | 46,14 58,3",),
    "\\pi": ("20,56 17,26 10,2; 42,57 40,14 53,3; 1,50 16,58 60,60",),
    "\\sigma": ("60,61 28,58 8,44 6,16 22,0 40,10 44,34 27,56",),
    "\\phi": ("28,60 6,46 8,14 32,3 54,22 48,52 26,60; 38,98 30,30 20,-42",),
    "\\Delta": ("31,96 16,48 2,2 | 62,3 | 46,52 30,97",),
    # Operators and relations
    "\\in": ("60,62 30,60 8,44 6,30 12,14 32,4 60,2; 8,33 54,34",),
    "\\forall": ("4,100 22,50 | 32,2 | 44,52 60,100; 16,60 52,60",),
    "\\exists": ("4,98 52,100 | 54,50 | 56,0 4,2; 12,50 54,51",),
    "+": ("2,36 33,37 64,38; 34,69 33,36 32,3",),
    "-": ("2,35 29,36 56,37",),
    "=": ("2,49 32,50 63,51; 3,20 33,21 64,22",),
    "\\pm": ("2,55 64,57; 33,88 32,24; 2,4 64,6",),
    "\\times": ("6,64 58,5; 59,66 4,3",),
    "\\div": ("2,36 70,38; 36,72 37,69; 36,7 37,4",),
    "\\cdot": ("4,34 6,32",),
    "/": ("49,108 2,-14",),
    "<": ("58,66 6,36 | 60,5",),
    ">": ("5,66 58,36 | 4,4",),
    "\\leq": ("60,84 8,53 | 61,25; 6,4 63,3",),
    "\\geq": ("7,84 60,53 | 6,25; 5,3 63,4",),
    "\\neq": ("2,49 63,51; 3,20 64,22; 52,74 13,-3",),
    "\\rightarrow": ("2,34 40,36 78,36; 57,54 80,36 | 58,17",),
    "\\infty": ("44,27 24,48 5,36 9,13 26,12 46,32 64,50 83,37 77,14 60,10 42,28",),
    "!": ("9,100 8,64 8,30; 8,4 9,1",),
    # Brackets and punctuation
    "(": ("28,114 10,80 4,42 10,2 27,-26",),
    ")": ("2,114 20,80 26,42 20,2 3,-26",),
    "[": ("26,110 4,111 | 4,-22 | 27,-21",),
    "]": ("2,110 25,111 | 25,-22 | 1,-21",),
    "\\{": ("30,112 18,106 16,70 14,52 2,42 | 14,32 16,12 18,-20 32,-26",),
    "\\}": ("2,112 14,106 16,70 18,52 30,42 | 18,32 16,12 14,-20 0,-26",),
    "|": ("4,112 3,-18",),
    ",": ("10,9 11,-4 2,-21",),
    ".": ("4,4 6,2",),
    "\\ldots": ("4,4 6,2; 32,5 34,3; 60,4 62,2",),
    "\\cdots": ("4,36 6,34; 32,37 34,35; 60,36 62,34",),
    "\\prime": ("14,100 4,66",),
    # Large operators
    "\\sum": (
        "74,88 76,104 | 40,104 4,105 | 24,76 45,46 | 24,16 2,-15 | 42,-14 80,-11 | 81,4",
        "76,103 4,105 | 24,76 45,46 | 2,-15 | 42,-14 80,-12",
    ),
    "\\int": ("58,132 47,150 34,128 27,52 20,-26 7,-46 -8,-33",),
}
"""Forms of each symbol."""

WORDS = ("\\sin", "\\cos", "\\tan", "\\lim", "\\log")
"""Commands that are written as the letters of their names."""

_STEPS = 10  # curve points between two points of a glyph


def letters(token: str) -> list[str]:
    """The glyphs that draw ``token``: itself, or the letters of a word such as ``\\sin``."""
    return list(token[1:]) if token in WORDS else [token]


def draw(token: str, form: int, wobble: float, random: Random) -> list[Points]:
    """The strokes of one glyph; ``form`` picks one of its forms (any number does).

    Each point is displaced by a normal deviate of ``wobble`` units: no two are drawn alike.
    Raises ``KeyError`` for a symbol that the alphabet doesn't have.
    """
    forms = GLYPHS[token]
    return [trace(text, wobble, random) for text in forms[form % len(forms)].split(";")]


def trace(text: str, wobble: float, random: Random) -> Points:
    """One stroke of the notation above as a smooth polyline, its points displaced."""
    pieces: list[Points] = []
    corner: list[tuple[float, float]] = []
    for smooth in text.split("|"):
        points = list(corner)
        for pair in smooth.split():
            x, y = pair.split(",")
            points.append((float(x) + random.gauss(0, wobble), float(y) + random.gauss(0, wobble)))
        if len(points) == 2 and np.hypot(*np.subtract(points[1], points[0])) > 12:
            # Nobody draws a straight line: bow it a little.
            (ax, ay), (bx, by) = points
            bow = random.gauss(0, 0.025)
            points.insert(1, ((ax + bx) / 2 + bow * (by - ay), (ay + by) / 2 - bow * (bx - ax)))
        pieces.append(_curve(np.array(points)))
        corner = [points[-1]]
    return np.concatenate([pieces[0], *(piece[1:] for piece in pieces[1:])])


def _curve(points: Points) -> Points:
    """A centripetal Catmull-Rom spline through ``points``: no loops where they are uneven."""
    first, last = 2 * points[0] - points[1], 2 * points[-1] - points[-2]
    p = np.concatenate([[first], points, [last]])
    knots = np.concatenate([[0], np.cumsum(np.sqrt(np.linalg.norm(np.diff(p, axis=0), axis=1)))])
    pieces = [points[:1]]
    for k in range(1, len(p) - 2):
        t = np.linspace(knots[k], knots[k + 1], _STEPS + 1)[1:, None]

        def mix(a: Points, b: Points, ta: float, tb: float, t: Points = t) -> Points:
            return ((tb - t) * a + (t - ta) * b) / (tb - ta)

        t0, t1, t2, t3 = knots[k - 1 : k + 3]
        a1, a2 = mix(p[k - 1], p[k], t0, t1), mix(p[k], p[k + 1], t1, t2)
        a3 = mix(p[k + 1], p[k + 2], t2, t3)
        pieces.append(mix(mix(a1, a2, t0, t2), mix(a2, a3, t1, t3), t1, t2))
    return np.concatenate(pieces)
