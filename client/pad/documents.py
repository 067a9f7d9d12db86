"""Answers and errors as the JSON documents of the REST end point."""

from __future__ import annotations

from typing import Any

import numpy as np

from hmer import ink
from hmer.errors import (
    BadParameter,
    Cancelled,
    DeadlineExceeded,
    HmerError,
    ImageTooLarge,
    InputError,
    Overloaded,
    ServerUnavailable,
)
from hmer.mathml import to_mathml
from hmer.recognition import Alternative, AttentionMaps, Recognition

# The first class that an error is one of decides; 500 for the rest.
_STATUS: tuple[tuple[type[HmerError], int], ...] = (
    (ImageTooLarge, 413),
    (InputError, 400),
    (ServerUnavailable, 503),
    (Overloaded, 503),
    (Cancelled, 503),
    (DeadlineExceeded, 504),
)


def status_of(error: HmerError) -> int:
    """The HTTP status for ``error``."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def error_document(error: HmerError) -> dict[str, Any]:
    """``{"error": {"code": ..., "message": ...}}``."""
    return {"error": error.to_dict()}


def answer_document(answer: Recognition, data: bytes) -> dict[str, Any]:
    """An answer to ``data``, with MathML; ``mathml`` is null for an answer that has none.

    ``attention``, where it was asked for: ``maps[t][row][column]`` for each token, each of sum 1,
    and the ``box`` (left, top, right, bottom) that they cover, in pixels of the picture as it is
    to be looked at, or in the unit of the strokes.
    """
    document = answer.to_dict() | {"mathml": _mathml(answer)}
    document["alternatives"] = [
        other.to_dict() | {"mathml": _mathml(other)} for other in answer.alternatives
    ]
    if answer.attention is not None:
        document["attention"] = _attention(answer.attention, data)
    return document


def _mathml(answer: Alternative) -> str | None:
    try:
        return to_mathml(answer.latex)
    except BadParameter:
        return None


def _attention(attention: AttentionMaps, data: bytes) -> dict[str, Any]:
    box = np.array(attention.box, np.float64).reshape(2, 2)
    scale, shift = _drawing_of(data)
    return {
        "box": ((box - shift) / scale).ravel().round(3).tolist(),
        "maps": np.asarray(attention.maps, np.float64).round(4).tolist(),
    }


def _drawing_of(data: bytes) -> tuple[float, np.ndarray[Any, np.dtype[np.float64]]]:
    """How ink was drawn: pixels = unit * scale + shift; of a picture 1 and 0."""
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n")
    if head.startswith(b"<"):
        strokes = ink.parse_inkml(data).strokes
    elif head.startswith((b"{", b"[")):
        strokes = ink.parse_strokes(data).strokes
    else:
        return 1.0, np.zeros(2)
    points = np.concatenate(strokes).astype(np.float64)
    placed = np.concatenate(ink.place(strokes)).astype(np.float64)
    span = float(np.ptp(points, axis=0).max())
    scale = float(np.ptp(placed, axis=0).max()) / span if span > 0 else 1.0
    return scale, placed.min(axis=0) - points.min(axis=0) * scale
