"""Hostile pictures: each function makes one from a random generator, the same for the same seed."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.hostile_seeds import encoded, pictures

Rng = np.random.Generator
Make = Callable[[Rng], bytes]

_PNG = b"\x89PNG\r\n\x1a\n"
_HUGE = (0, 1, 65_535, 65_536, 1_000_000, 2**31 - 1, 2**31, 2**32 - 1)


def pick(rng: Rng, data: Mapping[str, bytes]) -> bytes:
    """One of the values."""
    return data[sorted(data)[int(rng.integers(len(data)))]]


def flipped(rng: Rng, data: bytes) -> bytes:
    """``data`` with up to 16 bytes changed."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 17))):
        at = int(rng.integers(len(changed)))
        changed[at] = int(rng.choice([0, 255, 127, 128, int(rng.integers(256))]))
    return bytes(changed)


def truncated(rng: Rng, data: bytes) -> bytes:
    """The beginning of ``data``."""
    return data[: int(rng.integers(1, len(data)))]


def spliced(rng: Rng, data: bytes, other: bytes) -> bytes:
    """``data`` with a piece of ``other`` in it."""
    at, start = int(rng.integers(len(data))), int(rng.integers(len(other)))
    return data[:at] + other[start : start + int(rng.integers(1, 400))] + data[at:]


def chunk(name: bytes, data: bytes) -> bytes:
    """A part of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *parts: bytes, depth: int = 8, colour: int = 0) -> bytes:
    """A PNG whose header says so, with ``parts`` after it."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return _PNG + chunk(b"IHDR", header) + b"".join(parts) + chunk(b"IEND", b"")


def png_inside(rng: Rng) -> bytes:
    """A PNG whose parts are changed and whose checksums are right: decoders get to see it."""
    data = pick(rng, {k: v for k, v in pictures().items() if k.endswith(".png")})
    parts, at = [_PNG], len(_PNG)
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        name, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        if body and rng.random() < 0.4:
            body = (
                zlib.compress(flipped(rng, zlib.decompress(body)))
                if (name == b"IDAT" and rng.random() < 0.7)
                else flipped(rng, body)
            )
        parts += [chunk(name, body)] * int(rng.choice([0, 1, 1, 1, 1, 1, 2]))
        at += 12 + length
    return b"".join(parts)


@lru_cache(maxsize=8)
def _zeros(count: int) -> bytes:
    """So many zeros, compressed."""
    packer = zlib.compressobj(9)
    block, parts = bytes(1 << 20), []
    for start in range(0, count, 1 << 20):
        parts.append(packer.compress(block[: min(1 << 20, count - start)]))
    return b"".join(parts) + packer.flush()


def png_bomb(rng: Rng) -> bytes:
    """Some ten megapixels, and fifty that are allowed, of zeros in a few kilobytes."""
    width = int(rng.choice([4_000, 6_000, 7_071]))
    return png(width, width, chunk(b"IDAT", _zeros(width * (width + 1))))


def png_text_bomb(rng: Rng) -> bytes:
    """Megabytes of text in a compressed comment, or of a colour profile."""
    packed = _zeros(int(rng.choice([2_000_000, 50_000_000])))
    name = [b"zTXt", b"iCCP", b"iTXt"][int(rng.integers(3))]
    part = chunk(name, b"a\0" + (b"\1\0\0\0" if name == b"iTXt" else b"\0") + packed)
    return png(
        40, 30, part * int(rng.integers(1, 9)), chunk(b"IDAT", zlib.compress(bytes(31 * 41)))
    )


def png_chunks(rng: Rng) -> bytes:
    """Up to 200,000 parts without anything in them."""
    name = [b"tEXt", b"vpAg", b"IDAT", b"pHYs"][int(rng.integers(4))]
    many = int(rng.integers(1, 200_000))
    return png(40, 30, chunk(name, b"") * many, chunk(b"IDAT", zlib.compress(bytes(31 * 41))))


def png_header(rng: Rng) -> bytes:
    """Dimensions, depth and colour that do not fit what follows."""
    width, height = (int(v) for v in rng.choice(_HUGE, 2))
    depth, colour = int(rng.integers(17)), int(rng.integers(8))
    return png(width, height, chunk(b"IDAT", _zeros(10_000)), depth=depth, colour=colour)


def jpeg_header(rng: Rng) -> bytes:
    """A JPEG that says it is 65,535 pixels wide."""
    data = bytearray(pictures()["gray.jpg"])
    at = data.index(b"\xff\xc0")
    width, height = (int(v) for v in rng.choice([0, 1, 7_000, 65_500, 65_535], 2))
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def jpeg_parts(rng: Rng) -> bytes:
    """Thousands of scans or segments."""
    data = pictures()["progressive.jpg"]
    if rng.random() < 0.5:
        at = data.rindex(b"\xff\xda")
        return data[:at] + data[at:-2] * int(rng.integers(2, 3_000)) + b"\xff\xd9"
    part = [b"\xff\xfe\0\2", b"\xff", b"\xff\0", b"\xff\xe1\0\x08Exif\0\0"][int(rng.integers(4))]
    return data[:2] + part * int(rng.integers(2, 100_000)) + data[2:]


def tiff(rng: Rng, tags: int, kind: int, count: int) -> bytes:
    """A TIFF of so many tags, all of whose values lie in the same place."""
    entries = [struct.pack("<HHII", i, kind, count, 8) for i in range(tags)]
    body = struct.pack("<H", tags) + b"".join(entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8) + body + rng.bytes(200)


def tiff_tags(rng: Rng) -> bytes:
    """Many tags, or few with many values."""
    tags, count = int(rng.choice([3, 400, 65_535])), int(rng.choice([1, 60, 10**6, 2**32 - 1]))
    return tiff(rng, tags, int(rng.integers(0, 17)), count)


def levels(rng: Rng) -> bytes:
    """Real numbers as levels: NaN, infinite, the largest."""
    page = rng.random((30, 40)).astype(np.float32)
    odd = [np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-40]
    page[rng.random(page.shape) < rng.random()] = odd[int(rng.integers(len(odd)))]
    return encoded(Image.fromarray(page), "TIFF")


def pattern(rng: Rng) -> bytes:
    """A valid picture without writing: noise, stripes, one pixel, a frame, long and thin."""
    sides = [(1, 9), (9, 1), (8, 8), (60, 80), (300, 400), (2, 30_000), (40_000, 3), (700, 900)]
    height, width = sides[int(rng.integers(len(sides)))]
    page = np.full((height, width), int(rng.choice([0, 128, 255])), np.uint8)
    _scrawl(rng, page)
    form = ["PNG", "BMP", "TIFF"][int(rng.integers(3))]
    return encoded(Image.fromarray(page), form)


def _scrawl(rng: Rng, page: NDArray[np.uint8]) -> None:
    choice = int(rng.integers(5))
    if choice == 0:
        page[:] = rng.integers(0, 256, page.shape, np.uint8)
    elif choice == 1:
        page[:: int(rng.integers(2, 9))] = 90
    elif choice == 2:
        page[:, :: int(rng.integers(2, 9))] = 200
    elif choice == 3:
        page[[0, -1]] = 60
        page[:, [0, -1]] = 60
    else:
        page[int(rng.integers(len(page))), int(rng.integers(page.shape[1]))] = 10


def large(rng: Rng) -> bytes:
    """A valid picture of up to 49 megapixels: no attack, but dear."""
    side = int(rng.choice([2_000, 3_500, 7_000]))
    page = Image.new("L", (side, side), 255)
    page.paste(Image.open(io.BytesIO(pictures()["gray.png"])).resize((side // 2, side // 2)))
    form = ["JPEG", "PNG"][int(rng.integers(2))]
    return encoded(page.convert("RGB") if rng.random() < 0.5 else page, form)


def magic(rng: Rng) -> bytes:
    """Random bytes behind a format's first ones."""
    heads = (_PNG, b"\xff\xd8\xff\xe0", b"RIFF\x40\0\0\0WEBPVP8 ", b"II*\0", b"MM\0*", b"BM", b"")
    return heads[int(rng.integers(len(heads)))] + rng.bytes(int(rng.integers(0, 3_000)))


# Kind -> what makes one, and how often it comes: 1 is rare, for it is dear.
KINDS: Mapping[str, tuple[Make, int]] = {
    "picture, bytes changed": (lambda rng: flipped(rng, pick(rng, pictures())), 24),
    "png, inside changed": (png_inside, 16),
    "picture, truncated": (lambda rng: truncated(rng, pick(rng, pictures())), 12),
    "picture, spliced": (
        lambda rng: spliced(rng, pick(rng, pictures()), pick(rng, pictures())), 12),
    "picture, patterns": (pattern, 8),
    "picture, real levels": (levels, 4),
    "picture, large": (large, 1),
    "png, bomb": (png_bomb, 1),
    "png, text bomb": (png_text_bomb, 3),
    "png, parts": (png_chunks, 3),
    "png, header": (png_header, 8),
    "jpeg, header": (jpeg_header, 6),
    "jpeg, parts": (jpeg_parts, 4),
    "tiff, tags": (tiff_tags, 6),
    "random bytes": (magic, 8),
}  # fmt: skip
