"""What people's pictures of one formula differ in: each transformation as an encoded picture.

Every one starts from the same clean picture, black ink on white paper, and uses a random
generator of its own where a choice is to be made (a colour, a rotation flag, the light), so that
the same expression always gives the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hmer.errors import BadParameter
from hmer.preprocess import Gray, typical_height

Random = np.random.Generator
Make = Callable[[Gray, Random], bytes]

LOSSLESS, LOSSY = 99.0, 95.0  # per cent of unchanged answers that are aimed at

_INKS = ((20, 40, 160), (180, 20, 30), (10, 110, 40), (90, 30, 130), (70, 70, 75))  # RGB of pens
_RULES = ((150, 185, 225), (190, 190, 190), (160, 210, 180))  # RGB of printed lines
_PAPER, _INK = 170, 25  # grey levels of dull paper and the pencil on it
# Where EXIF's orientation says that the stored rows and columns come from, by its value.
_STORED: dict[int, Callable[[Gray], Gray]] = {
    1: lambda page: page,
    2: np.fliplr,
    3: lambda page: np.rot90(page, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda page: np.rot90(page, 1),
    7: lambda page: np.rot90(page, 2).T,
    8: lambda page: np.rot90(page, 3),
}
_ORIENTATION = 0x0112  # EXIF tag


@dataclass(frozen=True)
class Transformation:
    """``make`` turns a clean page, uint8 (H, W) black on white, into an encoded picture.

    ``aim``: per cent of the answers that should not change.
    """

    name: str
    about: str
    aim: float
    make: Make


def encode(picture: Gray | Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """``picture``, uint8 (H, W) or (H, W, 3) RGB or a Pillow image, as a file's bytes."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def _scaled(factor: float) -> Make:
    method = cv2.INTER_AREA if factor < 1.0 else cv2.INTER_CUBIC

    def make(page: Gray, random: Random) -> bytes:
        size = (max(1, round(page.shape[1] * factor)), max(1, round(page.shape[0] * factor)))
        return encode(np.asarray(cv2.resize(page, size, interpolation=method), np.uint8))

    return make


def _inverted(page: Gray, random: Random) -> bytes:
    return encode(np.asarray(255 - page, np.uint8))


def _margins(page: Gray, random: Random) -> bytes:
    """Up to twice the page's size on every side, each side another."""
    height, width = page.shape
    top, bottom = random.integers(0, 2 * height, 2)
    left, right = random.integers(0, max(width, height), 2)
    return encode(np.pad(page, ((top, bottom), (left, right)), constant_values=255))


def _mixed(page: Gray, ink: Iterable[float], paper: Iterable[float]) -> NDArray[np.uint8]:
    """The page in colours: RGB uint8 (H, W, 3)."""
    share = (255.0 - page.astype(np.float32))[:, :, None] / 255.0
    mixed = share * np.array(list(ink), np.float32) + (1 - share) * np.array(
        list(paper), np.float32
    )
    return np.rint(mixed).astype(np.uint8)


def _coloured(page: Gray, random: Random) -> bytes:
    return encode(_mixed(page, _INKS[random.integers(len(_INKS))], (255, 255, 255)))


def _grey_paper(page: Gray, random: Random) -> bytes:
    return encode(_mixed(page, (_INK,) * 3, (_PAPER,) * 3))


def _alpha(page: Gray, random: Random) -> bytes:
    """Black ink whose strength is the alpha channel; nothing else."""
    zero = np.zeros_like(page)
    return encode(np.stack([zero, zero, zero, 255 - page], axis=-1))


def _sixteen(page: Gray, random: Random) -> bytes:
    return encode(Image.fromarray(page.astype(np.uint16) * 257))


def _cmyk(page: Gray, random: Random) -> bytes:
    return encode(Image.fromarray(page).convert("RGB").convert("CMYK"), "TIFF")


def _turned(page: Gray, random: Random) -> bytes:
    value = int(random.integers(2, 9))
    exif = Image.Exif()
    exif[_ORIENTATION] = value
    return encode(np.ascontiguousarray(_STORED[value](page)), exif=exif)


def _jpeg(page: Gray, random: Random) -> bytes:
    return encode(page, "JPEG", quality=50)


def _ruled(page: Gray, random: Random, squared: bool) -> NDArray[np.uint8]:
    """Printed lines under the ink on a page with a margin: RGB uint8 (H, W, 3).

    Lines are about as far apart as a line of writing is high, squares half as far.
    """
    page = np.pad(page, 40, constant_values=255)
    unit = typical_height(np.asarray(255 - page, np.uint8))
    gap = max(16, round(unit * (random.uniform(0.6, 0.9) if squared else random.uniform(1.3, 1.9))))
    paper = np.full((*page.shape, 3), 255.0, np.float32)
    colour = np.array(_RULES[random.integers(len(_RULES))], np.float32)
    thick = int(random.integers(1, 3))
    for row in range(int(random.integers(gap)), page.shape[0], gap):
        paper[row : row + thick] = colour
    for column in range(int(random.integers(gap)), page.shape[1], gap) if squared else ():
        paper[:, column : column + thick] = colour
    share = (255.0 - page.astype(np.float32))[:, :, None] / 255.0
    return np.asarray(np.rint(paper * (1 - share) + 30.0 * share), np.uint8)


def _lined(page: Gray, random: Random) -> bytes:
    return encode(_ruled(page, random, squared=False))


def _squared(page: Gray, random: Random) -> bytes:
    return encode(_ruled(page, random, squared=True))


def _photographed(page: Gray, random: Random) -> bytes:
    """Uneven light, a shadow, a slight blur, sensor noise, and a camera's JPEG."""
    page = np.pad(page, 60, constant_values=255)
    height, width = page.shape
    y, x = np.mgrid[0 : 1 : complex(height), 0 : 1 : complex(width)]
    angle = random.uniform(0, 2 * np.pi)
    slope = np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5)
    light = 0.78 + random.uniform(0.15, 0.3) * slope
    cx, cy = random.uniform(0.2, 0.8, 2)
    shade = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 0.1)  # of a hand or a head
    light *= 1.0 - random.uniform(0.05, 0.2) * shade
    ink = random.uniform(30, 70)
    scene = (ink + (245 - ink) * page.astype(np.float64) / 255.0) * light
    blurred = cv2.GaussianBlur(scene.astype(np.float32), (0, 0), random.uniform(0.6, 1.1))
    noisy = blurred + random.normal(0.0, random.uniform(2.0, 6.0), blurred.shape)
    # Paper is a little yellow in a lamp's light.
    warm = np.array([1.0, 0.98, 0.92]) * noisy[:, :, None]
    return encode(np.clip(np.rint(warm), 0, 255).astype(np.uint8), "JPEG", quality=85)


TRANSFORMATIONS = (
    Transformation("inverted", "white ink on black paper", LOSSLESS, _inverted),
    Transformation("margins", "up to twice its height of paper around", LOSSLESS, _margins),
    Transformation("coloured ink", "one of five pens", LOSSLESS, _coloured),
    Transformation("grey paper", f"ink {_INK} on paper {_PAPER} of 255", LOSSLESS, _grey_paper),
    Transformation("alpha", "transparent paper", LOSSLESS, _alpha),
    Transformation("16 bit", "a 16-bit grey PNG", LOSSLESS, _sixteen),
    Transformation("CMYK", "a CMYK TIFF", LOSSLESS, _cmyk),
    Transformation("EXIF orientation", "one of the seven flags", LOSSLESS, _turned),
    Transformation("scale x2", "enlarged, cubic", LOSSLESS, _scaled(2.0)),
    Transformation("scale x4", "enlarged, cubic", LOSSLESS, _scaled(4.0)),
    Transformation("scale x0.5", "reduced, by area", LOSSY, _scaled(0.5)),
    Transformation("JPEG 50", "JPEG of quality 50", LOSSY, _jpeg),
    Transformation("lined paper", "printed lines, 1 to 2 pixels", LOSSY, _lined),
    Transformation("squared paper", "printed squares, 1 to 2 pixels", LOSSY, _squared),
    Transformation("photographed", "uneven light, blur, noise, JPEG 85", LOSSY, _photographed),
)


def chosen(names: Iterable[str]) -> list[Transformation]:
    """The transformations called ``names``, all for none. Raises ``BadParameter``."""
    wanted = list(names)
    known = {item.name: item for item in TRANSFORMATIONS}
    if unknown := [name for name in wanted if name not in known]:
        raise BadParameter(
            f"There is no transformation {', '.join(map(repr, unknown))}. Choose among: "
            f"{', '.join(known)}."
        )
    return [known[name] for name in wanted] or list(TRANSFORMATIONS)
