"""Encoded pictures -> gray levels, whatever a stranger's file holds, within bounds of memory."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from hmer.errors import HmerError, ImageTooLarge, ImageTooSmall, UnreadableImage
from hmer.limits import LIMITS
from hmer.paper import MAX_FINE_PIXELS, gray_of_colours
from hmer.picture_structure import check_structure

Gray = NDArray[np.uint8]

MAX_INPUT_PIXELS = LIMITS.pixels  # of an encoded picture, read from its header before decoding
MIN_INPUT_SIDE = 8  # pixels, the longer side
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
_SHOWN = 200  # characters of what a decoder says
_TURNED = {  # orientation of EXIF -> what sets it upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(data: bytes) -> Gray:
    """Decode a PNG, JPEG, WebP, TIFF or BMP to gray levels, uint8 (H, W).

    Rotation flags are honoured, transparency lies on white paper, 16-bit and CMYK
    pictures are converted. Raises ``UnreadableImage``, ``ImageTooLarge``, ``ImageTooSmall``.
    """
    check_structure(data)
    try:
        with warnings.catch_warnings():
            # Of damaged metadata there may be thousands; the size is checked before any pixel.
            warnings.simplefilter("ignore")
            return _decoded(data)
    except HmerError:
        raise
    except Image.DecompressionBombError:
        raise ImageTooLarge(
            "The picture's header announces far more pixels than the "
            f"{MAX_INPUT_PIXELS // 1_000_000} million that are accepted. Scale it down."
        ) from None
    except UnidentifiedImageError:
        raise UnreadableImage(
            "The input is not a PNG, JPEG, WebP, TIFF or BMP picture, nor InkML, nor JSON strokes."
        ) from None
    except Exception as error:  # decoders raise whatever a broken file leads them to
        reason = str(error)[:_SHOWN] or type(error).__name__
        raise UnreadableImage(
            f"The picture cannot be decoded, it may be truncated ({reason}). Save it again."
        ) from None


def _decoded(data: bytes) -> Gray:
    picture = Image.open(io.BytesIO(data), formats=FORMATS)
    width, height = picture.size
    if width * height > MAX_INPUT_PIXELS:
        raise ImageTooLarge(
            f"The picture has {width} x {height} pixels; at most "
            f"{MAX_INPUT_PIXELS // 1_000_000} million are accepted. Scale it down: a formula "
            "needs about 100 pixels a line."
        )
    if max(width, height) < MIN_INPUT_SIDE:
        raise ImageTooSmall(
            f"The picture has {width} x {height} pixels, too few to hold a formula."
        )
    gray = _to_gray(picture)
    turned = _TURNED.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    return gray if turned is None else np.asarray(Image.fromarray(gray).transpose(turned))


def _to_gray(picture: Image.Image) -> Gray:
    """Band by band: of a large picture every further copy would be some hundred megabytes."""
    picture.load()
    top = _top_level(picture) if picture.mode in _DEEP else 255.0
    gray = np.empty(picture.size[::-1], np.uint8)
    for first, band in _bands(picture):
        gray[first : first + band.height] = _band_to_gray(band, top, band is picture)
    return gray


def _bands(picture: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Bands of whole rows with the first row of each; a small picture is its only one."""
    width, height = picture.size
    rows = max(1, MAX_FINE_PIXELS // max(width, 1))
    if rows >= height:
        yield 0, picture
        return
    for first in range(0, height, rows):
        yield first, picture.crop((0, first, width, min(first + rows, height)))


_DEEP = ("I", "I;16", "I;16B", "I;16L", "F")


def _top_level(picture: Image.Image) -> float:
    """The white of a picture of more than 8 bits, which no header tells."""
    highest = 0.0
    for _, band in _bands(picture):
        levels = np.nan_to_num(np.asarray(band, dtype=np.float32))
        highest = max(highest, float(levels.max(initial=0.0)))
    if picture.mode == "F" and highest <= 1.0:
        return 1.0
    return 65535.0 if highest > 255.0 else 255.0


def _band_to_gray(picture: Image.Image, top: float, whole: bool) -> Gray:
    if picture.mode in _DEEP:
        levels = np.nan_to_num(np.asarray(picture, dtype=np.float32))
        return (np.clip(levels, 0.0, top) * (255.0 / top)).astype(np.uint8)
    if picture.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        paper = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(paper, picture)
    if whole and picture.mode not in ("1", "L"):
        coloured = gray_of_colours(np.asarray(picture.convert("RGB"), dtype=np.uint8))
        if coloured is not None:
            return coloured
    return np.asarray(picture.convert("L"), dtype=np.uint8)
