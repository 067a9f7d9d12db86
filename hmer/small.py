"""Small writing: how large it is, and how it becomes as large as a network was trained on.

A pixel of small writing holds the edges of two strokes. Counted by whole pixels, strokes that
nearly touch are one, and the writing seems larger than it is: of 196 held-out CROHME formulas
reduced to a half, one in four by 6 % or more and one in twenty by 26 %, against 0.5 % and 6 % when
the pixels are interpolated first. Enlarged by interpolation alone its edges are blurred, and those
of pictures in one bit are stairs; here they get the width that they had.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Gray = NDArray[np.uint8]

_BETWEEN = (64, 192)  # levels of 255 that neither paper nor ink has
_TWO_LEVELS = 0.02  # share of such pixels below which a picture is of one bit
_STAIRS = 0.5  # pixels: the deviation of the Gaussian that smooths stairs
_STEEPER = 1.6  # what that Gaussian takes from an edge


def doubled(ink: Gray) -> Gray:
    """Ink uint8 (H, W) at twice its size, interpolated by cubics: uint8 (2H, 2W)."""
    height, width = ink.shape
    return _gray(cv2.resize(ink, (2 * width, 2 * height), interpolation=cv2.INTER_CUBIC))


def enlarged(ink: Gray, size: tuple[int, int]) -> Gray:
    """Ink uint8 (H, W), 255 on 0, at ``size`` (height, width), no smaller, with sharp edges."""
    height, width = size
    scale = height / ink.shape[0] if height > width else width / ink.shape[1]
    stairs = _one_bit(ink)
    # At twice the size an edge is cut by half pixels; the mean of four gives it grey levels again.
    fine: NDArray[Any] = cv2.resize(
        ink,
        (2 * width, 2 * height),
        interpolation=cv2.INTER_LINEAR if stairs else cv2.INTER_CUBIC,
    )
    steepness = scale
    if stairs:
        deviation = 2.0 * scale * _STAIRS
        fine = cv2.GaussianBlur(fine, (0, 0), deviation, borderType=cv2.BORDER_CONSTANT)
        steepness *= _STEEPER
    # Around half of the ink's level, so that edges stay where they are.
    levels = np.clip((np.arange(256) - 127.5) * steepness + 127.5, 0, 255)
    fine = cv2.LUT(_gray(fine), np.rint(levels).astype(np.uint8))
    return _gray(cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA))


def _one_bit(ink: Gray) -> bool:
    low, high = _BETWEEN
    between = np.count_nonzero((ink >= low) & (ink < high))
    return bool(between < _TWO_LEVELS * np.count_nonzero(ink >= low))


def _gray(image: object) -> Gray:
    """OpenCV's stubs know no dtypes; all images here are uint8."""
    return np.asarray(image, np.uint8)
