"""The one preprocessing: invariances, limits and errors."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hmer import ink, paper
from hmer import preprocess as pp
from hmer.errors import BlankImage, EmptyInput, ImageTooLarge, ImageTooSmall, UnreadableImage
from tests.handwriting import writing

SETTINGS = pp.PreprocessSettings(multiple=16)


@pytest.fixture
def page() -> NDArray[np.uint8]:
    """Black ink on white paper, uint8 (H, W)."""
    strokes, _ = writing(["1", "+", "0", "-", "1"], 7)
    return 255 - ink.render(strokes, stroke_height=60, pen=5, margin=20)


def test_levels_are_counted_however_large_the_picture() -> None:
    """OpenCV counts in float32, exactly up to 2^24 of a level."""
    large = np.full((4096, 4097), 255, np.uint8)
    large[0, :3] = 7
    for picture in (large, large[:50, :60].copy()):
        expected = np.bincount(picture.ravel(), minlength=256)
        assert np.array_equal(paper.histogram(picture), expected)


def encode(image: Image.Image | NDArray[np.uint8], form: str = "PNG", **options: object) -> bytes:
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


def difference(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Mean difference of two network inputs relative to their ink, after padding."""
    (batch, _) = pp.to_batch([a, b])
    x, y = batch[:, 0].astype(float)
    return float(np.abs(x - y).sum() / (x.sum() + y.sum()))


def test_output_is_what_the_contract_says(page: NDArray[np.uint8]) -> None:
    image = pp.load(encode(page), SETTINGS)
    assert image.dtype == np.uint8
    assert image.shape[0] % 16 == image.shape[1] % 16 == 0
    assert image.max() == 255
    assert not image[: SETTINGS.margin].any()
    assert not image[:, : SETTINGS.margin].any()
    ones = pp.typical_height(image)
    assert 0.7 * SETTINGS.symbol_height < ones < 1.3 * SETTINGS.symbol_height


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_agree(page: NDArray[np.uint8], form: str) -> None:
    options = {"lossless": True} if form == "WEBP" else {}
    expected = pp.load(encode(page), SETTINGS)
    assert np.array_equal(pp.load(encode(page, form, **options), SETTINGS), expected)


def test_jpeg_is_close(page: NDArray[np.uint8]) -> None:
    jpeg = pp.load(encode(page, "JPEG", quality=60), SETTINGS)
    assert difference(jpeg, pp.load(encode(page), SETTINGS)) < 0.1


def test_polarity_margin_and_colour_do_not_matter(page: NDArray[np.uint8]) -> None:
    expected = pp.load(encode(page), SETTINGS)
    assert np.array_equal(pp.load(encode(255 - page), SETTINGS), expected)
    margin = np.pad(page, ((70, 10), (30, 150)), constant_values=255)
    assert np.array_equal(pp.load(encode(margin), SETTINGS), expected)
    red = np.stack([np.full_like(page, 255), page, page], axis=-1)
    assert difference(pp.load(encode(red), SETTINGS), expected) < 0.02


def test_transparent_paper_is_white(page: NDArray[np.uint8]) -> None:
    clear = np.stack([np.zeros_like(page)] * 3 + [255 - page], axis=-1)
    expected = pp.load(encode(page), SETTINGS)
    assert difference(pp.load(encode(clear), SETTINGS), expected) < 0.01


def test_sixteen_bits(page: NDArray[np.uint8]) -> None:
    deep = Image.fromarray(page.astype(np.uint16) * 257)
    expected = pp.load(encode(page), SETTINGS)
    assert difference(pp.load(encode(deep), SETTINGS), expected) < 0.01


def test_rotation_flag_is_honoured(page: NDArray[np.uint8]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned left by 90 degrees
    turned = Image.fromarray(np.rot90(page).copy())
    expected = pp.load(encode(page), SETTINGS)
    assert np.array_equal(pp.load(encode(turned, "PNG", exif=exif), SETTINGS), expected)


@pytest.mark.parametrize("factor", [0.5, 2.0, 4.0])
def test_resolution_hardly_matters(page: NDArray[np.uint8], factor: float) -> None:
    size = (round(page.shape[1] * factor), round(page.shape[0] * factor))
    scaled = Image.fromarray(page).resize(size, Image.Resampling.BICUBIC)
    expected = pp.load(encode(page), SETTINGS)
    found = pp.load(encode(scaled), SETTINGS)
    assert abs(found.shape[1] - expected.shape[1]) <= 16
    assert pp.typical_height(found) == pytest.approx(pp.typical_height(expected), abs=2.0)


def test_ink_equals_its_picture() -> None:
    strokes, _ = writing(["0", "+", "1"], 2)
    data = ("[" + ",".join(str(stroke.tolist()) for stroke in strokes) + "]").encode()
    drawn = encode(ink.render(ink.parse_strokes(data).strokes))
    assert np.array_equal(pp.load(data, SETTINGS), pp.load(drawn, SETTINGS))


def test_a_single_dash_is_not_blown_up() -> None:
    dash = [np.array([[0, 0], [100, 3]], np.float32)]
    image = pp.preprocess(ink.render(dash), SETTINGS)
    assert image.shape[0] <= 3 * SETTINGS.symbol_height


def test_large_writing_is_scaled_to_the_limits() -> None:
    wide = [np.array([[i * 100, 0], [i * 100 + 5, 100]], np.float32) for i in range(150)]
    image = pp.preprocess(ink.render(wide), SETTINGS)
    assert image.shape[1] <= SETTINGS.max_width + 16
    assert image.size <= SETTINGS.max_pixels * 1.3


def test_batch_pads_with_zeros() -> None:
    a, b = np.full((16, 48), 9, np.uint8), np.full((48, 16), 7, np.uint8)
    image, size = pp.to_batch([a, b])
    assert image.shape[:2] == (2, 1)
    assert size.tolist() == [[16, 48], [48, 16]]
    assert (image[0, 0, :16, :48] == 9).all()
    assert image[0].sum() == a.sum(dtype=int)
    assert image[1].sum() == b.sum(dtype=int)


@pytest.mark.parametrize("length", [1, 16, 31, 33, 100, 127, 128, 129, 700, 1536])
def test_size_classes_cover_with_little_waste(length: int) -> None:
    padded = pp.size_class(length, 16)[0]
    assert length <= padded <= max(length * 1.25 + 1, length + 16)
    assert padded % 16 == 0
    assert pp.size_class(padded, 16)[0] == padded


def huge_png(side: int) -> bytes:
    """A valid PNG header that announces ``side`` squared pixels, and hardly any data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", EmptyInput),
        (b"just text, no picture", UnreadableImage),
        (b"\x89PNG\r\n\x1a\n", UnreadableImage),
        (encode(np.zeros((1, 1), np.uint8)), ImageTooSmall),
        (encode(np.full((60, 200), 255, np.uint8)), BlankImage),
        (encode(np.zeros((60, 200), np.uint8)), BlankImage),
        (huge_png(30_000), ImageTooLarge),
        (huge_png(9_000), ImageTooLarge),
        (encode(Image.new("L", (64, 64)), "GIF"), UnreadableImage),
    ],
)
def test_bad_pictures_are_explained(data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"\w+ .*\.$"):
        pp.load(data, SETTINGS)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "BMP"])
def test_truncated_picture(page: NDArray[np.uint8], form: str) -> None:
    data = encode(page, form)
    with pytest.raises(UnreadableImage):
        pp.load(data[: len(data) // 2], SETTINGS)


def test_settings_round_trip() -> None:
    settings = pp.PreprocessSettings(symbol_height=18.5, multiple=16)
    assert pp.PreprocessSettings.from_dict(settings.to_dict()) == settings
    with pytest.raises(KeyError, match="colour"):
        pp.PreprocessSettings.from_dict({**settings.to_dict(), "colour": 1})
