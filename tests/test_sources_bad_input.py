"""Bad input in data sources: named with file and line, skipped and counted, or fatal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hmer.errors import DatasetError, VocabularyMismatch
from hmer.preprocess import PreprocessSettings
from hmer.vocab import Vocabulary
from tests.handwriting import write_pack
from tests.test_sources import INKML, draw
from training.augment import AugmentSettings
from training.data import Renderer
from training.sources import open_source

VOCABULARY = Vocabulary(["0", "1", "+", "-"])


def captions(folder: Path, bad: str, break_image: Callable[[Path], object] | None = None) -> Path:
    """Three pictures and their captions; the second one is ``bad`` on line 2."""
    for name in ("a", "b", "c"):
        draw(folder / f"{name}.png", "1+0")
    if break_image:
        break_image(folder / "b.png")
    path = folder / "caption.txt"
    path.write_text(f"a 1 + 0\n{bad}\nc 1 - 0\n", encoding="utf-8")
    return path


BAD = {
    "unknown token": ("b 1 + \\foo", None, "'\\\\foo'"),
    "label too long": ("b" + " 1" * 9, None, "9 tokens"),
    "empty label": ("b", None, "no label"),
    "label that is no single-line formula": ("b \\frac { 1", None, "cannot be parsed"),
    "missing image": ("zzz 1", None, "zzz"),
    "unreadable image": ("b 1", lambda path: path.write_bytes(path.read_bytes()[:60]), "b.png"),
}


@pytest.mark.parametrize("kind", BAD)
def test_each_kind_is_skipped_counted_and_named(tmp_path: Path, kind: str) -> None:
    bad, break_image, word = BAD[kind]
    path = captions(tmp_path, bad, break_image)  # type: ignore[arg-type]
    options = {"vocabulary": VOCABULARY, "sequence_length": 8}
    loaded = open_source(tmp_path, **options)  # type: ignore[arg-type]
    assert [e.name for e in loaded.examples] == ["a", "c"]
    assert loaded.to_dict()["skipped"] == {kind: 1}
    said = "\n".join(loaded.sentences())
    assert f"1 of 3 entries skipped: 1 {kind}" in said
    assert f"{path}, line 2" in said
    assert word in said
    with pytest.raises(DatasetError, match="line 2") as error:
        open_source(tmp_path, strict=True, **options)  # type: ignore[arg-type]
    assert word in str(error.value)
    assert "--strict" in str(error.value)


@pytest.mark.parametrize(
    "kind", ["unknown token", "label too long", "label that is no single-line formula"]
)
def test_evaluation_keeps_what_can_only_be_wrong(tmp_path: Path, kind: str) -> None:
    """Leaving out what a checkpoint cannot write would raise its score."""
    captions(tmp_path, str(BAD[kind][0]))
    loaded = open_source(tmp_path, split="eval", vocabulary=VOCABULARY, sequence_length=8)
    assert [e.name for e in loaded.examples] == ["a", "b", "c"]
    assert loaded.to_dict()["flagged"] == {kind: 1}
    assert loaded.to_dict()["skipped"] == {}
    assert "line 2" in "\n".join(loaded.sentences())


@pytest.mark.parametrize(
    ("break_image", "word"),
    [
        (lambda path: path.write_bytes(b""), "b.png"),
        (lambda path: path.write_bytes(b"no picture"), "not a PNG"),
        (lambda path: draw_blank(path), "blank"),
        (lambda path: (path.unlink(), path.mkdir()), "b"),
    ],
)
def test_images_that_cannot_be_read(
    tmp_path: Path, break_image: Callable[[Path], object], word: str
) -> None:
    captions(tmp_path, "b 1", break_image)
    loaded = open_source(tmp_path)
    assert [e.name for e in loaded.examples] == ["a", "c"]
    assert word in loaded.skipped[0].reason


def draw_blank(path: Path) -> None:
    import cv2

    cv2.imwrite(str(path), np.full((40, 40), 255, np.uint8))


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("{broken", "broken entry"),
        ('{"id": "a"}', "broken entry"),
        ('["a"]', "broken entry"),
        ('{"id": "a", "norm": 3, "strokes": [[[1, 2], [3, 4]]]}', "broken entry"),
        ('{"id": "a", "norm": "1", "strokes": [[[1, 2]]], "segs": [["1", [4]]]}', "broken entry"),
        ('{"id": "a", "norm": "1", "strokes": []}', "unreadable ink"),
        ('{"id": "a", "norm": "1", "strokes": [[[1, NaN]]]}', "unreadable ink"),
        ('{"id": "a", "norm": "{ }", "strokes": [[[1, 2], [3, 4]]]}', "empty label"),
        ('{"id": "a", "strokes": [[[1, 2], [3, 4]]]}', "empty label"),
    ],
)
def test_bad_lines_of_a_pack(tmp_path: Path, line: str, kind: str) -> None:
    pack = write_pack(tmp_path / "train.jsonl", 2)
    with pack.open("a", encoding="utf-8") as stream:
        stream.write(f"{line}\n")
    loaded = open_source(pack)
    assert len(loaded.examples) == 2
    assert [(p.kind, p.where) for p in loaded.skipped] == [(kind, f"{pack}, line 3")]


@pytest.mark.parametrize(
    ("row", "word"),
    [
        ({"images": "a.png"}, "no label"),
        ({"labels": "1"}, "no image"),
        ({"images": 3, "labels": "1"}, "no image"),
        ("a.png", "not an object"),
        ({"images": "", "labels": "1"}, "empty"),
    ],
)
def test_bad_entries_of_a_list(tmp_path: Path, row: object, word: str) -> None:
    draw(tmp_path / "a.png", "1")
    rows = [{"images": "a.png", "labels": "1"}, row]
    (tmp_path / "train.json").write_text(json.dumps(rows), encoding="utf-8")
    problem = open_source(tmp_path).skipped[0]
    assert problem.where == f"{tmp_path / 'train.json'}, entry 2"
    assert word in problem.reason


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("<ink", "unreadable ink"),
        ("<ink><annotation type='truth'>1</annotation></ink>", "unreadable ink"),
        ("<ink><trace>0 0, 1 1</trace></ink>", "empty label"),
        (INKML.format(truth="$ $"), "empty label"),
        # Symbols have a truth of their own, which is not the label.
        (INKML.replace('type="truth">{truth}', 'type="other">'), "empty label"),
    ],
)
def test_bad_inkml(tmp_path: Path, content: str, kind: str) -> None:
    (tmp_path / "good.inkml").write_text(INKML.format(truth="1+"), encoding="utf-8")
    (tmp_path / "bad.inkml").write_text(content, encoding="utf-8")
    loaded = open_source(tmp_path)
    assert [e.name for e in loaded.examples] == ["good"]
    assert [(p.kind, Path(p.where).name) for p in loaded.skipped] == [(kind, "bad.inkml")]


@pytest.mark.parametrize("split", ["train", "eval"])
def test_a_checkpoint_of_another_vocabulary(tmp_path: Path, split: str) -> None:
    path = captions(tmp_path, "b 1")
    with pytest.raises(VocabularyMismatch) as error:
        open_source(tmp_path, split=split, vocabulary=Vocabulary(["x", "y"]))
    assert f"{path}, line 1" in str(error.value)
    assert "none of the 3 labels" in str(error.value)


def test_a_picture_that_disappears_is_named(tmp_path: Path) -> None:
    captions(tmp_path, "b 1")
    example = open_source(tmp_path).examples[1]
    (tmp_path / "b.png").unlink()
    renderer = Renderer(VOCABULARY, PreprocessSettings(), AugmentSettings())
    for make in (renderer.plain, lambda e: renderer.render(e, np.random.default_rng(0))):
        with pytest.raises(DatasetError, match=r"b\.png"):
            make(example)


def test_a_few_known_labels_are_enough(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", "1")
    (tmp_path / "caption.txt").write_text("a x\na y\na 1\na z\n", encoding="utf-8")
    loaded = open_source(tmp_path, vocabulary=VOCABULARY)
    assert len(loaded.examples) == 1
    assert loaded.to_dict()["skipped"] == {"unknown token": 3}
    evaluated = open_source(tmp_path, split="eval", vocabulary=VOCABULARY)
    assert len(evaluated.examples) == 4


def test_a_hint_where_all_pictures_are_missing(tmp_path: Path) -> None:
    draw(tmp_path / "elsewhere" / "a.png", "1")
    (tmp_path / "caption.txt").write_text("a\t1\n", encoding="utf-8")
    with pytest.raises(DatasetError, match="--image-dir"):
        open_source(tmp_path)
    assert len(open_source(tmp_path, image_dir=tmp_path / "elsewhere").examples) == 1
