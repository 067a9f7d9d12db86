"""Takes away what paper, light and cameras add to a picture, before its ink is measured.

A clean picture (a drawing program's, a rendering of ink: paper of one level, sharp edges) comes
back as it is, the very same array: a network trained on such pictures sees no difference. The
others are brought as near as can be to the clean picture that they were made from:

- uneven light, noise and compression: the paper is estimated and divided out, blurred edges are
  made steep again around half of the ink's level, so that they stay where they were;
- printed lines and squares across the whole picture count as paper;
- a picture that was enlarged (no edge is sharp) goes back to the resolution that it really has
  (``hmer.resolution``).

Colours become the one scale from paper to ink that tells them apart best.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from hmer.resolution import unenlarged

Gray = NDArray[np.uint8]
Levels = NDArray[np.float32]

MAX_PIXELS = 16_000_000  # more are averaged first: memory, and no detail that counts
MAX_FINE_PIXELS = 4_000_000  # the same where more is done to each
_DIRT = 0.15  # pixels of stained paper for one of ink: above, the paper is not clean
_STAIN = 2  # grey levels from the paper that count as a stain
_BLURRED = 1.5  # pixels of an edge's ramp, of which a sharp one has less than 1
_SHARP_RAMP = 0.75  # the ramp measured at antialiased edges
_MAX_STEEPNESS = 4.0
_EDGE = 0.5  # of the ink's level: where an edge stays when it is made steep
_FAINTEST = 0.75  # a line of so much ink is as good as a full one
_SURE = 0.55  # a component without a pixel of so much ink is a stain
_RULE = (0.04, 0.7)  # levels of printed lines, of the ink's 1
_LEAST_CONTRAST = 24.0  # grey levels; below there is nothing to mend (hmer.preprocess)


class Mended(NamedTuple):
    """``gray`` uint8 (H', W'), and how many of its pixels a pixel of the input became."""

    gray: Gray
    factor: float


def mend(gray: Gray) -> Mended:
    """A picture of either polarity without what paper, light and camera added.

    uint8 (H, W). A clean one is returned as it is, with the factor 1; else ink is bright on 0.
    """
    gray, factor = _reduced(gray, MAX_PIXELS)
    found = _signed(gray)
    if found is None:
        return Mended(gray, factor)
    levels, peak = found
    if _is_dirty(levels, peak):
        gray, further = _from_dirty(gray)
    elif (ruled := _without_rules(levels / peak)) is not None:
        gray, further = _to_gray(ruled), 1.0
    else:
        gray, further = _at_true_size(gray, levels / peak)
    return Mended(gray, factor * further)


def _signed(gray: Gray) -> tuple[Levels, float] | None:
    """Differences from the paper's level, ink positive, and the greatest; None for none."""
    counts = histogram(gray)
    paper = median_level(counts)
    levels = gray.astype(np.float32) - np.float32(paper)
    if int(counts @ np.arange(256)) < paper * gray.size:
        levels = -levels
    peak = float(levels.max())
    return (levels, peak) if peak >= _LEAST_CONTRAST else None


def median_level(counts: NDArray[np.int64]) -> float:
    """``np.median`` of uint8 levels from their ``histogram``: far faster on a large picture."""
    below = np.cumsum(counts)
    middle = np.searchsorted(below, ((below[-1] - 1) // 2, below[-1] // 2), side="right")
    return float(middle.mean())


def histogram(gray: Gray) -> NDArray[np.int64]:
    """How many pixels each of the 256 levels has: int64 (256,)."""
    if gray.size >= 1 << 24:  # OpenCV counts in float32, which is exact so far
        return np.bincount(gray.ravel(), minlength=256)
    counts = cv2.calcHist([gray], [0], None, [256], [0, 256])
    return np.asarray(counts, np.float32).ravel().astype(np.int64)


def _is_dirty(levels: Levels, peak: float) -> bool:
    """Whether far from ink much of the paper is stained."""
    ink = (levels >= 0.25 * peak).astype(np.uint8)
    far = cv2.dilate(ink, np.ones((5, 5), np.uint8)) == 0
    stains = int(np.count_nonzero((np.abs(levels) > _STAIN) & far))
    return stains > _DIRT * cv2.countNonZero(ink)


def _ramp(levels: Levels) -> float:
    """The width of the ink's edges in pixels; ``levels`` relative to the ink's."""
    mask = (levels >= 0.5).astype(np.uint8)
    edge = cv2.countNonZero(mask) - cv2.countNonZero(cv2.erode(mask, np.ones((3, 3), np.uint8)))
    between = int(np.count_nonzero((levels > 0.25) & (levels < 0.75)))
    return 2.0 * between / max(edge, 1)


def _to_gray(levels: Levels) -> Gray:
    return np.asarray(np.rint(np.clip(levels, 0.0, 1.0) * 255.0), np.uint8)


def _resized(gray: Gray, factor: float, method: int) -> Gray:
    height, width = (max(1, round(side * factor)) for side in gray.shape)
    return np.asarray(cv2.resize(gray, (width, height), interpolation=method), np.uint8)


# --- colour


def gray_of_colours(rgb: Gray) -> Gray | None:
    """How much of the ink's colour each pixel has: uint8 (H, W) for ``rgb`` uint8 (H, W, 3).

    Ink darker than its paper gets 0 on 255, else 255 on 0. None where luminance will do: for a
    picture without colours, and for paper that has no one colour.
    """
    if rgb.size > 3 * MAX_FINE_PIXELS:
        return None
    if np.array_equal(rgb[..., 0], rgb[..., 1]) and np.array_equal(rgb[..., 1], rgb[..., 2]):
        return None
    paper = np.median(rgb.reshape(-1, 3), axis=0)
    if float((rgb == paper).all(axis=2).mean()) < 0.5:
        return None
    change = rgb.astype(np.float32) - paper.astype(np.float32)
    amount = np.sqrt(np.square(change).sum(axis=2))
    strongest = float(amount.max())
    if strongest < _LEAST_CONTRAST:
        return None
    ink = np.median(change[amount >= 0.9 * strongest], axis=0)
    share = np.clip(change @ (ink / float(np.square(ink).sum())), 0.0, 1.0)
    gray = np.rint(share * 255.0).astype(np.uint8)
    return np.asarray(gray if float(ink.sum()) > 0 else 255 - gray, np.uint8)


# --- size


def _reduced(gray: Gray, most: int) -> Mended:
    """The picture by the smallest whole number that leaves no more than ``most`` pixels."""
    if gray.size <= most:
        return Mended(gray, 1.0)
    factor = 1.0 / math.ceil(math.sqrt(gray.size / most))
    return Mended(_resized(gray, factor, cv2.INTER_AREA), factor)


def _at_true_size(gray: Gray, levels: Levels) -> Mended:
    """A picture that was enlarged by the whole number that its edges are wide, as it was before.

    One that was enlarged by another factor, or by a program that is not known, stays as it is.
    """
    ramp = _ramp(levels)
    if ramp < _BLURRED:
        return Mended(gray, 1.0)
    times = round(ramp)
    if gray.size > MAX_FINE_PIXELS:
        # Not the mean of the area: that would blur once more.
        return Mended(_resized(gray, 1.0 / times, cv2.INTER_CUBIC), 1.0 / times)
    found = unenlarged(gray, times)
    return Mended(gray, 1.0) if found is None else Mended(found, 1.0 / times)


# --- printed lines


def _without_rules(levels: Levels) -> Levels | None:
    """``levels`` with lines from edge to edge counted as paper; None where there are none."""
    # Medians are slow. One is above the lowest level only where half of the pixels are.
    above = (levels > _RULE[0]).astype(np.uint8)
    height, width = above.shape
    across = 2 * cv2.reduce(above, 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel() >= width
    down = 2 * cv2.reduce(above, 0, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel() >= height
    rows, columns = _rules(levels, across), _rules(levels.T, down)
    if not rows.any() and not columns.any():
        return None
    paper = np.maximum(rows[:, None], columns[None, :])
    return np.asarray((levels - paper) / (1.0 - paper), np.float32)


def _rules(levels: Levels, candidates: NDArray[np.bool_]) -> Levels:
    """The level (H,) of the line that fills each of the ``candidates`` (H,), 0 where none does.

    Fainter than ink, and at both ends of the row as in its middle: a fraction bar is not.
    """
    low, high = _RULE
    height, width = levels.shape
    found = np.zeros(height, np.float32)
    rows = np.flatnonzero(candidates)
    if not len(rows):
        return found
    levels, end = levels[rows], max(2, width // 50)
    middle = np.median(levels, axis=1)
    left, right = np.median(levels[:, :end], axis=1), np.median(levels[:, -end:], axis=1)
    is_rule = (middle > low) & (middle < high)
    for side in (left, right):
        is_rule &= np.abs(side - middle) < 0.5 * middle
    found[rows] = np.where(is_rule, middle, 0.0)
    return found


def _steep(levels: Levels) -> Levels:
    """Blurred edges as steep as sharp ones, around the level that ``INK_LEVEL`` cuts at."""
    steepness = min(max(_ramp(levels) / _SHARP_RAMP, 1.0), _MAX_STEEPNESS)
    steep = _EDGE + (levels - _EDGE) * steepness
    return np.asarray(np.clip(steep, 0.0, 1.0), np.float32)


def _local_peak(levels: Levels) -> Levels:
    """The ink's own level around each pixel: a thin or faint line has less than 1."""
    highest = cv2.dilate(np.clip(levels, _FAINTEST, 1.0), np.ones((7, 7), np.uint8))
    return np.asarray(cv2.GaussianBlur(highest, (0, 0), 2.0), np.float32)


# --- light, noise, compression


def _from_dirty(gray: Gray) -> Mended:
    gray, factor = _reduced(gray, MAX_FINE_PIXELS)
    levels = _flat(gray)
    ruled = _without_rules(levels)
    if ruled is not None:
        levels = ruled
    levels = _steep(levels / _local_peak(levels))
    return Mended(_to_gray(_without_stains(levels)), factor)


def _flat(gray: Gray) -> Levels:
    """Ink relative to the paper around it, about 0 on paper and 1 in ink: float32 (H, W)."""
    picture = gray.astype(np.float32) + 1.0
    paper = _paper(gray) + 1.0
    difference = paper - picture
    is_dark_ink = float(difference.sum(dtype=np.float64)) > 0
    # Light falls on dark ink and its paper alike: their ratio is without it.
    levels = difference / paper if is_dark_ink else -difference
    sure = levels[levels >= 0.5 * float(levels.max())]
    return np.asarray(levels / max(float(np.median(sure)), 1e-3), np.float32)


def _paper(gray: Gray) -> Levels:
    """The paper's level at each pixel: wide medians, then their mean without the ink."""
    step = max(1, round(max(gray.shape) / 256))
    small = _resized(gray, 1.0 / step, cv2.INTER_AREA)
    window = max(small.shape) // 4 | 1
    rough = _blown_up(cv2.medianBlur(small, min(window, 255)).astype(np.float32), gray.shape)
    difference = np.abs(gray.astype(np.float32) - rough)
    is_even = (difference < 0.2 * float(difference.max())).astype(np.float32)
    is_paper = np.asarray(cv2.erode(is_even, np.ones((5, 5), np.uint8)), np.float32)
    # A weighted mean over paper alone: ink has the weight 0.
    sigma = max(gray.shape) / 24.0
    weight = _wide_mean(is_paper, sigma)
    mean = _wide_mean(is_paper * gray, sigma)
    return np.where(weight > 1e-3, mean / np.maximum(weight, 1e-3), rough).astype(np.float32)


def _wide_mean(values: Levels, sigma: float) -> Levels:
    """A Gaussian mean, on a smaller picture: ``sigma`` in pixels is wide."""
    step = max(1, int(sigma / 4))
    height, width = (max(1, -(-side // step)) for side in values.shape)
    small = cv2.resize(values, (width, height), interpolation=cv2.INTER_AREA)
    mean = cv2.GaussianBlur(small, (0, 0), sigma / step, borderType=cv2.BORDER_REFLECT)
    return _blown_up(np.asarray(mean, np.float32), values.shape)


def _blown_up(values: Levels, shape: tuple[int, ...]) -> Levels:
    size = (shape[1], shape[0])
    return np.asarray(cv2.resize(values, size, interpolation=cv2.INTER_LINEAR), np.float32)


def _without_stains(levels: Levels) -> Levels:
    """``levels`` without the components that nowhere reach the level of ink."""
    mask = (levels >= 0.25).astype(np.uint8)
    count, labels = cv2.connectedComponents(mask, connectivity=8)
    sure = np.zeros(count, np.bool_)
    sure[np.unique(labels[levels >= _SURE])] = True
    sure[0] = False
    keep = cv2.dilate(sure[labels].astype(np.uint8), np.ones((3, 3), np.uint8))
    return np.where(keep > 0, levels, 0.0).astype(np.float32)
