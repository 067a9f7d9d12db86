r"""Cutting segmented expressions at operators, and joining the parts: ink and label together.

After Le, Indurkhya and Nakagawa, "Pattern generation strategies for improving recognition of
handwritten mathematical expressions" (2019).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hmer.ink import Stroke
from training.data import STRUCTURE, Example

OPERATORS = frozenset({"=", "+", "-", "\\times", "\\leq", "\\geq", "\\neq", "<", ">",
                       "\\rightarrow", ",", "\\in", "\\pm", "\\div"})  # fmt: skip
_OPENING, _CLOSING = frozenset({"{", "(", "[", "\\{"}), frozenset({"}", ")", "]", "\\}"})
_TOUCHING = 10.0  # units of ink; symbols are about 200 high

Segments = tuple[tuple[str, tuple[int, ...]], ...]


class Cut(NamedTuple):
    """An operator of the outermost row: its place in the label and the symbols around it."""

    position: int
    left: tuple[int, ...]  # indices into ``segments``
    operator: int
    right: tuple[int, ...]


def find_cuts(example: Example) -> list[Cut]:
    """Operators of the outermost row where ink and label can both be cut.

    All ink before the operator lies left of it, and is the ink of the tokens before it.
    """
    boxes = [box_of([example.strokes[i] for i in indices]) for _, indices in example.segments]
    order = sorted(range(len(boxes)), key=lambda i: float(boxes[i][0][0] + boxes[i][1][0] / 2))
    symbols = [example.segments[i][0] for i in order]
    left = np.array([boxes[i][0][0] for i in order])
    right = np.array([boxes[i][0][0] + boxes[i][1][0] for i in order])
    cuts: list[Cut] = []
    drawn: list[str] = []
    depth = 0
    for position, token in enumerate(example.tokens):
        if token in _OPENING:
            depth += 1
        elif token in _CLOSING:
            depth -= 1
        count = len(drawn)
        if (
            depth == 0
            and token in OPERATORS
            and 0 < count < len(order) - 1
            and symbols[count] == token
            and Counter(symbols[:count]) == Counter(drawn)
            and right[:count].max() <= left[count:].min() + _TOUCHING
            and right[count] <= left[count + 1 :].min() + _TOUCHING
        ):
            cuts.append(
                Cut(position, tuple(order[:count]), order[count], tuple(order[count + 1 :]))
            )
        if (ink := _drawn(token)) is not None:
            drawn.append(ink)
    return cuts


def join(first: Example, at: Cut, second: Example, after: Cut) -> Example:
    """``first`` up to and with its operator, then what follows ``second``'s operator.

    The operators are laid on each other, so that both rows share their height.
    """
    anchor = _centre_right(first, at.operator) - _centre_right(second, after.operator)
    moved = [(s + anchor).astype(np.float32) for s in second.strokes]
    left = _collect(first, first.strokes, (*at.left, at.operator), 0)
    right = _collect(second, moved, after.right, len(left[0]))
    return replace(
        first,
        tokens=first.tokens[: at.position + 1] + second.tokens[after.position + 1 :],
        strokes=left[0] + right[0],
        segments=left[1] + right[1],
    )


def part(example: Example, cut: Cut, before: bool) -> Example:
    """What stands before the operator of ``cut``, or what stands after it."""
    strokes, segments = _collect(example, example.strokes, cut.left if before else cut.right, 0)
    tokens = example.tokens
    tokens = tokens[: cut.position] if before else tokens[cut.position + 1 :]
    return replace(example, tokens=tokens, strokes=strokes, segments=segments)


def _collect(
    example: Example, strokes: Sequence[Stroke], places: Sequence[int], first: int
) -> tuple[list[Stroke], Segments]:
    """The strokes of some symbols, and those symbols numbered from stroke ``first`` on."""
    kept: list[Stroke] = []
    segments = []
    for place in places:
        symbol, indices = example.segments[place]
        start = first + len(kept)
        kept += [strokes[i] for i in indices]
        segments.append((symbol, tuple(range(start, start + len(indices)))))
    return kept, tuple(segments)


def _drawn(token: str) -> str | None:
    """The symbol whose ink a token is; ``None`` for structure."""
    if token in STRUCTURE:
        return None
    return "-" if token == "\\frac" else token


def matches(example: Example) -> bool:
    """Whether the segments are exactly the ink of the label's tokens, and all of the ink."""
    drawn = [ink for token in example.tokens if (ink := _drawn(token)) is not None]
    used = [i for _, indices in example.segments for i in indices]
    return bool(used) and (
        Counter(symbol for symbol, _ in example.segments) == Counter(drawn)
        and len(used) == len(set(used)) == len(example.strokes)
        and all(indices for _, indices in example.segments)
    )


def box_of(strokes: Sequence[Stroke]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Low corner (x, y) and size (width, height), float64 (2,) each."""
    points = np.concatenate(strokes)
    low = points.min(axis=0).astype(np.float64)
    return low, points.max(axis=0) - low


def _centre_right(example: Example, place: int) -> NDArray[np.float64]:
    low, size = box_of([example.strokes[i] for i in example.segments[place][1]])
    return np.array([low[0] + size[0], low[1] + size[1] / 2])
