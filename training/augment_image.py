"""Augmentation of pictures, strictly before preprocessing: another hand, another pen.

The ranges are those of the ink (``training.augment.AugmentSettings``) and mean the same: a
picture is first brought to the size at which ink is drawn, where a typical symbol is
``hmer.ink.STROKE_HEIGHT`` pixels high. Single strokes are not known, so they do not move on
their own.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from hmer.ink import STROKE_HEIGHT
from hmer.preprocess import INK_LEVEL, Gray, extract_ink, typical_height
from training.augment import AugmentSettings

MAX_PIXELS = 4_000_000  # of the enlarged picture: specks of dust must not cost memory
MAX_ENLARGEMENT = 4.0
_PEN_EXCESS = 0.8  # pixels that a drawn line is wider than the pen it was drawn with
_PAPER_MARGIN = 8  # pixels added on every side


def augment_picture(gray: Gray, settings: AugmentSettings, rng: np.random.Generator) -> Gray:
    """Draw one random variation of a picture: uint8 (H, W) of either polarity and any size.

    The result is uint8 (H', W'), ink bright on dark paper. An affine change (aspect, shear,
    rotation) and a smooth distortion are one resampling; then the pen gets thicker or thinner.
    Raises ``BlankImage`` where there is no ink.
    """
    levels, pen = _scaled(gray)
    return _with_pen(_warped(levels, settings, rng), pen, float(rng.choice(settings.pens)))


def _scaled(gray: Gray) -> tuple[Gray, float]:
    """The ink at the size of drawn ink, and about its pen width in pixels there."""
    ink = extract_ink(gray)
    paper = np.float32(np.median(gray))
    sign = np.sign(gray[ink >= INK_LEVEL].mean() - paper)
    # Differences from the paper as they are: preprocessing stretches them, and only once.
    distance = np.maximum((gray - paper) * sign, 0.0)
    levels = (distance * (255.0 / distance.max())).astype(np.uint8)
    most = math.sqrt(MAX_PIXELS / levels.size)
    scale = min(STROKE_HEIGHT / typical_height(ink), most, MAX_ENLARGEMENT)
    method = cv2.INTER_AREA if scale < 1.0 else cv2.INTER_CUBIC
    height, width = (max(1, round(side * scale)) for side in levels.shape)
    scaled = cv2.resize(levels, (width, height), interpolation=method)
    m = _PAPER_MARGIN
    bordered = _gray(cv2.copyMakeBorder(scaled, m, m, m, m, cv2.BORDER_CONSTANT, value=(0,)))
    return bordered, pen_width(bordered)


def pen_width(levels: Gray) -> float:
    """The median width of the lines in pixels: twice the largest distances to their edges."""
    mask = (levels >= 128).astype(np.uint8)
    distance = cv2.distanceTransform(mask, cv2.DIST_L2, 5)
    ridge = (distance >= cv2.dilate(distance, np.ones((3, 3), np.uint8))) & (mask > 0)
    return 2.0 * float(np.median(distance[ridge])) - 1.0 if ridge.any() else 1.0


def _warped(levels: Gray, settings: AugmentSettings, rng: np.random.Generator) -> Gray:
    """Aspect, shear, rotation and smooth waves in one resampling; the canvas grows to fit."""
    stretch = math.exp(rng.uniform(-settings.aspect, settings.aspect))
    shear = rng.uniform(-settings.shear, settings.shear)
    angle = math.radians(rng.uniform(-settings.rotation, settings.rotation))
    cosine, sine = math.cos(angle), math.sin(angle)
    matrix = np.array([[cosine, -sine], [sine, cosine]]) @ np.array([[stretch, shear], [0, 1]])
    wave = settings.wobble * STROKE_HEIGHT
    phases = rng.uniform(0, 2 * math.pi, 4)
    periods = rng.uniform(2.0, 6.0, 4) * STROKE_HEIGHT
    amplitudes = rng.uniform(0.0, wave, 4)

    height, width = levels.shape
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]]) @ matrix.T
    low = corners.min(axis=0) - wave
    new_width, new_height = np.ceil(corners.max(axis=0) + wave - low).astype(int)
    # Every pixel of the result asks where its ink comes from: waves back, then the matrix back.
    x = low[0] + np.arange(new_width)
    y = low[1] + np.arange(new_height)
    across = _waves(x, amplitudes[[0, 2]], periods[[0, 2]], phases[[0, 2]])
    down = _waves(y, amplitudes[[1, 3]], periods[[1, 3]], phases[[1, 3]])
    from_x = x[None, :] - across[0][None, :] - down[0][:, None]
    from_y = y[:, None] - across[1][None, :] - down[1][:, None]
    back = np.linalg.inv(matrix)
    map_x = (back[0, 0] * from_x + back[0, 1] * from_y).astype(np.float32)
    map_y = (back[1, 0] * from_x + back[1, 1] * from_y).astype(np.float32)
    return _gray(cv2.remap(levels, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT))


def _waves(
    places: NDArray[np.float64],
    amplitudes: NDArray[np.float64],
    periods: NDArray[np.float64],
    phases: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Displacements along x and y, (2, n), of sine waves over ``places`` (n,) in pixels."""
    angles = 2 * math.pi * places[None, :] / periods[:, None] + phases[:, None]
    waves: NDArray[np.float64] = amplitudes[:, None] * np.sin(angles)
    return waves


def _with_pen(levels: Gray, pen: float, wanted: float) -> Gray:
    """Lines of about ``pen`` pixels made about ``wanted`` wide by dilation or erosion.

    Fractions of a pixel are mixed from the two nearest widths.
    """
    change = wanted + _PEN_EXCESS - max(pen, 1.0)
    whole = int(abs(change))
    lighter, heavier = (_morphed(levels, n, change > 0) for n in (whole, whole + 1))
    part = abs(change) - whole
    return _gray(cv2.addWeighted(lighter, 1.0 - part, heavier, part, 0.0))


def _morphed(levels: Gray, pixels: int, thicker: bool) -> Gray:
    if pixels == 0:
        return levels
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (pixels + 1, pixels + 1))
    if thicker:
        return _gray(cv2.dilate(levels, kernel))
    # What is thinner than the kernel (the top-hat) stays: no hairline vanishes.
    hairlines = cv2.morphologyEx(levels, cv2.MORPH_TOPHAT, kernel)
    return np.maximum(_gray(cv2.erode(levels, kernel)), _gray(hairlines))


def _gray(image: object) -> Gray:
    """OpenCV's stubs know no dtypes; all images here are uint8."""
    return np.asarray(image, np.uint8)
