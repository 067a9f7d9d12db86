"""Training's data: rendering as serving does, the split, augmentation, batches of like size."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from hmer import ink
from hmer.errors import DatasetError
from hmer.preprocess import load, size_class
from hmer.vocab import Vocabulary
from tests.handwriting import write_pack
from tests.training_fixtures import SETTINGS, VOCABULARY
from training.augment import AugmentSettings, augment
from training.data import (
    Example,
    Renderer,
    collate,
    estimate_size,
    few_sizes,
    plan_epoch,
    read_pack,
    split_by_writer_and_label,
)


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pack(tmp_path_factory.mktemp("data") / "train.jsonl", 32)


@pytest.fixture(scope="module")
def examples(pack: Path) -> list[Example]:
    return read_pack(pack)


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(VOCABULARY, SETTINGS, AugmentSettings())


def test_training_and_serving_see_the_same_bits(
    examples: list[Example], renderer: Renderer
) -> None:
    for example in examples:
        data = json.dumps([stroke.tolist() for stroke in example.strokes]).encode()
        assert np.array_equal(renderer.plain(example), load(data, SETTINGS))


def test_training_and_serving_see_the_same_bits_of_crohme(crohme: Path) -> None:
    found = read_pack(crohme / "test_2014.jsonl.gz")[:40]
    renderer = Renderer(VOCABULARY, SETTINGS, AugmentSettings())
    for example in found:
        data = json.dumps([stroke.tolist() for stroke in example.strokes]).encode()
        assert np.array_equal(renderer.plain(example), load(data, SETTINGS))


def test_held_out_shares_neither_writer_nor_label(crohme: Path) -> None:
    examples = read_pack(crohme / "train.jsonl.gz")
    split = split_by_writer_and_label(examples)
    assert 100 < len(split.held_out) < 600
    assert len(split.train) > 0.9 * len(examples)
    assert not {e.writer for e in split.train} & {e.writer for e in split.held_out}
    assert not {e.tokens for e in split.train} & {e.tokens for e in split.held_out}
    again = split_by_writer_and_label(list(reversed(examples)))
    assert {e.name for e in again.held_out} == {e.name for e in split.held_out}


def test_augmentation_is_seeded_and_keeps_strokes(examples: list[Example]) -> None:
    placed = ink.place(examples[0].strokes)
    one, same, other = (
        augment(placed, AugmentSettings(), np.random.default_rng(seed), 48.0) for seed in (1, 1, 2)
    )
    assert [len(s) for s in one.strokes] == [len(s) for s in placed]
    assert all(np.array_equal(a, b) for a, b in zip(one.strokes, same.strokes, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(one.strokes, other.strokes, strict=True))


def test_cells_lie_where_the_ink_is(examples: list[Example], renderer: Renderer) -> None:
    for index, example in enumerate(examples):
        sample = renderer.render(example, np.random.default_rng(index))
        ids = set(VOCABULARY.encode(example.tokens))
        assert set(sample.cells[:, 0].tolist()) == ids
        inked = np.zeros(tuple(n // 16 for n in sample.image.shape), bool)
        inked[sample.cells[:, 1], sample.cells[:, 2]] = True
        blocks = sample.image.reshape(inked.shape[0], 16, inked.shape[1], 16).max(axis=(1, 3))
        # A line's own width may reach into a neighbouring cell, no further.
        near = np.zeros_like(np.pad(inked, 1))
        for down in range(3):
            for right in range(3):
                near[down : down + inked.shape[0], right : right + inked.shape[1]] |= inked
        assert not ((blocks > 100) & ~near[1:-1, 1:-1]).any()
        assert (inked & (blocks < 30)).mean() < 0.1


def test_unknown_token_names_the_example(examples: list[Example]) -> None:
    renderer = Renderer(Vocabulary(["?"]), SETTINGS, AugmentSettings())
    with pytest.raises(DatasetError, match=examples[0].name):
        renderer.render(examples[0], np.random.default_rng(0))


@pytest.mark.parametrize(
    ("line", "word"),
    [("{", "line 2"), ('{"id": "a"}', "line 2"), ('{"id": 1, "norm": "", "strokes": [[[1,2]]]}',
      "no label")],
)  # fmt: skip
def test_broken_pack_names_the_line(tmp_path: Path, pack: Path, line: str, word: str) -> None:
    path = tmp_path / "broken.jsonl"
    first = pack.read_text(encoding="utf-8").splitlines()[0]
    path.write_text(f"{first}\n{line}\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=word):
        read_pack(path)


def test_epoch_visits_every_example_once(examples: list[Example]) -> None:
    sizes = [estimate_size(example, SETTINGS) for example in examples]
    plans = plan_epoch(sizes, (0.7, 1.2), 30_000, 5, np.random.default_rng(0))
    assert Counter(i for plan in plans for i in plan.indices) == Counter(range(len(examples)))
    for plan in plans:
        assert len(plan.indices) <= 5
        assert 0.7 <= plan.zoom <= 1.2
        if len(plan.indices) > 1:
            height = max(int(sizes[i][0] * plan.zoom) for i in plan.indices)
            width = max(int(sizes[i][1] * plan.zoom) for i in plan.indices)
            area = np.prod(size_class(height, width))
            assert area * len(plan.indices) <= 30_000


def test_few_sizes_hold_what_they_pad() -> None:
    assert few_sizes(40, 300) == (64, 384)
    assert few_sizes(64, 65) == (64, 96)
    for length in range(1, 1600):
        padded = few_sizes(length, 1)[0]
        assert length <= padded < max(65, 1.51 * length)


def test_batches_of_few_shapes(examples: list[Example], renderer: Renderer) -> None:
    sizes = [(40 + 3 * i % 50, 50 + 7 * i % 400) for i in range(300)]
    rng = np.random.default_rng(0)
    plans = plan_epoch(sizes, (0.7, 1.2), 400_000, 64, rng, few_sizes, 8)
    assert sorted(i for plan in plans for i in plan.indices) == list(range(300))
    odd = [plan for plan in plans if len(plan.indices) % 8 and len(plan.indices) >= 8]
    assert len(odd) <= 1  # the last one of the epoch

    samples = [renderer.render(e, np.random.default_rng(1)) for e in examples[:3]]
    samples.sort(key=lambda sample: -len(sample.ids))
    usual = collate(samples, len(renderer.vocabulary), renderer.settings.multiple)
    few = collate(samples, len(renderer.vocabulary), renderer.settings.multiple, few_sizes)
    height, width = usual.image.shape[2:]
    assert few.image.shape[2:] == few_sizes(*usual.size.amax(0).tolist())
    assert torch.equal(few.image[..., :height, :width], usual.image)
    assert int(few.image.sum()) == int(usual.image.sum())
    assert int(few.symbols.sum()) == int(usual.symbols.sum())
    assert torch.equal(few.size, usual.size)


def test_stronger_augmentation_moves_more(examples: list[Example]) -> None:
    strokes = ink.place(examples[0].strokes)

    def moved(factor: float) -> float:
        settings = AugmentSettings(pens=(4,)).times(factor)
        drawn = augment(strokes, settings, np.random.default_rng(2), ink.STROKE_HEIGHT)
        pairs = zip(drawn.strokes, strokes, strict=True)
        return float(np.mean([np.abs(a - b).mean() for a, b in pairs]))

    assert moved(0.0) < 1e-3
    assert moved(0.5) < moved(1.0) < moved(2.0)
