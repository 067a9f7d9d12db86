"""What a person or a program hands in -> the bytes that are sent.

Files travel as they are: the server finds out what they hold. Only what would waste a trip
is checked here: a file that is missing, empty or far too large.
"""

from __future__ import annotations

import glob
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from client.documents import only_page, read_page
from hmer.errors import (
    BadInk,
    BadParameter,
    EmptyInput,
    HmerError,
    ImageTooLarge,
    MissingInput,
    UnreadableImage,
)
from hmer.ink import MAX_POINTS, Ink

MAX_BYTES = 32 * 1024 * 1024
"""Far above any picture of a formula; the server's own limit is in pixels."""

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".pdf"})
INKS = frozenset({".inkml", ".json"})

Source = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | NDArray[Any]
    | Image.Image
    | Ink
    | Sequence[Any]
)
"""A path; the content of a file; a picture as an array or of Pillow; or strokes."""


def read(source: Source) -> bytes:
    """The bytes to send for any ``Source``. Raises an ``InputError``.

    A picture array is uint8 or bool, (H, W) gray, (H, W, 3) RGB or (H, W, 4) RGBA. Strokes are
    a sequence of strokes, each a sequence of (x, y) in pen order, y down, in any unit. Of a PDF or
    TIFF with several pages a path names one: ``FILE#page=N``.
    """
    if isinstance(source, (str, os.PathLike)):
        return read_path(Path(source))
    if isinstance(source, (bytes, bytearray, memoryview)):
        return only_page(checked(bytes(source), "The input"), "The input")
    if isinstance(source, np.ndarray):
        return encode_picture(source)
    if isinstance(source, Image.Image):
        return encode_image(source)
    if isinstance(source, Ink):
        return encode_strokes(source.strokes)
    if isinstance(source, Sequence):
        return encode_strokes(source)
    raise BadParameter(
        f"An input of type {type(source).__name__} cannot be recognised. Give a path, bytes, a "
        "picture of Pillow or as a NumPy array, or a list of strokes."
    )


def read_path(path: Path) -> bytes:
    """What is sent for a file, or for ``FILE#page=N`` of a PDF or TIFF. Raises ``HmerError``."""
    file, mark, page = str(path).rpartition("#page=")
    if mark and page.isdigit() and not path.exists():
        return read_page(read_file(Path(file)), int(page), file)
    return only_page(read_file(path), str(path))


def read_file(path: Path) -> bytes:
    """The content of ``path``. Raises ``MissingInput``, ``EmptyInput`` or ``ImageTooLarge``."""
    if path.is_dir():
        raise MissingInput(
            f"The folder {path} holds no picture and no ink "
            f"({', '.join(sorted(suffix[1:] for suffix in PICTURES | INKS))})."
        )
    try:
        with path.open("rb") as stream:
            return checked(stream.read(MAX_BYTES + 1), str(path))
    except FileNotFoundError:
        raise MissingInput(f"There is no file {path}.") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise MissingInput(f"The file {path} cannot be read: {reason}.") from None


def checked(data: bytes, name: str) -> bytes:
    """``data``; raises ``EmptyInput`` or ``ImageTooLarge`` for none or too much."""
    if not data:
        raise EmptyInput(f"{name} is empty (0 bytes).")
    if len(data) > MAX_BYTES:
        raise ImageTooLarge(
            f"{name} is larger than {MAX_BYTES // 2**20} MiB, the most that is sent. Scale a "
            "picture down (a formula needs no more than a few million pixels), or take a document "
            "apart."
        )
    return data


def encode_picture(picture: NDArray[Any]) -> bytes:
    """A picture array as PNG. Raises ``BadParameter`` for other shapes and dtypes."""
    if picture.dtype == np.bool_:
        picture = picture.astype(np.uint8) * 255
    channels = picture.shape[2] if picture.ndim == 3 else 1
    if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise BadParameter(
            f"An array of shape {picture.shape} and dtype {picture.dtype} is not a picture. Give "
            "uint8 or bool, (H, W), (H, W, 3) RGB or (H, W, 4) RGBA."
        )
    if picture.size == 0:
        raise EmptyInput(f"The picture array has no pixels (shape {picture.shape}).")
    if picture.ndim == 3 and channels == 1:
        picture = picture[:, :, 0]
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(stream, "PNG", compress_level=1)
    return checked(stream.getvalue(), "The picture array as PNG")


def encode_image(picture: Image.Image) -> bytes:
    """A picture of Pillow as TIFF: of the formats that are read it alone keeps every mode.

    Raises ``EmptyInput``, ``BadParameter`` or ``ImageTooLarge``.
    """
    if not (picture.width and picture.height):
        raise EmptyInput(f"The picture has no pixels ({picture.width} x {picture.height}).")
    stream = io.BytesIO()
    try:
        upright = ImageOps.exif_transpose(picture)
        upright.save(stream, "TIFF", compression="tiff_deflate", save_all=False)
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise UnreadableImage(f"The picture cannot be read ({error}). Save it again.") from None
    return checked(stream.getvalue(), "The picture as TIFF")


def encode_strokes(strokes: Iterable[Any]) -> bytes:
    """Strokes as JSON ink. Raises ``BadInk`` if they are not lists of (x, y)."""
    written: list[list[list[float]]] = []
    total = 0
    for index, stroke in enumerate(strokes, start=1):
        total += len(stroke) if hasattr(stroke, "__len__") else 1  # before any of it is copied
        if max(total, index) > MAX_POINTS:
            raise BadInk(f"The ink has more than {MAX_POINTS} points, the most that is read.")
        try:
            points = np.asarray(stroke, dtype=np.float64)
        except (TypeError, ValueError):
            points = np.empty(0)
        if points.ndim != 2 or points.shape[1] < 2 or not np.isfinite(points).all():
            raise BadInk(f"Stroke {index} is not a list of (x, y) with finite numbers.")
        written.append(points[:, :2].tolist())
    if not written:
        raise BadInk("There are no strokes in the list.")
    return checked(json.dumps({"strokes": written}).encode("utf-8"), "The ink")


def expand(arguments: Iterable[str]) -> list[str]:
    """Files for the command line's arguments: folders and globs become their files, sorted.

    Folders are searched through all levels for pictures and ink. What is not there, and a
    folder without any, stays in the list, so that it gets its error among the answers.
    """
    names: list[str] = []
    for argument in arguments:
        if os.path.isdir(argument):
            names += _files_under(Path(argument)) or [argument]
        elif glob.has_magic(argument) and not os.path.lexists(argument):
            names += _matching(argument) or [argument]
        else:
            names.append(argument)
    return names


def _matching(pattern: str) -> list[str]:
    """The files that match, and what is in the folders that do; each once."""
    matches = sorted(glob.glob(pattern, recursive=True))
    found = [
        name
        for match in matches
        for name in (_files_under(Path(match)) if os.path.isdir(match) else [match])
    ]
    return list({os.path.normpath(name): name for name in found}.values()) or matches


def _files_under(folder: Path) -> list[str]:
    return [
        str(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and (path.suffix.lower() in PICTURES or _is_ink(path))
    ]


def _is_ink(path: Path) -> bool:
    """InkML by its name; JSON only if it begins like strokes: folders hold other JSON, too."""
    if path.suffix.lower() == ".inkml":
        return True
    if path.suffix.lower() != ".json":
        return False
    try:
        with path.open("rb") as stream:
            start = b"".join(stream.read(400).split())
    except OSError:
        return False
    return start.startswith(b"[[[") or (start.startswith(b"{") and b'"strokes":[' in start)


def describe(name: str, error: HmerError) -> str:
    """``error`` for a person, with the input's name if the sentence lacks it."""
    return str(error) if name in str(error) else f"{name}: {error}"
