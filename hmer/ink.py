"""Digital ink -> grayscale image: InkML or JSON strokes, placed and drawn.

A stroke is a float32 array (n, 2) of x, y in pen order, y down, in any unit: ``place``
brings it to pixels by the size of the strokes themselves, so that devices of every
resolution give the same picture.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import cv2
import numpy as np
from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring
from numpy.typing import NDArray

from hmer.errors import BadInk
from hmer.limits import LIMITS

Stroke = NDArray[np.float32]
_Points = NDArray[np.float64]

STROKE_HEIGHT = 48.0  # pixels that the mean tall stroke gets before drawing
PEN = 4  # pixels, pen width at that height
MARGIN = 8  # pixels around the drawing
# Far above any formula; they keep a hostile file from costing time or memory (hmer.limits).
MAX_BYTES, MAX_STROKES, MAX_POINTS = LIMITS.ink_bytes, LIMITS.strokes, LIMITS.points
MAX_ELEMENTS = 4 * MAX_STROKES  # of InkML: traces, their groups and views; of JSON: objects
MAX_COORDINATE = 1e12  # of the strokes' unit; its square is still a float32
MAX_DRAWING = 12_000  # pixels, longest side of a drawing before the pen is chosen smaller
MAX_DRAWN_PIXELS = 4_000_000  # the same for all of its pixels
MAX_LENGTH = 2_000_000  # pixels that the pen may go: a formula has some ten thousand
_LONGEST = 100  # characters of a number
_SHOWN = 200  # characters of what a parser says
_NUMBERS = (int, float)  # of JSON
_SUBPIXEL = 4  # bits of sub-pixel precision for cv2


@dataclass(frozen=True)
class Ink:
    """Strokes in pen order, and the LaTeX that the file claims, if it does."""

    strokes: list[Stroke]
    latex: str | None = None


def parse_inkml(data: bytes) -> Ink:
    """Read the traces of an InkML document (W3C InkML, as CROHME uses it).

    Only the first two channels (X, Y) are read. Raises ``BadInk``.
    """
    _small_enough(data, b"<", 2 * MAX_ELEMENTS, "The InkML")  # an element has two tags
    try:
        root = fromstring(data)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        reason = str(error)[:_SHOWN]  # which may quote the file
        raise BadInk(f"The InkML cannot be parsed: {reason}. Save the ink again.") from None
    strokes: list[_Points] = []
    latex: str | None = None
    total = 0
    for element in root.iter():
        name = _local_name(element)
        if name == "trace":
            total = _counted(total + (element.text or "").count(",") + 1, "The InkML")
            _few_enough(len(strokes) + 1, "The InkML")
            strokes.append(_parse_trace(element.text or "", len(strokes)))
        elif name == "annotation" and element.get("type") == "truth" and latex is None:
            latex = (element.text or "").strip() or None
    return Ink(_checked(strokes, "The InkML"), latex)


def parse_strokes(data: bytes) -> Ink:
    """Read JSON strokes: ``[[[x, y], ...], ...]`` or ``{"strokes": ...}``. Raises ``BadInk``."""
    _small_enough(data, b"{", MAX_ELEMENTS, "The JSON")
    _small_enough(data, b"[", 2 * (MAX_POINTS + MAX_STROKES), "The JSON")
    try:
        document: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadInk(f"The JSON strokes cannot be parsed: {str(error)[:_SHOWN]}.") from None
    latex = None
    if isinstance(document, dict):
        latex = document.get("latex") if isinstance(document.get("latex"), str) else None
        document = document.get("strokes")
    if not isinstance(document, list):
        raise BadInk(
            'JSON ink must be a list of strokes, [[[x, y], ...], ...], or {"strokes": [...]}.'
        )
    _few_enough(len(document), "The JSON")
    strokes: list[_Points] = []
    total = 0
    for index, points in enumerate(document):
        total = _counted(total + (len(points) if isinstance(points, list) else 1), "The JSON")
        try:
            pairs = [(point[0], point[1]) for point in points]
            if not all(type(x) in _NUMBERS and type(y) in _NUMBERS for x, y in pairs):
                raise TypeError("NumPy would take true and '1' for numbers")
            stroke = np.array(pairs, dtype=np.float64)
        except (TypeError, ValueError, IndexError, KeyError, OverflowError):
            raise BadInk(f"Stroke {index + 1} is not a list of [x, y] numbers.") from None
        strokes.append(stroke.reshape(-1, 2))
    return Ink(_checked(strokes, "The JSON"), latex)


def _local_name(element: Element) -> str:
    return str(element.tag).rpartition("}")[2]


def _parse_trace(text: str, index: int) -> _Points:
    points = []
    for point in text.split(","):
        fields = point.split(None, 2)
        if not fields:
            continue
        try:
            if len(fields[0]) > _LONGEST or len(fields[1]) > _LONGEST:
                raise ValueError("a number of thousands of digits takes seconds")
            points.append((float(fields[0]), float(fields[1])))
        except (ValueError, IndexError):
            raise BadInk(
                f"Trace {index + 1} of the InkML has the point {point.strip()[:40]!r}, which is "
                "not two numbers."
            ) from None
    return np.array(points, dtype=np.float64).reshape(-1, 2)


def _small_enough(data: bytes, mark: bytes, most: int, source: str) -> None:
    """Asked before ``data`` is parsed: what is parsed takes a hundred times its bytes."""
    if len(data) > MAX_BYTES:
        raise BadInk(f"{source} has {len(data):,} bytes; at most {MAX_BYTES:,} are read.")
    if data.count(mark) > most:
        raise BadInk(
            f"{source} has more than {most:,} of {mark.decode('ascii')!r}: far more parts than a "
            "formula has."
        )


def _few_enough(strokes: int, source: str) -> None:
    if strokes > MAX_STROKES:
        raise BadInk(f"{source} has {strokes:,} strokes or more; at most {MAX_STROKES:,} are read.")


def _counted(points: int, source: str) -> int:
    """``points`` so far; asked before they are converted, which is what costs."""
    if points > MAX_POINTS:
        raise BadInk(f"{source} has {points} points or more; at most {MAX_POINTS} are read.")
    return points


def _checked(strokes: Sequence[_Points], source: str) -> list[Stroke]:
    kept = [stroke for stroke in strokes if len(stroke)]
    if not kept:
        raise BadInk(f"{source} has no strokes: nothing was written in it.")
    for index, stroke in enumerate(kept):
        if not np.isfinite(stroke).all():
            raise BadInk(f"Stroke {index + 1} has a point that is not a finite number.")
        if np.abs(stroke).max() > MAX_COORDINATE:
            raise BadInk(
                f"Stroke {index + 1} has a coordinate beyond {MAX_COORDINATE:g}: no device gives "
                "such numbers. Use a larger unit."
            )
    return [stroke.astype(np.float32) for stroke in kept]


def typical_height(strokes: Iterable[Stroke]) -> float:
    """Mean height of the strokes taller than 10 % of the tallest, in the strokes' unit.

    Ink that is flat (one dash) is measured by its width instead; a single dot gives 0.
    """
    boxes = np.array([np.ptp(stroke, axis=0) for stroke in strokes], dtype=np.float64)
    heights = boxes[:, 1]
    tallest = heights.max()
    if tallest <= 0.05 * boxes[:, 0].max():
        return float(boxes[:, 0].max()) / 2.0
    return float(heights[heights >= 0.1 * tallest].mean())


def place(
    strokes: Sequence[Stroke], stroke_height: float = STROKE_HEIGHT, margin: float = MARGIN
) -> list[Stroke]:
    """Scale strokes to ``stroke_height`` pixels and move them to the top left margin."""
    unit = typical_height(strokes)
    points = np.concatenate(strokes)
    low, span = points.min(axis=0), float(np.ptp(points, axis=0).max())
    scale = stroke_height / unit if unit > 0 else 1.0
    if span > 0:
        width, height = np.ptp(points, axis=0).astype(np.float64).tolist()
        area = max(width * height, 1e-300)
        scale = min(scale, MAX_DRAWING / span, (MAX_DRAWN_PIXELS / area) ** 0.5)
    _short_enough(strokes, scale)
    return [((stroke - low) * scale + margin).astype(np.float32) for stroke in strokes]


def _short_enough(strokes: Sequence[Stroke], scale: float) -> None:
    """Raise ``BadInk`` for scribble that would take seconds to draw."""
    length = sum(float(np.abs(np.diff(stroke, axis=0)).sum(dtype=np.float64)) for stroke in strokes)
    if length * scale > MAX_LENGTH:
        raise BadInk(
            f"The pen goes {length * scale / STROKE_HEIGHT:,.0f} times the height of the writing: "
            "that is scribble, not a formula."
        )


def draw(strokes: Sequence[Stroke], pen: int = PEN, margin: float = MARGIN) -> NDArray[np.uint8]:
    """Draw placed strokes: uint8 (H, W), white ink on black, antialiased."""
    right, bottom = np.concatenate(strokes).max(axis=0)
    image = np.zeros((math.ceil(bottom + margin) + 1, math.ceil(right + margin) + 1), np.uint8)
    unit = 1 << _SUBPIXEL
    for stroke in strokes:
        points = np.rint(stroke * unit).astype(np.int32)
        if len(points) == 1 or not np.ptp(points, axis=0).any():
            x, y = points[0]
            radius = max(1, round(pen * unit * 0.6))
            cv2.circle(image, (int(x), int(y)), radius, (255,), -1, cv2.LINE_AA, _SUBPIXEL)
        else:
            cv2.polylines(image, [points[:, None]], False, (255,), pen, cv2.LINE_AA, _SUBPIXEL)
    return image


def render(
    strokes: Sequence[Stroke],
    stroke_height: float = STROKE_HEIGHT,
    pen: int = PEN,
    margin: float = MARGIN,
) -> NDArray[np.uint8]:
    """Strokes in any unit to an image: uint8 (H, W), white ink on black. See ``place``."""
    return draw(place(strokes, stroke_height, margin), pen, margin)
