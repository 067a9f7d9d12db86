"""Pages of PDF and TIFF files, each as a picture of its own."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image, ImageOps

from hmer.errors import BadParameter, HmerError, MissingDependency, MissingInput, UnreadableImage
from hmer.preprocess import MAX_INPUT_PIXELS

PDF_DPI = 200
MAX_PAGES = 10_000
_PDF_HEAD = 1024  # bytes in which a PDF's mark stands
_TIFF_MARKS = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_SUBFILE_TYPE, _REDUCED = 254, 1  # a TIFF's thumbnails are no pages
_pdfium = threading.Lock()  # it is not thread-safe


def is_pdf(data: bytes) -> bool:
    """Whether ``data``, or its first 1024 bytes, are a PDF's."""
    return b"%PDF-" in data[:_PDF_HEAD]


def is_tiff(data: bytes) -> bool:
    """Whether ``data`` begins as a TIFF."""
    return data.startswith(_TIFF_MARKS)


def count_pages(data: bytes, name: str) -> int:
    """How many pictures are in ``data``: 1 for anything but a PDF or TIFF.

    ``name`` is for the sentences. Raises ``UnreadableImage`` (broken, or with a password) or
    ``MissingDependency``.
    """
    if is_pdf(data):
        with _pdf(data, name) as document:
            count = len(document)
    elif is_tiff(data):
        with _tiff(data, name) as picture:
            count = len(_frames(picture))
    else:
        return 1
    if count == 0:
        raise UnreadableImage(f"{name} has no pages.")
    return min(count, MAX_PAGES)


def read_page(data: bytes, page: int, name: str) -> bytes:
    """Page ``page``, from 1, of a PDF (as PNG) or TIFF (as TIFF). Raises ``HmerError``."""
    if is_pdf(data):
        with _pdf(data, name) as document:
            _check(page, len(document), name)
            return _rendered(document[page - 1], name)
    if is_tiff(data):
        with _tiff(data, name) as picture:
            frames = _frames(picture)
            _check(page, len(frames), name)
            picture.seek(frames[page - 1])
            return _encoded(ImageOps.exif_transpose(picture), "TIFF", compression="tiff_deflate")
    _check(page, 1, name)
    return data


def only_page(data: bytes, name: str) -> bytes:
    """What is sent for ``data``: itself, or the picture of a document that has one page.

    Raises ``BadParameter`` for several pages: one answer would be silent about the others.
    """
    if not (is_pdf(data) or is_tiff(data)):
        return data
    try:
        count = count_pages(data, name)
    except UnreadableImage:
        if is_tiff(data):
            return data  # the server says what is wrong with a picture
        raise
    if count > 1:
        raise BadParameter(
            f"{name} has {count} pages, and an answer is of one. Name a page, as in FILE#page=1, "
            "or give the file to hmer-client recognize, which answers them all."
        )
    return read_page(data, 1, name) if is_pdf(data) else data


def _check(page: int, count: int, name: str) -> None:
    if not 1 <= page <= count:
        raise MissingInput(f"{name} has no page {page}: there are {count}.")


@contextmanager
def _pdf(data: bytes, name: str) -> Iterator[Any]:
    try:
        import pypdfium2  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingDependency(
            f"Pages of a PDF need pypdfium2 ({error}): pip install 'hmer[pdf]'."
        ) from error
    with _pdfium:
        try:
            document = pypdfium2.PdfDocument(data)
        except pypdfium2.PdfiumError as error:
            if "password" in str(error).lower():
                raise UnreadableImage(
                    f"{name} is protected by a password. Save it without one."
                ) from None
            raise UnreadableImage(f"{name} is no PDF that can be read ({error}).") from None
        try:
            yield document
        except pypdfium2.PdfiumError as error:
            raise UnreadableImage(f"A page of {name} cannot be drawn ({error}).") from None
        finally:
            document.close()


def _rendered(page: Any, name: str) -> bytes:
    width, height = page.get_size()  # points, 1/72 inch
    if not (0 < width < 1e6 and 0 < height < 1e6):
        raise UnreadableImage(f"A page of {name} has the size {width:g} x {height:g} points.")
    most = (0.5 * MAX_INPUT_PIXELS / (width * height)) ** 0.5
    picture = page.render(scale=min(PDF_DPI / 72.0, most)).to_pil()
    return _encoded(picture, "PNG", compress_level=1)


@contextmanager
def _tiff(data: bytes, name: str) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            # The size of a frame is checked before its pixels are read.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=("TIFF",)) as picture:
                yield picture
    except HmerError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UnreadableImage(f"{name} is no TIFF that can be read ({error}).") from None


def _frames(picture: Image.Image) -> list[int]:
    """The frames that are pages."""
    pages = []
    for index in range(min(int(getattr(picture, "n_frames", 1)), MAX_PAGES)):
        picture.seek(index)
        tags: Any = getattr(picture, "tag_v2", {})
        if not int(tags.get(_SUBFILE_TYPE, 0)) & _REDUCED:
            pages.append(index)
    return pages or [0]


def _encoded(picture: Image.Image, format: str, **options: Any) -> bytes:
    if picture.width * picture.height > MAX_INPUT_PIXELS:
        raise UnreadableImage(
            f"The page has {picture.width} x {picture.height} pixels, more than are accepted."
        )
    stream = io.BytesIO()
    picture.save(stream, format, **options)
    return stream.getvalue()
