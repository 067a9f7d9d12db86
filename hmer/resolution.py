"""Brings a clean picture that was enlarged back to the resolution that it was made from.

By iterative back-projection (Irani and Peleg, "Improving resolution by image registration", 1991):
find the picture that, enlarged as this one was, gives this one. Where the method is known (linear,
cubic or Lanczos, of OpenCV or Pillow, by a whole number) it comes back to the last grey level but
one. Which method it was, a small part of the picture tells.

Small writing is left as it is (``hmer.small`` brings it to size): doubling it the same way kept
more answers of pictures that had been reduced, and cost four points of ExpRate on pictures that
people had made small.
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

_TRIALS, _ROUNDS = 3, 12  # back-projections for each method on a part, and on the whole
_STEP = 1.5  # over-relaxation: the means damp what a kernel has blurred
_EXACT = 0.8  # grey levels: rounding alone leaves no more
# Square grey levels, mean, that a method leaves: the right one below 0.2, Pillow's, which cuts
# overshoots off between its two passes, below 2; of other methods and factors none below 3.
_EXPLAINED, _PLAUSIBLE = 0.5, 2.5
_PART, _EDGE = 32, 4  # sides of the part, and of its edge, whose neighbours it lacks


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


def unenlarged(gray: Gray, times: int) -> Gray | None:
    """The picture, uint8 (H / times, W / times), that became ``gray`` when it was enlarged.

    ``None`` where no known method made ``gray``, or not by this number.
    """
    if any(side % times for side in gray.shape):
        return None
    method = _method(gray, times)
    if method is None:
        return None
    found, _ = _projected(gray.astype(np.float32), times, method, _ROUNDS)
    return np.asarray(np.rint(found), np.uint8)


def _method(gray: Gray, times: int) -> Resample | None:
    """The method that explains the busiest part of ``gray`` best; ``None`` if none does."""
    part = _busiest(gray, times).astype(np.float32)
    best: tuple[float, Resample] | None = None
    for method in _METHODS:
        _, rest = _projected(part, times, method, _TRIALS)
        error = float(np.square(_inside(rest, _EDGE * times)).mean())
        if best is None or error < best[0]:
            best = (error, method)
        if error < _EXPLAINED:  # twice by linear can be taken for a cubic: the first one counts
            break
    assert best is not None
    return best[1] if best[0] < _PLAUSIBLE else None


def _busiest(gray: Gray, times: int) -> Gray:
    """The part of ``gray`` whose levels change most, on the grid of the smaller picture."""
    side = _PART * times
    if max(gray.shape) <= side:
        return gray
    change = np.abs(cv2.Laplacian(gray, cv2.CV_32F))
    height, width = (length // times for length in gray.shape)
    small = cv2.resize(change, (width, height), interpolation=cv2.INTER_AREA)
    sums = cv2.integral(small)
    part = (min(_PART, height), min(_PART, width))
    inside = (
        sums[part[0] :, part[1] :]
        - sums[: -part[0], part[1] :]
        - sums[part[0] :, : -part[1]]
        + sums[: -part[0], : -part[1]]
    )
    top, left = np.unravel_index(int(inside.argmax()), inside.shape)
    return gray[
        top * times : (top + part[0]) * times,
        left * times : (left + part[1]) * times,
    ]


def _inside(levels: Levels, edge: int) -> Levels:
    """Without the edge, along each side that is long enough to go without."""
    height, width = (edge if side > 3 * edge else 0 for side in levels.shape)
    return levels[height : levels.shape[0] - height, width : levels.shape[1] - width]


def _projected(wanted: Levels, times: int, enlarge: Resample, rounds: int) -> tuple[Levels, Levels]:
    """What ``wanted`` was enlarged from, after so many corrections, and what that leaves."""
    size = (wanted.shape[1], wanted.shape[0])
    small = (size[0] // times, size[1] // times)
    found = _by_opencv(cv2.INTER_AREA)(wanted, small)
    rest = wanted - np.clip(enlarge(found, size), 0.0, 255.0)
    for _ in range(rounds):
        change = cv2.resize(rest, small, interpolation=cv2.INTER_AREA)
        found = np.clip(found + _STEP * change, 0.0, 255.0).astype(np.float32)
        rest = wanted - np.clip(enlarge(found, size), 0.0, 255.0)
        if float(np.abs(rest).max()) < _EXACT:
            break
    return found, rest
