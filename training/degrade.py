"""Pictures as people send them: small, blurred, compressed, in one bit, taken by a camera.

One random loss of quality for one picture, strictly before preprocessing. What ``hmer.paper``
repairs at recognition leaves traces; a network that has seen them reads the same formula.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from hmer.preprocess import Gray

_SMALLEST = 12  # pixels, of the shorter side: less holds no formula
_PAPER_MARGIN = 24  # pixels of paper around, which a camera's picture has
Levels = NDArray[np.float32]


class Degraded(NamedTuple):
    """``gray`` uint8 (H, W), dark ink; where a point of the picture went: point * scale + shift.

    ``shift`` is in pixels of ``gray``, the same for x and y.
    """

    gray: Gray
    scale: float
    shift: float


def degrade(gray: Gray, rng: np.random.Generator) -> Degraded:
    """One of the losses below, or two, drawn by ``rng``.

    ``gray`` uint8 (H, W): bright ink on paper of level 0, as drawn ink and
    ``augment_picture`` are.
    """
    page = _gray(255 - gray)
    scale = shift = None
    if rng.random() < 0.6:
        page, scale = _smaller(page, rng)
    if scale is None or rng.random() < 0.5:
        page, shift = _LOSSES[rng.integers(len(_LOSSES))](page, rng)
    return Degraded(page, scale or 1.0, shift or 0.0)


def _smaller(page: Gray, rng: np.random.Generator) -> tuple[Gray, float]:
    """Reduced to 35 to 90 per cent, by the area or by a program that does it worse."""
    wanted = max(float(rng.uniform(0.35, 0.9)), _SMALLEST / min(page.shape))
    if wanted >= 1.0:
        return page, 1.0
    method = (cv2.INTER_AREA, cv2.INTER_AREA, cv2.INTER_LINEAR)[rng.integers(3)]
    height, width = (max(1, round(side * wanted)) for side in page.shape)
    return _gray(cv2.resize(page, (width, height), interpolation=method)), wanted


def _compressed(page: Gray, rng: np.random.Generator) -> tuple[Gray, float]:
    """JPEG of quality 30 to 85."""
    return _jpeg(page, int(rng.integers(30, 86))), 0.0


def _one_bit(page: Gray, rng: np.random.Generator) -> tuple[Gray, float]:
    """Black and white alone, as a fax or a scanner's text mode gives them."""
    threshold = int(rng.integers(90, 190))
    return _gray(np.where(page < threshold, 0, 255)), 0.0


def _blurred(page: Gray, rng: np.random.Generator) -> tuple[Gray, float]:
    return _gray(cv2.GaussianBlur(page, (0, 0), float(rng.uniform(0.4, 1.0)))), 0.0


def _photographed(page: Gray, rng: np.random.Generator) -> tuple[Gray, float]:
    """Light that falls off to one side, pale ink, a lens, a sensor's noise, and JPEG."""
    page = np.pad(page, _PAPER_MARGIN, constant_values=255)
    height, width = page.shape
    ramps = rng.uniform(-0.2, 0.2, 2)
    light = 0.8 + ramps[0] * np.linspace(-0.5, 0.5, width, dtype=np.float32)[None, :]
    light = light + ramps[1] * np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None]
    ink, paper = rng.uniform(20, 90), rng.uniform(200, 250)
    scene: Levels = (ink + (paper - ink) * page.astype(np.float32) / 255.0) * light
    seen = cv2.GaussianBlur(scene, (0, 0), float(rng.uniform(0.5, 1.2)))
    noise = rng.standard_normal(seen.shape, np.float32) * np.float32(rng.uniform(1.0, 7.0))
    levels = np.clip(np.rint(seen + noise), 0, 255).astype(np.uint8)
    return _jpeg(levels, int(rng.integers(60, 95))), float(_PAPER_MARGIN)


_LOSSES: tuple[Callable[[Gray, np.random.Generator], tuple[Gray, float]], ...] = (
    _compressed,
    _one_bit,
    _blurred,
    _photographed,
)


def _jpeg(page: Gray, quality: int) -> Gray:
    data = cv2.imencode(".jpg", page, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return _gray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE))


def _gray(image: object) -> Gray:
    """OpenCV's stubs know no dtypes; all images here are uint8."""
    return np.asarray(image, np.uint8)
