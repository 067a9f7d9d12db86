"""Two pictures of one writing: what they share, what they lose, and how training compares them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from hmer import ink
from hmer.preprocess import preprocess
from tests.handwriting import write_pack
from tests.training_fixtures import (
    RENDERER,
    SETTINGS,
    VOCABULARY,
    curve,
    examples,
    settings,
    trainer,
)
from training.augment import AugmentSettings
from training.batches import BatchMaker, Planner
from training.cli import main
from training.data import Renderer, estimate_size
from training.degrade import degrade
from training.losses import consistency_sum

STRIDE = SETTINGS.multiple
SEEN = AugmentSettings(degraded=0.6, jitter=0.05)


def test_one_view_is_what_was_rendered_before() -> None:
    """A run without views keeps its curve: the same draws in the same order."""
    example = examples()[0]
    one = RENDERER.render(example, np.random.default_rng(3), 0.9)
    rng = np.random.default_rng(3)
    views = RENDERER.views(example, rng, 0.9)
    for view in views:
        assert np.array_equal(view.image, one.image)
        assert np.array_equal(view.cells, one.cells)


def test_views_differ_and_keep_the_label() -> None:
    renderer = Renderer(VOCABULARY, SETTINGS, SEEN)
    different = 0
    for index, example in enumerate(examples()):
        first, second = renderer.views(example, np.random.default_rng(index))
        assert first.ids == second.ids == VOCABULARY.encode(example.tokens)
        for view in (first, second):
            assert view.image.shape[0] % STRIDE == view.image.shape[1] % STRIDE == 0
            assert view.image.max() > 200
        different += first.image.shape != second.image.shape or bool(
            (first.image != second.image).any()
        )
    assert different == len(examples())


def test_views_lie_in_other_places_on_the_grid() -> None:
    """Below the network's stride, which cropping to the ink would otherwise always put at one."""
    renderer = Renderer(VOCABULARY, SETTINGS, AugmentSettings(jitter=1e-6))
    places = set()
    for index in range(8):
        for view in renderer.views(examples()[0], np.random.default_rng(index)):
            rows, columns = np.nonzero(view.image > 128)
            places.add((int(rows.min()), int(columns.min())))
    tops, lefts = (max(place) - min(place) for place in zip(*places, strict=True))
    assert tops > STRIDE // 2
    assert lefts > STRIDE // 2


def test_cells_follow_the_picture() -> None:
    """Moved, scaled and degraded, the ink still lies in the cells that the symbols claim."""
    renderer = Renderer(VOCABULARY, SETTINGS, SEEN)
    outside = inked = 0
    for index, example in enumerate(examples()):
        for view in renderer.views(example, np.random.default_rng(index), count=3):
            rows, columns = (side // STRIDE for side in view.image.shape)
            blocks = view.image.reshape(rows, STRIDE, columns, STRIDE).max(axis=(1, 3))
            claimed = np.zeros((rows, columns), bool)
            claimed[view.cells[:, 1], view.cells[:, 2]] = True
            near = np.zeros((rows + 2, columns + 2), bool)
            for down in range(3):
                for right in range(3):
                    near[down : down + rows, right : right + columns] |= claimed
            outside += int(((blocks > 100) & ~near[1:-1, 1:-1]).sum())
            inked += int((claimed & (blocks < 30)).sum())
    assert outside == 0
    assert inked < 0.1 * sum(len(e.tokens) for e in examples()) * 3


def test_degraded_pictures_are_read_where_they_were() -> None:
    """``scale`` and ``shift`` say where a point went: the ink's box follows them."""
    gray = ink.render(examples()[1].strokes)
    rows, columns = np.nonzero(gray > 128)
    box = np.array([columns.min(), rows.min(), columns.max(), rows.max()])
    losses = set()
    for seed in range(60):
        found = degrade(gray, np.random.default_rng(seed))
        assert found.gray.dtype == np.uint8
        assert np.median(found.gray) > 128  # dark ink on bright paper
        paper = float(np.median(found.gray))
        dark = found.gray < 0.5 * (paper + float(found.gray.min()))
        rows, columns = np.nonzero(dark)
        seen = np.array([columns.min(), rows.min(), columns.max(), rows.max()])
        assert np.abs(seen - (box * found.scale + found.shift)).max() < 4
        losses.add((round(found.scale, 1), found.shift, len(np.unique(found.gray)) > 100))
    assert len(losses) > 10  # not one loss alone


def test_the_same_seed_degrades_alike() -> None:
    gray = ink.render(examples()[2].strokes)
    for seed in range(5):
        one, two = (degrade(gray, np.random.default_rng(seed)) for _ in range(2))
        assert np.array_equal(one.gray, two.gray)


def test_a_writing_too_faint_for_a_loss_stays() -> None:
    """A dot is not lost: where preprocessing refuses the degraded picture, the clean one is used.

    Every picture that training makes has ink.
    """
    renderer = Renderer(VOCABULARY, SETTINGS, AugmentSettings(degraded=1.0))
    for index in range(30):
        view = renderer.views(examples()[0], np.random.default_rng(index), count=1)[0]
        assert view.image.any()


def test_pairs_are_neighbours_in_a_batch() -> None:
    chosen = settings(consistency=1.0, limit=8)
    data = list(examples())
    planner = Planner(
        chosen,
        [estimate_size(e, SETTINGS) for e in data],
        [len(e.tokens) for e in data],
        (1.0, 1.0),
    )
    maker = BatchMaker(Renderer(VOCABULARY, SETTINGS, SEEN), data, chosen.seed, views=chosen.views)
    jobs = planner.jobs(0, 0)
    seen = 0
    while seen < 2 * len(data):
        job = next(jobs)
        batch = maker.make(job)
        assert len(batch.targets) == job.rows == 2 * len(job.indices) <= 8
        assert torch.equal(batch.targets[0::2], batch.targets[1::2])
        assert not torch.equal(batch.image[0::2], batch.image[1::2])
        seen += job.rows


def test_consistency_is_the_symmetric_divergence() -> None:
    scores = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    expected = 0.0
    for first, second in ((0, 1), (2, 3), (4, 5)):
        p, q = scores[first].softmax(0), scores[second].softmax(0)
        expected += float((p * (p / q).log()).sum() + (q * (q / p).log()).sum())
    assert float(consistency_sum(scores)) == pytest.approx(expected, rel=1e-5)
    assert float(consistency_sum(scores.repeat_interleave(2, 0))) == 0.0


def test_a_run_with_pairs_is_resumed_with_the_same_curve(tmp_path: Path) -> None:
    chosen = {"consistency": 1.0, "limit": 8}
    whole = trainer(tmp_path / "whole", settings(**chosen))
    whole.run()
    part = trainer(tmp_path / "part", settings(**chosen, steps=4))
    part.settings = settings(**chosen)
    part.listener = lambda report: setattr(part, "stopping", report.step >= 4)
    part.run()
    trainer(tmp_path / "part", settings(**chosen)).run()
    assert curve(tmp_path / "whole") == curve(tmp_path / "part")
    told = curve(tmp_path / "whole", "consistency")
    # Dropout alone tells two equal pictures apart, as in R-Drop.
    assert all(value > 0 for value in told.values())


def test_frozen_statistics_stay(tmp_path: Path) -> None:
    for frozen in (False, True):
        run = trainer(tmp_path / str(frozen), settings(freeze_norm=frozen))
        before = {k: v.clone() for k, v in run.model.state_dict().items()}
        run.run()
        moved = {k for k, v in run.model.state_dict().items() if not torch.equal(v, before[k])}
        assert any(name.endswith("running_mean") for name in moved) is not frozen
        assert "encoder.stem.weight" in moved


def test_the_command_trains_on_views(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "train.jsonl", 16)
    result = CliRunner().invoke(
        main,
        f"train --data {pack} --save-dir {tmp_path / 'run'} --steps 2 --held-out 0 "
        "--widths 16,16,16,16 --attention 8 --hidden 12 --embedding 4 --symbol-height 20 "
        "--batch-size 4 --degrade 0.5 --jitter 0.04 --consistency 2 --freeze-norm".split(),
    )
    assert result.exit_code == 0, result.output
    assert set(curve(tmp_path / "run", "consistency")) == {1, 2}


def test_serving_sees_no_view() -> None:
    """What training does to a picture, recognition does not: ``plain`` is preprocessing alone."""
    renderer = Renderer(VOCABULARY, SETTINGS, SEEN)
    example = examples()[0]
    expected = preprocess(ink.render(example.strokes), SETTINGS)
    assert np.array_equal(renderer.plain(example), expected)
