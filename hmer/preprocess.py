"""Image -> network input: the only decode, polarity, crop, scale and pad of the project.

Training, export, serving and the in-process recogniser all call this module; what a
network was trained with travels as ``PreprocessSettings`` in its bundle. The picture is
brought to one size of *writing* (not to one size of image): the typical height of its
connected components becomes ``symbol_height`` pixels, so that any resolution, crop or
margin gives nearly the same network input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from hmer import ink
from hmer.errors import BlankImage, EmptyInput, ImageTooSmall
from hmer.paper import histogram, median_level, mend
from hmer.pictures import FORMATS as FORMATS
from hmer.pictures import MAX_INPUT_PIXELS as MAX_INPUT_PIXELS
from hmer.pictures import MIN_INPUT_SIDE as MIN_INPUT_SIDE
from hmer.pictures import decode_image as decode_image
from hmer.preprocess_settings import PreprocessSettings as PreprocessSettings
from hmer.small import doubled, enlarged

Gray = NDArray[np.uint8]

MIN_CONTRAST = 24  # grey levels between paper and ink
INK_LEVEL = 64  # of 255: a brighter pixel is ink
SMALL_HEIGHT = 40.0  # pixels: lower writing is measured again, between its pixels
# So much ink and paper in such writing is limited by `max_pixels`, not by the writing's height.
_MOST_SMALL = 1_000_000
_SMALL_INK_LEVEL = 80  # the same there, where strokes that nearly touch have a gap
_UTF16 = (b"\xff\xfe", b"\xfe\xff")  # how a text in it begins


class Measured(NamedTuple):
    """A picture's ink (H, W), cropped, 255 on 0, and its typical height in pixels.

    ``factor`` pixels of it were one of the input; ``origin``: x, y of the crop in the input.
    """

    ink: Gray
    height: float
    factor: float
    origin: tuple[float, float]


class Prepared(NamedTuple):
    """A network input and how it came about: output = (input - origin) * scale + margin."""

    image: Gray
    scale: float
    origin: tuple[float, float]  # x, y of the crop in the input
    margin: int


def load(data: bytes, settings: PreprocessSettings) -> Gray:
    """Encoded picture or ink to the network's input, uint8 (H, W), ink 255 on 0.

    Raises an ``InputError`` that says what is wrong with ``data``.
    """
    return preprocess(decode(data), settings)


def load_at(data: bytes, settings: PreprocessSettings, zooms: Sequence[float]) -> list[Gray]:
    """``load`` at several sizes (``hmer.looks``), read and measured once."""
    measured = measure(decode(data))
    return [scale_to(measured, settings, zoom).image for zoom in zooms]


def decode(data: bytes) -> Gray:
    """InkML, JSON strokes, or an encoded picture to gray levels, uint8 (H, W)."""
    if not data:
        raise EmptyInput("The input is empty (0 bytes).")
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n")
    if head.startswith((b"<", *_UTF16)):
        return ink.render(ink.parse_inkml(data).strokes)
    if head.startswith((b"{", b"[")):
        return ink.render(ink.parse_strokes(data).strokes)
    return decode_image(data)


def extract_ink(gray: Gray) -> Gray:
    """Ink of either polarity on paper of any level: uint8 (H, W), 0 paper to 255 ink.

    The paper is the median level, the ink what deviates from it to the side with the
    greater mass. Raises ``BlankImage``.
    """
    counts = histogram(gray)
    paper = round(median_level(counts))
    from_paper = np.arange(256) - paper
    mass = counts * from_paper
    if -mass[:paper].sum() >= mass[paper:].sum():
        from_paper = -from_paper
    peak = int(from_paper[counts > 0].max())
    if peak < MIN_CONTRAST:
        raise BlankImage("The picture is blank: no ink stands out from its background.")
    # The faint quarter is paper texture and compression noise.
    floor = peak * 0.25
    stretched = (from_paper.astype(np.float32) - floor) * (255.0 / (peak - floor))
    return np.asarray(cv2.LUT(gray, np.clip(stretched, 0, 255).astype(np.uint8)), np.uint8)


def typical_height(ink_levels: Gray) -> float:
    """Mean height in pixels of the components taller than 10 % of the tallest.

    A picture of thin horizontal bars alone is measured by its pen width instead: writing
    is not lower than five pen widths.
    """
    height = _height(ink_levels, INK_LEVEL)
    if height >= SMALL_HEIGHT or ink_levels.size > _MOST_SMALL:
        return height
    return _height(doubled(ink_levels), _SMALL_INK_LEVEL) / 2


def _height(ink_levels: Gray, ink_level: int) -> float:
    mask = (ink_levels >= ink_level).astype(np.uint8)
    count, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    heights = stats[1:count, cv2.CC_STAT_HEIGHT].astype(np.float64)
    mean = float(heights[heights >= 0.1 * heights.max()].mean())
    if mask.all():  # a perfect bar or dot, cropped: its edges are those of the picture
        mask = np.pad(mask, 1)
    # Across a line of width p the distance to its edge averages p / 4.
    distance = cv2.distanceTransform(mask, cv2.DIST_L2, 3)
    pen = 4.0 * float(distance.sum()) / float(mask.sum())
    return max(mean, 5.0 * pen)


def preprocess(gray: Gray, settings: PreprocessSettings, zoom: float = 1.0) -> Gray:
    """Gray levels to the network's input: uint8 (H, W), ink 255 on 0. See ``prepare``."""
    return prepare(gray, settings, zoom).image


def prepare(gray: Gray, settings: PreprocessSettings, zoom: float = 1.0) -> Prepared:
    """Crop to the ink, scale to the settings' symbol height times ``zoom``, add the margin.

    What paper and camera added is taken away before (``hmer.paper``; nothing from a clean picture).

    ``zoom`` is training's scale augmentation, applied where the scale is set so that the
    normalisation does not cancel it, and what several looks at one input differ in.
    """
    return scale_to(measure(gray), settings, zoom)


def measure(gray: Gray) -> Measured:
    """The part of ``prepare`` that all sizes share. Raises an ``InputError``."""
    if max(gray.shape) < MIN_INPUT_SIDE:
        raise ImageTooSmall(
            f"The picture has {gray.shape[1]} x {gray.shape[0]} pixels, too few to hold a formula."
        )
    gray, factor = mend(gray)
    levels = extract_ink(gray)
    rows = np.flatnonzero((levels >= INK_LEVEL).any(axis=1))
    columns = np.flatnonzero((levels >= INK_LEVEL).any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    levels = levels[top : rows[-1] + 1, left : columns[-1] + 1]
    return Measured(levels, typical_height(levels), factor, (left / factor, top / factor))


def scale_to(measured: Measured, settings: PreprocessSettings, zoom: float = 1.0) -> Prepared:
    """The rest of ``prepare``: measured ink at the size that ``settings`` and ``zoom`` ask for."""
    levels = measured.ink
    height, width = levels.shape
    scale = settings.symbol_height * zoom / measured.height
    border = 2 * settings.margin
    scale = min(
        scale,
        (settings.max_height - border) / height,
        (settings.max_width - border) / width,
        (settings.max_pixels / ((height + border) * (width + border))) ** 0.5,
    )
    new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
    if new_height >= height and new_width >= width:
        resized = enlarged(levels, (new_height, new_width))
    else:
        smaller = cv2.resize(levels, (new_width, new_height), interpolation=cv2.INTER_AREA)
        resized = np.asarray(smaller, np.uint8)
    # Thin lines fade when they are scaled down: bring the ink back to full level.
    inked = resized[resized >= 16]
    if inked.size:
        gain = 255.0 / max(float(np.percentile(inked, 90)), 1.0)
        resized = np.clip(resized.astype(np.float32) * gain, 0, 255).astype(np.uint8)

    canvas = np.zeros(
        (_round_up(new_height + border, settings.multiple),
         _round_up(new_width + border, settings.multiple)),
        np.uint8,
    )  # fmt: skip
    m = settings.margin
    canvas[m : m + new_height, m : m + new_width] = resized
    return Prepared(canvas, scale * measured.factor, measured.origin, m)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def size_class(height: int, width: int) -> tuple[int, int]:
    """The padded size of a picture: few classes, so that unlike pictures share a batch.

    Heights and widths grow in steps of about a quarter (32, 40, 48, 64, 80, ...).
    """
    return _ladder(height), _ladder(width)


def _ladder(length: int) -> int:
    step = 32
    while length > 4 * step:
        step *= 2
    return _round_up(length, step // 4 if step > 32 else 16)


def to_batch(images: Sequence[Gray]) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Pad ``load``'s images to one size class: uint8 (B, 1, H, W) and int32 true sizes (B, 2)."""
    height, width = size_class(
        max(image.shape[0] for image in images), max(image.shape[1] for image in images)
    )
    batch = np.zeros((len(images), 1, height, width), np.uint8)
    for row, image in zip(batch, images, strict=True):
        row[0, : image.shape[0], : image.shape[1]] = image
    sizes = np.array([image.shape for image in images], np.int32)
    return batch, sizes
