"""Good inputs of every kind, made here: what hostile ones are mutated from, and the fuzzers' seeds.

Small, so that a mutation is likely to hit what matters; of a few kilobytes in all.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Points = list[tuple[float, float]]

# x, plus, one: four strokes, in a device's units, y down.
STROKES: tuple[Points, ...] = (
    [(0.0, 60.0), (20.0, 80.0), (40.0, 120.0)],
    [(40.0, 60.0), (22.5, 90.0), (0.0, 120.0)],
    [(60.0, 90.0), (110.0, 90.0)],
    [(85.0, 65.0), (85.0, 115.0)],
    [(130.0, 70.0), (140.0, 60.0), (140.0, 120.0)],
)
_ORIENTATION = 274


def writing(scale: float = 0.5) -> NDArray[np.uint8]:
    """The strokes drawn as dark ink on white paper: uint8 (H, W)."""
    page = np.full((round(130 * scale), round(160 * scale)), 255, np.uint8)
    for stroke in STROKES:
        points = np.array([(8 + x, y) for x, y in stroke]) * scale
        cv2.polylines(page, [np.rint(points).astype(np.int32)], False, (0,), 2, cv2.LINE_AA)
    return page


def encoded(picture: Image.Image, form: str, **options: Any) -> bytes:
    """``picture`` as a file."""
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


def _pngs(gray: NDArray[np.uint8]) -> dict[str, bytes]:
    page = Image.fromarray(gray)
    ink = Image.fromarray(255 - gray)
    clear = Image.merge("RGBA", (page, page, page, ink))
    deep = Image.fromarray(gray.astype(np.uint16) * 257)
    return {
        "gray.png": encoded(page, "PNG"),
        "one_bit.png": encoded(page.convert("1"), "PNG"),
        "palette.png": encoded(page.convert("P"), "PNG", transparency=3),
        "rgb.png": encoded(Image.merge("RGB", (page, page, ink)), "PNG"),
        "rgba.png": encoded(clear, "PNG"),
        "deep.png": encoded(deep, "PNG"),
        "animated.png": encoded(page, "PNG", save_all=True, append_images=[ink]),
    }


def _lossy(gray: NDArray[np.uint8]) -> dict[str, bytes]:
    page = Image.fromarray(gray)
    colour = page.convert("RGB")
    turned = Image.Exif()
    turned[_ORIENTATION] = 6
    return {
        "gray.jpg": encoded(page, "JPEG", quality=60),
        "colour.jpg": encoded(colour, "JPEG", quality=60),
        "progressive.jpg": encoded(colour, "JPEG", quality=60, progressive=True),
        "cmyk.jpg": encoded(colour.convert("CMYK"), "JPEG", quality=60),
        "turned.jpg": encoded(page, "JPEG", quality=60, exif=turned),
        "lossy.webp": encoded(colour, "WEBP", quality=50, exif=turned),
        "lossless.webp": encoded(colour, "WEBP", lossless=True),
        "gray.bmp": encoded(page, "BMP"),
        "one_bit.bmp": encoded(page.convert("1"), "BMP"),
    }


def _tiffs(gray: NDArray[np.uint8]) -> dict[str, bytes]:
    page = Image.fromarray(gray)
    real = Image.fromarray(gray.astype(np.float32) / 255.0)
    return {
        "plain.tiff": encoded(page, "TIFF"),
        "big.tiff": encoded(page, "TIFF", big_tiff=True),
        "lzw.tiff": encoded(page, "TIFF", compression="tiff_lzw"),
        "deflate.tiff": encoded(page.convert("RGB"), "TIFF", compression="tiff_deflate"),
        "fax.tiff": encoded(page.convert("1"), "TIFF", compression="group4"),
        "jpeg.tiff": encoded(page, "TIFF", compression="jpeg"),
        "float.tiff": encoded(real, "TIFF"),
        "deep.tiff": encoded(Image.fromarray(gray.astype(np.uint16) * 257), "TIFF"),
        "pages.tiff": encoded(page, "TIFF", save_all=True, append_images=[page]),
    }


@lru_cache(maxsize=1)
def pictures() -> Mapping[str, bytes]:
    """A file name -> a picture, of every format and of the ways in which each stores pixels."""
    gray = writing()
    return _pngs(gray) | _lossy(gray) | _tiffs(gray)


def inkml(encoding: str = "utf-8") -> bytes:
    """The strokes as CROHME's files have them: a namespace, channels, a label, traces."""
    traces = "\n".join(
        f'<trace id="{i}">{", ".join(f"{x:g} {y:g}" for x, y in s)}</trace>'
        for i, s in enumerate(STROKES)
    )
    return (
        f'<?xml version="1.0" encoding="{encoding}"?>\n'
        '<ink xmlns="http://www.w3.org/2003/InkML">\n'
        '<traceFormat><channel name="X" type="decimal"/><channel name="Y" type="decimal"/>'
        '</traceFormat>\n<annotation type="truth">$x+1$</annotation>\n'
        f"{traces}\n</ink>\n"
    ).encode(encoding)


@lru_cache(maxsize=1)
def inkmls() -> Mapping[str, bytes]:
    """A file name -> InkML."""
    return {
        "utf8.inkml": inkml(),
        "utf16.inkml": inkml("utf-16"),
        "latin1.inkml": inkml("iso-8859-1"),
        "plain.inkml": b"<ink><trace>0 0, 5 50, 9 2</trace></ink>",
        "pressure.inkml": b"<ink><trace>0 0 512 3, 5 50 600 4</trace><trace>9 9 1 5</trace></ink>",
        "comment.inkml": b"<!-- a --><ink><trace><![CDATA[0 0, 10 40]]></trace></ink>",
    }


@lru_cache(maxsize=1)
def strokes() -> Mapping[str, bytes]:
    """A file name -> JSON strokes."""
    plain = [[list(point) for point in stroke] for stroke in STROKES]
    return {
        "list.json": json.dumps(plain).encode("utf-8"),
        "object.json": json.dumps({"strokes": plain, "latex": "x+1"}).encode("utf-8"),
        "dot.json": b"[[[3, 4]]]",
        "times.json": b"[[[0, 0, 12.5], [1e1, 5.0e1, 13]], [[-3, -4, 1]]]",
        "mark.json": b"\xef\xbb\xbf  " + json.dumps(plain[:2]).encode("utf-8"),
    }


def all_seeds() -> dict[str, bytes]:
    """Every seed by its name."""
    return {**pictures(), **inkmls(), **strokes()}
