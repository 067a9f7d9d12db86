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

Stroke = NDArray[np.float32]
_Points = NDArray[np.float64]

STROKE_HEIGHT = 48.0  # pixels that the mean tall stroke gets before drawing
PEN = 4  # pixels, pen width at that height
MARGIN = 8  # pixels around the drawing
MAX_POINTS = 200_000  # far above any formula; keeps a hostile file from costing memory
MAX_COORDINATE = 1e12  # of the strokes' unit; its square is still a float32
MAX_DRAWING = 12_000  # pixels, longest side of a drawing before the pen is chosen smaller
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
    try:
        root = fromstring(data)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise BadInk(f"The InkML cannot be parsed: {error}. Save the ink again.") from None
    strokes: list[_Points] = []
    latex: str | None = None
    total = 0
    for element in root.iter():
        name = _local_name(element)
        if name == "trace":
            total = _counted(total + (element.text or "").count(",") + 1, "The InkML")
            strokes.append(_parse_trace(element.text or "", len(strokes)))
        elif name == "annotation" and element.get("type") == "truth" and latex is None:
            latex = (element.text or "").strip() or None
    return Ink(_checked(strokes, "The InkML"), latex)


def parse_strokes(data: bytes) -> Ink:
    """Read JSON strokes: ``[[[x, y], ...], ...]`` or ``{"strokes": ...}``. Raises ``BadInk``."""
    try:
        document: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadInk(f"The JSON strokes cannot be parsed: {error}.") from None
    latex = None
    if isinstance(document, dict):
        latex = document.get("latex") if isinstance(document.get("latex"), str) else None
        document = document.get("strokes")
    if not isinstance(document, list):
        raise BadInk(
            'JSON ink must be a list of strokes, [[[x, y], ...], ...], or {"strokes": [...]}.'
        )
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
        fields = point.split()
        if not fields:
            continue
        try:
            points.append((float(fields[0]), float(fields[1])))
        except (ValueError, IndexError):
            raise BadInk(
                f"Trace {index + 1} of the InkML has the point {point.strip()[:40]!r}, which is "
                "not two numbers."
            ) from None
    return np.array(points, dtype=np.float64).reshape(-1, 2)


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
    scale = min(scale, MAX_DRAWING / span) if span > 0 else scale
    return [((stroke - low) * scale + margin).astype(np.float32) for stroke in strokes]


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
