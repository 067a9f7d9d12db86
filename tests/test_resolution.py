"""An enlarged picture comes back; a small one stays as it is."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hmer import ink, paper
from hmer.resolution import unenlarged
from tests.handwriting import writing


@pytest.fixture(scope="module")
def page() -> NDArray[np.uint8]:
    strokes, _ = writing(["1", "+", "0"], 4)
    return np.asarray(255 - ink.render(strokes), np.uint8)


@pytest.mark.parametrize("times", [2, 3, 4])
@pytest.mark.parametrize("method", ["cubic", "linear", "lanczos", "pillow cubic", "pillow lanczos"])
def test_an_enlarged_picture_comes_back(page: NDArray[np.uint8], times: int, method: str) -> None:
    size = (page.shape[1] * times, page.shape[0] * times)
    if method.startswith("pillow"):
        kind = Image.Resampling.BICUBIC if "cubic" in method else Image.Resampling.LANCZOS
        large = np.asarray(Image.fromarray(page).resize(size, kind))
    else:
        codes = {
            "cubic": cv2.INTER_CUBIC,
            "linear": cv2.INTER_LINEAR,
            "lanczos": cv2.INTER_LANCZOS4,
        }
        large = np.asarray(cv2.resize(page, size, interpolation=codes[method]), np.uint8)
    found = unenlarged(large, times)
    assert found is not None
    assert found.shape == page.shape
    difference = np.abs(found.astype(int) - page)
    # Pillow cuts overshoots off between its two passes, which is not undone.
    assert int(difference.max()) <= (12 if "pillow" in method else 2)
    assert float(difference[page < 255].mean()) < (2.0 if "pillow" in method else 0.2)


@pytest.mark.parametrize("factor", [1.5, 1.7, 2.5, 3.3])
@pytest.mark.parametrize("method", [cv2.INTER_CUBIC, cv2.INTER_LINEAR, cv2.INTER_LANCZOS4])
def test_other_factors_are_left_alone(page: NDArray[np.uint8], factor: float, method: int) -> None:
    """Taken for a whole number, such a picture would lose detail, at a high price."""
    size = (round(page.shape[1] * factor) // 6 * 6, round(page.shape[0] * factor) // 6 * 6)
    large = np.asarray(cv2.resize(page, size, interpolation=method), np.uint8)
    assert unenlarged(large, 2) is None
    assert unenlarged(large, 3) is None
    assert paper.mend(large).factor == 1.0


@pytest.mark.parametrize("pen", [2, 3, 4, 6])
@pytest.mark.parametrize("seed", range(4))
def test_clean_writing_is_not_taken_for_enlarged(pen: int, seed: int) -> None:
    strokes, _ = writing(["1", "+", "0"], seed)
    clean = np.asarray(255 - ink.render(strokes, pen=pen), np.uint8)
    assert paper.mend(clean).gray is clean
    size = (clean.shape[1] * 2, clean.shape[0] * 2)
    large = np.asarray(cv2.resize(clean, size, interpolation=cv2.INTER_CUBIC), np.uint8)
    assert paper.mend(large).factor == 0.5


def test_small_writing_is_left_alone(page: NDArray[np.uint8]) -> None:
    """Enlarging it here cost answers on pictures that people had made small."""
    size = (page.shape[1] // 2, page.shape[0] // 2)
    small = np.asarray(cv2.resize(page, size, interpolation=cv2.INTER_AREA), np.uint8)
    mended = paper.mend(small)
    assert mended.factor == 1.0
    np.testing.assert_array_equal(mended.gray, small)
