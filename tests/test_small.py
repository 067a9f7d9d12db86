"""Small writing: its size between the pixels, and edges as sharp as they were."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from hmer import ink
from hmer import preprocess as pp
from hmer.small import doubled, enlarged
from tests.handwriting import writing

SETTINGS = pp.PreprocessSettings(symbol_height=38.4, multiple=16)
Gray = NDArray[np.uint8]


def page(seed: int) -> Gray:
    """Black ink on white paper, uint8 (H, W), of the size that strokes are drawn in.

    Without a dash: one as high as a tenth of the tallest symbol counts at one size and not at
    the next.
    """
    strokes, _ = writing(["1", "+", "0", "1", "0"], seed)
    return 255 - ink.render(strokes)


def reduced(gray: Gray, factor: float, threshold: int | None = None) -> Gray:
    height, width = (round(side * factor) for side in gray.shape)
    small = cv2.resize(gray, (width, height), interpolation=cv2.INTER_AREA)
    if threshold is not None:
        small = np.where(small < threshold, 0, 255)
    return np.asarray(small, np.uint8)


@pytest.mark.parametrize("factor", [0.35, 0.5, 0.7])
def test_strokes_that_nearly_touch_stay_apart(factor: float) -> None:
    """Two bars a pixel's width apart, once reduced, are not one symbol of twice the height."""
    clean = np.zeros((140, 200), np.uint8)
    clean[10:60, 20:28] = clean[66:116, 20:28] = clean[10:60, 100:108] = 255
    ratio = pp.typical_height(reduced(clean, factor)) / factor / pp.typical_height(clean)
    assert ratio == pytest.approx(1.0, abs=0.08)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("threshold", [None, 128])
def test_reduced_writing_is_as_large_as_it_was(seed: int, threshold: int | None) -> None:
    clean = page(seed)
    small = pp.measure(reduced(clean, 0.5, threshold))
    assert 2 * small.height / small.factor == pytest.approx(pp.measure(clean).height, rel=0.08)


def test_large_writing_is_measured_as_before() -> None:
    large = np.asarray(255 - cv2.resize(page(1), None, fx=2, fy=2), np.uint8)
    mask = (large >= pp.INK_LEVEL).astype(np.uint8)
    heights = cv2.connectedComponentsWithStats(mask, connectivity=8)[2][1:, cv2.CC_STAT_HEIGHT]
    assert min(heights) > pp.SMALL_HEIGHT / 10
    tall = heights[heights >= 0.1 * heights.max()]
    assert pp.typical_height(large) == pytest.approx(float(tall.mean()))


@pytest.mark.parametrize("size", [(40, 70), (64, 100), (41, 71), (40, 110)])
def test_size_and_levels(size: tuple[int, int]) -> None:
    small = np.zeros((40, 70), np.uint8)
    small[5:30, 10:14] = 255
    out = enlarged(small, size)
    assert out.shape == size
    assert out.dtype == np.uint8
    assert out.max() == 255
    assert not out[-2:].any()
    assert doubled(small).shape == (80, 140)


@pytest.mark.parametrize(("threshold", "share"), [(None, 0.29), (128, 0.82)])
def test_nearer_to_the_large_picture_than_by_interpolation(
    threshold: int | None, share: float
) -> None:
    """In grey levels and in one bit: what is added is the picture that was, not a blurred one."""
    ours, plain = [], []
    for seed in range(6):
        clean = 255 - page(seed)
        small = reduced(clean, 0.5, threshold)
        size = (clean.shape[1], clean.shape[0])
        found = enlarged(small, (size[1], size[0])).astype(float)
        linear = cv2.resize(small, size, interpolation=cv2.INTER_LINEAR).astype(float)
        ours.append(np.abs(found - clean).mean())
        plain.append(np.abs(linear - clean).mean())
    assert np.mean(ours) < share * np.mean(plain)


def test_edges_stay_where_they_are() -> None:
    """The half level of an edge is at the same place: strokes get neither thinner nor thicker."""
    for threshold in (None, 128):
        clean = 255 - page(3)
        small = reduced(clean, 0.5, threshold)
        area = float((small / 255).sum()) * 4
        found = enlarged(small, clean.shape)
        assert float((found / 255).sum()) == pytest.approx(area, rel=0.06)


def test_a_large_page_of_small_writing_is_not_doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take four times the memory, for a height that nothing depends on."""
    asked: list[tuple[int, ...]] = []

    def noting(levels: Gray) -> Gray:
        asked.append(levels.shape)
        return doubled(levels)

    monkeypatch.setattr(pp, "doubled", noting)
    word = np.zeros((40, 200), np.uint8)
    word[8:32, 20:26] = 255
    pp.typical_height(np.tile(word, (3, 2)))
    assert asked == [(120, 400)]
    large = np.tile(word, (30, 8))
    assert 24 <= pp.typical_height(large) < pp.SMALL_HEIGHT
    assert len(asked) == 1


def test_a_single_dot_is_a_picture() -> None:
    gray = np.full((20, 20), 255, np.uint8)
    gray[10, 10] = 0
    image = pp.preprocess(gray, SETTINGS)
    assert image.max() == 255
