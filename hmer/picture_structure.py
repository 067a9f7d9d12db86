"""Whether a picture's file is built as pictures are, seen from its parts before it is decoded.

A decoder walks through a file's parts (chunks, segments, tags, scans), and some files have a
million of them and hardly a pixel: seconds of work, or gigabytes, for a few kilobytes. A camera's,
a scanner's or a drawing program's files are far below these limits.
"""

from __future__ import annotations

import struct

from hmer.errors import UnreadableImage

MAX_CHUNKS = 20_000  # of a PNG, whose writers make one of 8 KB of pixels
MAX_SEGMENTS = 2_000  # of a JPEG before its pixels
MAX_SCANS = 100  # of a JPEG; a progressive one has 10
MAX_TAGS = 500  # of a TIFF
MAX_VALUES = 200_000  # of one tag of a TIFF: offsets, one for each strip of its rows
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_TIFFS = {
    b"II*\0": ("<", False), b"MM\0*": (">", False), b"II+\0": ("<", True), b"MM\0+": (">", True)
}  # fmt: skip
# Bytes of a value by its type in a TIFF; of bytes and text only their sum counts.
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_BLOBS = (1, 2, 6, 7)


def check_structure(data: bytes) -> None:
    """Raise ``UnreadableImage`` for a PNG, JPEG or TIFF of too many parts.

    What is broken otherwise, or of another format, is left to the decoder.
    """
    if data.startswith(_PNG):
        _check_png(data)
    elif data.startswith(_JPEG):
        _check_jpeg(data)
    elif data[:4] in _TIFFS:
        try:
            _check_tiff(data, *_TIFFS[data[:4]])
        except struct.error:  # it ends before its tags do
            return


def _refused(what: str, most: int) -> UnreadableImage:
    return UnreadableImage(
        f"The picture's file has more than {most:,} {what}, as no picture has. Save it again with "
        "another program."
    )


def _check_png(data: bytes) -> None:
    at = len(_PNG)
    for _ in range(MAX_CHUNKS):
        if at + 8 > len(data):
            return
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    raise _refused("chunks", MAX_CHUNKS)


def _check_jpeg(data: bytes) -> None:
    at = 2
    for _ in range(MAX_SEGMENTS):
        if at + 4 > len(data) or data[at] != 0xFF:
            return
        marker = data[at + 1]
        if marker == 0xDA:
            if data.count(b"\xff\xda", at) > MAX_SCANS:
                raise _refused("scans", MAX_SCANS)
            return
        if marker == 0xFF:  # padding
            at += 1
        elif marker == 0 or marker == 1 or 0xD0 <= marker <= 0xD9:  # without a length
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise _refused("segments", MAX_SEGMENTS)


def _check_tiff(data: bytes, order: str, big: bool) -> None:
    """The tags of the first page, which is all that is read."""
    (at,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    if at > len(data):
        return
    (tags,) = struct.unpack_from(order + ("Q" if big else "H"), data, at)
    if tags > MAX_TAGS:
        raise _refused("tags", MAX_TAGS)
    entry = struct.Struct(order + ("HHQ8x" if big else "HHI4x"))
    total = 0
    for place in range(tags):
        _, kind, count = entry.unpack_from(data, at + (8 if big else 2) + place * entry.size)
        if kind not in _BLOBS and count > MAX_VALUES:
            raise _refused("values in a tag", MAX_VALUES)
        total += _SIZES.get(kind, 0) * count
        if total > len(data):
            raise UnreadableImage(
                "The picture's tags are longer than its file: it is damaged. Save it again."
            )
