"""What paper, light and cameras add is taken away, and a clean picture stays as it is."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.invariance_pictures import TRANSFORMATIONS, chosen
from hmer import ink, paper
from hmer import preprocess as pp
from tests.handwriting import writing

SAMPLES = Path(__file__).resolve().parent.parent / "client" / "samples"
SETTINGS = pp.PreprocessSettings(multiple=16)
# Of the network's inputs as networks were trained with: antialiased ink, then binary; each in
# writing of 20 and of 28 pixels.
TRAINED_WITH = {
    "pythagoras": ("78568c13802608c2", "a8828657c84e4828", "1143cf72bf613cb5", "821e003c11f0a6f9"),
    "quadratic": ("f0e42acfc3b1c672", "18aebeae3aaea0f9", "9727d05630204b55", "47f8eb1dd5a24502"),
    "limit": ("b86aab45c396a71c", "7fe7db7d2579bdee", "8ecf70a61bc40f89", "972ffee9d1a21d92"),
    "nested_roots": (
        "939992a72484f4f7",
        "a1d0860757f90637",
        "c9ad3db729224222",
        "76b9297cf71094ce",
    ),
}


def drawn(name: str) -> NDArray[np.uint8]:
    return ink.render(ink.parse_inkml((SAMPLES / f"{name}.inkml").read_bytes()).strokes)


@pytest.mark.parametrize("name", TRAINED_WITH)
def test_clean_ink_gives_what_networks_were_trained_with(name: str) -> None:
    picture = drawn(name)
    found = []
    for gray in (picture, np.where(picture >= 128, 255, 0).astype(np.uint8)):
        for height in (20.0, 28.0):
            image = pp.preprocess(gray, pp.PreprocessSettings(symbol_height=height, multiple=16))
            digest = hashlib.sha256(repr(image.shape).encode() + image.tobytes())
            found.append(digest.hexdigest()[:16])
    assert tuple(found) == TRAINED_WITH[name]


@pytest.mark.parametrize("pen", [2, 3, 4, 5, 6])
def test_a_clean_picture_is_not_touched(pen: int) -> None:
    for seed, tokens in enumerate((["1", "+", "0"], ["-"], ["0"])):
        strokes, _ = writing(tokens, seed)
        picture = ink.render(strokes, pen=pen)
        for gray in (picture, np.asarray(255 - picture, np.uint8)):
            mended = paper.mend(gray)
            assert mended.gray is gray
            assert mended.factor == 1.0


@pytest.fixture(scope="module")
def page() -> NDArray[np.uint8]:
    return np.asarray(255 - drawn("quadratic"), np.uint8)


# Mean difference from the clean picture's network input, of 255, where there is ink in it.
CLOSE = {"JPEG 50": 15, "lined paper": 5, "squared paper": 5}


@pytest.mark.parametrize(
    "name", [t.name for t in TRANSFORMATIONS if t.name not in ("scale x0.5", "photographed")]
)
def test_the_network_sees_the_same(page: NDArray[np.uint8], name: str) -> None:
    (transformation,) = chosen([name])
    data = transformation.make(page, np.random.default_rng(1))
    expected, found = pp.preprocess(page, SETTINGS), pp.load(data, SETTINGS)
    assert found.shape == expected.shape
    difference = np.abs(found.astype(float) - expected)[expected > 0].mean()
    assert difference <= CLOSE.get(name, 1)


def test_a_photograph_keeps_size_and_place() -> None:
    page = np.asarray(255 - drawn("pythagoras"), np.uint8)
    (transformation,) = chosen(["photographed"])
    for seed in range(4):
        data = transformation.make(page, np.random.default_rng(seed))
        expected, found = pp.prepare(page, SETTINGS), pp.prepare(pp.decode(data), SETTINGS)
        assert found.scale == pytest.approx(expected.scale, rel=0.02)
        place = np.subtract(found.origin, expected.origin)
        np.testing.assert_allclose(place, 60, atol=1.5)  # the photograph's margin


def test_enlarged_pictures_are_measured_in_their_own_pixels(page: NDArray[np.uint8]) -> None:
    (transformation,) = chosen(["scale x4"])
    large = pp.decode(transformation.make(page, np.random.default_rng(0)))
    expected, found = pp.prepare(page, SETTINGS), pp.prepare(large, SETTINGS)
    assert found.scale == pytest.approx(expected.scale / 4, rel=0.01)
    np.testing.assert_allclose(found.origin, np.multiply(expected.origin, 4), atol=2)


def test_a_bar_over_the_whole_width_is_ink() -> None:
    fraction = np.full((240, 600), 255, np.uint8)
    fraction[116:124] = 20  # a fraction bar that the crop cuts
    fraction[20:80, 200:208] = fraction[160:220, 200:208] = 20
    assert paper.mend(fraction).gray is fraction


@pytest.mark.parametrize("shape", [(60, 3), (3, 60), (9, 9)])
def test_a_perfect_bar_has_a_size(shape: tuple[int, int]) -> None:
    gray = np.zeros((80, 80), np.uint8)
    gray[5 : 5 + shape[0], 5 : 5 + shape[1]] = 255
    image = pp.preprocess(gray, SETTINGS)
    assert image.max() == 255
    assert (image > 0).sum() >= 18


def test_colours_of_one_lightness_are_told_apart(page: NDArray[np.uint8]) -> None:
    from PIL import Image

    from tests.test_preprocess import encode

    share = (255.0 - page)[:, :, None] / 255.0
    paper_, pen = np.array([60.0, 170.0, 60.0]), np.array([230.0, 60.0, 160.0])
    coloured = np.rint(share * pen + (1 - share) * paper_).astype(np.uint8)
    lightness = np.asarray(Image.fromarray(coloured).convert("L"), float)
    assert np.ptp(lightness) < 20
    found, expected = pp.load(encode(coloured), SETTINGS), pp.preprocess(page, SETTINGS)
    assert found.shape == expected.shape
    assert np.abs(found.astype(float) - expected).mean() < 2


def test_a_blank_sheet_with_lines_or_noise_is_blank() -> None:
    from hmer.errors import BlankImage

    noise = np.random.default_rng(0).normal(200, 2, (100, 300)).clip(0, 255).astype(np.uint8)
    with pytest.raises(BlankImage):
        pp.preprocess(noise, SETTINGS)
