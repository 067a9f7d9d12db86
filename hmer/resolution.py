"""Brings a clean picture that was enlarged back to the resolution that it was made from.

By iterative back-projection (Irani and Peleg, "Improving resolution by image registration", 1991):
find the picture that, enlarged as this one was, gives this one. Where the method is known (linear,
cubic or Lanczos, of OpenCV or Pillow, by a whole number) it comes back to the last grey level but
one; of other methods the nearest is taken.

Small writing is left as small as it is: doubling it the same way kept more answers of pictures
that had been reduced, and cost four points of ExpRate on pictures that people had made small.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Gray = NDArray[np.uint8]
Levels = NDArray[np.float32]
Resample = Callable[[Levels, tuple[int, int]], Levels]

_TRIALS, _ROUNDS = 12, 16  # back-projections for each method, and for the one that fits best
_STEP = 1.5  # over-relaxation: the means damp what a kernel has blurred
_EXACT = 0.8  # grey levels: rounding alone leaves no more
_EXPLAINED = 0.1  # square grey levels, mean: a method leaves only what rounding did


def _by_opencv(method: int) -> Resample:
    def resample(levels: Levels, size: tuple[int, int]) -> Levels:
        return np.asarray(cv2.resize(levels, size, interpolation=method), np.float32)

    return resample


def _by_pillow(method: Any) -> Resample:
    def resample(levels: Levels, size: tuple[int, int]) -> Levels:
        return np.asarray(Image.fromarray(levels).resize(size, method), np.float32)

    return resample


# Pillow's cubic has another parameter than OpenCV's; its linear one is the same, but for rounding.
_METHODS = (
    _by_opencv(cv2.INTER_CUBIC),
    _by_opencv(cv2.INTER_LINEAR),
    _by_pillow(Image.Resampling.BICUBIC),
    _by_opencv(cv2.INTER_LANCZOS4),
    _by_pillow(Image.Resampling.LANCZOS),
)


def unenlarged(gray: Gray, times: int) -> Gray:
    """The picture, uint8 (H / times, W / times), that became ``gray`` when it was enlarged."""
    wanted = gray.astype(np.float32)
    height, width = (max(1, round(side / times)) for side in gray.shape)
    start = _by_opencv(cv2.INTER_AREA)(wanted, (width, height))
    best: tuple[float, Resample, Levels] | None = None
    for method in _METHODS:
        found, error = _projected(start, wanted, method, _TRIALS)
        if best is None or error < best[0]:
            best = (error, method, found)
        if error < _EXPLAINED:  # twice by linear can be taken for a cubic: the first one counts
            break
    assert best is not None
    found, _ = _projected(best[2], wanted, best[1], _ROUNDS)
    return np.asarray(np.rint(found), np.uint8)


def _projected(
    found: Levels, wanted: Levels, enlarge: Resample, rounds: int
) -> tuple[Levels, float]:
    """``found`` after so many corrections, and the mean square of what it does not explain."""
    size, small = (wanted.shape[1], wanted.shape[0]), (found.shape[1], found.shape[0])
    rest = wanted - np.clip(enlarge(found, size), 0.0, 255.0)
    for _ in range(rounds):
        change = cv2.resize(rest, small, interpolation=cv2.INTER_AREA)
        found = np.clip(found + _STEP * change, 0.0, 255.0).astype(np.float32)
        rest = wanted - np.clip(enlarge(found, size), 0.0, 255.0)
        if float(np.abs(rest).max()) < _EXACT:
            break
    return found, float(np.square(rest).mean())
