"""Pictures as training examples: augmentation, the same preprocessing as serving, batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from hmer import ink
from hmer.errors import BlankImage
from hmer.preprocess import PreprocessSettings, extract_ink, load
from hmer.vocab import Vocabulary
from tests.handwriting import writing
from tests.test_sources import draw
from training.augment import AugmentSettings
from training.augment_image import MAX_PIXELS, augment_picture, pen_width
from training.data import Example, Renderer, collate, estimate_size, split_by_writer_and_label
from training.sources import open_source

SETTINGS = PreprocessSettings(symbol_height=20, multiple=16)
VOCABULARY = Vocabulary(["0", "1", "+", "-"])
STILL = AugmentSettings(aspect=0.0, shear=0.0, rotation=0.0, wobble=0.0, pens=(4,))
TEXTS = ("1+0", "0-1", "11", "0+0-1")


@pytest.fixture
def examples(tmp_path: Path) -> list[Example]:
    for index, text in enumerate(TEXTS):
        draw(tmp_path / f"{index}.png", text, index)
    lines = [f"{index}\t{text}\n" for index, text in enumerate(TEXTS)]
    (tmp_path / "caption.txt").write_text("".join(lines), encoding="utf-8")
    return open_source(tmp_path).examples


@pytest.fixture
def renderer() -> Renderer:
    return Renderer(VOCABULARY, SETTINGS, AugmentSettings())


def picture(seed: int = 0, **options: int) -> np.ndarray:
    return ink.render(writing(["0", "+", "1"], seed)[0], **options)


def test_training_and_serving_see_the_same_bits(
    examples: list[Example], renderer: Renderer
) -> None:
    for example in examples:
        assert example.picture is not None
        expected = load(example.picture.path.read_bytes(), SETTINGS)
        assert np.array_equal(renderer.plain(example), expected)


def test_sizes_are_known_without_reading_again(examples: list[Example], renderer: Renderer) -> None:
    for example in examples:
        assert example.picture is not None
        planned = estimate_size(example, SETTINGS)
        for planned_side, side in zip(planned, renderer.plain(example).shape, strict=True):
            assert planned_side <= side < planned_side + SETTINGS.multiple + 2


def test_pictures_are_read_when_they_are_needed(
    examples: list[Example], renderer: Renderer
) -> None:
    """Nothing of the pixels stays in memory: another file under the name is another picture."""
    before = renderer.plain(examples[0])
    path = examples[0].picture.path  # type: ignore[union-attr]
    path.write_bytes(examples[3].picture.path.read_bytes())  # type: ignore[union-attr]
    assert renderer.plain(examples[0]).shape != before.shape


def test_pictures_and_strokes_share_batches_and_lose_only_the_segmentation(
    examples: list[Example], renderer: Renderer
) -> None:
    strokes, segments = writing(["0", "+"], 9)
    drawn = Example("s", "", ("0", "+"), strokes, tuple((s, tuple(i)) for s, i in segments))
    samples = [
        renderer.render(example, np.random.default_rng(n))
        for n, example in enumerate([drawn, *examples])
    ]
    batch = collate(samples, len(VOCABULARY), SETTINGS.multiple)
    assert batch.symbols[0].any()
    assert not batch.symbols[1:].any()


def test_augmentation_is_seeded_and_changes_the_picture(
    examples: list[Example], renderer: Renderer
) -> None:
    one, same, other = (
        renderer.render(examples[0], np.random.default_rng(seed)).image for seed in (1, 1, 2)
    )
    assert np.array_equal(one, same)
    assert one.shape != other.shape or not np.array_equal(one, other)


def test_polarity_and_paper_do_not_matter() -> None:
    white_on_black = picture()
    on_gray = (200 - white_on_black * 0.5).astype(np.uint8)
    results = [
        augment_picture(gray, AugmentSettings(), np.random.default_rng(3))
        for gray in (white_on_black, 255 - white_on_black, on_gray)
    ]
    for result in results[1:]:
        assert result.shape == results[0].shape
        assert np.abs(result.astype(int) - results[0]).mean() < 4


def test_without_ranges_the_picture_stays() -> None:
    """Only resampled: what preprocessing makes of it is nearly what it makes of the original."""
    gray = picture(pen=4)
    result = augment_picture(gray, STILL, np.random.default_rng(0))
    both = [load(encoded(image), SETTINGS) for image in (gray, result)]
    assert both[0].shape == both[1].shape
    a, b = (image.astype(float) > 100 for image in both)
    assert (a & b).sum() / (a | b).sum() > 0.8


def encoded(image: np.ndarray) -> bytes:
    return bytes(cv2.imencode(".png", image)[1])


@pytest.mark.parametrize(
    ("changed", "axis", "larger"),
    [({"aspect": 0.5}, 1, True), ({"shear": 0.8}, 1, True), ({"rotation": 25.0}, 0, True)],
)
def test_each_affine_range_does_what_it_says(
    changed: dict[str, float], axis: int, larger: bool
) -> None:
    """The largest of many draws is stretched along the axis that the range is about."""
    gray = picture()
    still = extent(augment_picture(gray, STILL, np.random.default_rng(0)))
    settings = replace(STILL, **changed)  # type: ignore[arg-type]
    drawn = [
        extent(augment_picture(gray, settings, np.random.default_rng(n)))[axis] for n in range(12)
    ]
    assert (max(drawn) > 1.12 * still[axis]) is larger


def extent(gray: np.ndarray) -> tuple[int, int]:
    rows, columns = np.nonzero(extract_ink(gray) > 64)
    return int(np.ptp(rows)), int(np.ptp(columns))


def test_waves_bend_lines() -> None:
    line = np.zeros((60, 400), np.uint8)
    cv2.line(line, (10, 30), (390, 30), (255,), 5)
    cv2.line(line, (10, 10), (10, 50), (255,), 5)
    bent = replace(STILL, wobble=0.15)
    heights = [
        np.ptp(np.nonzero(augment_picture(line, s, np.random.default_rng(4))[:, 60:-60] > 128)[0])
        for s in (STILL, bent)
    ]
    assert heights[1] > heights[0] + 4


def test_pens_make_lines_thinner_and_thicker_and_keep_hairlines() -> None:
    gray = picture(pen=4)
    widths = [
        pen_width(augment_picture(gray, replace(STILL, pens=(pen,)), np.random.default_rng(0)))
        for pen in (2, 4, 7)
    ]
    assert widths[0] + 0.8 < widths[1] < widths[2] - 1.5
    hair = gray.copy()
    cv2.line(hair, (10, 5), (hair.shape[1] - 10, 5), (255,), 1)
    thin = augment_picture(hair, replace(STILL, pens=(2,)), np.random.default_rng(0))
    top = thin[:20].max(axis=0)
    assert (top[20:-20] > 100).mean() > 0.9


def test_specks_on_a_large_page_do_not_cost_memory() -> None:
    page = np.full((3000, 4000), 255, np.uint8)
    page[::500, ::500] = 0
    page[1000:1004, 1000:1004] = 0
    result = augment_picture(page, AugmentSettings(), np.random.default_rng(0))
    assert result.size < 3 * MAX_PIXELS


def test_blank_paper_is_refused() -> None:
    with pytest.raises(BlankImage):
        augment_picture(np.full((50, 90), 200, np.uint8), STILL, np.random.default_rng(0))


def test_without_writers_labels_are_held_out() -> None:
    tokens = [(str(n),) for n in range(200) for _ in range(n % 3 + 1)]
    examples = [Example(f"e{n}", "", t) for n, t in enumerate(tokens)]
    split = split_by_writer_and_label(examples, 0.2)
    assert len(split.train) + len(split.held_out) == len(examples)
    assert not {e.tokens for e in split.train} & {e.tokens for e in split.held_out}
    assert 0.1 < len(split.held_out) / len(examples) < 0.3
    again = split_by_writer_and_label(list(reversed(examples)), 0.2)
    assert {e.name for e in again.held_out} == {e.name for e in split.held_out}
