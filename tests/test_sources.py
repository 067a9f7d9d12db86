"""Data sources: every kind read from files, found by its content, split as it says."""

from __future__ import annotations

import gzip
import json
import re
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from hmer import ink
from hmer.errors import DatasetError
from tests.handwriting import write_pack, writing
from training.sources import open_source, own_eval

LATEX = [r"$1+0$", r"0-1", r"\frac{1}{0}", r"1_0^1"]
CANONICAL = ["1 + 0", "0 - 1", r"\frac { 1 } { 0 }", "1 _ { 0 } ^ { 1 }"]


def draw(path: Path, tokens: str, seed: int = 0) -> None:
    """A picture of some of the shapes, dark ink on white paper."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shapes = [c for c in tokens if c in "01+-"] or ["0"]
    assert cv2.imwrite(str(path), 255 - ink.render(writing(shapes, seed)[0]))


def pictures(folder: Path, suffix: str = ".png") -> list[str]:
    names = [f"p{index}{suffix}" for index in range(len(LATEX))]
    for name, latex in zip(names, LATEX, strict=True):
        draw(folder / name, latex)
    return names


def labels(data: Path, **options: object) -> list[str]:
    return [" ".join(e.tokens) for e in open_source(data, **options).examples]  # type: ignore[arg-type]


def write_list(path: Path, names: list[str], latex: list[str]) -> None:
    rows = [{"images": n, "labels": text} for n, text in zip(names, latex, strict=True)]
    path.write_text(json.dumps(rows), encoding="utf-8")


INKML = """<?xml version="1.0"?><ink xmlns="http://www.w3.org/2003/InkML">
<annotation type="writer">w7</annotation><annotation type="truth">{truth}</annotation>
<trace id="a">0 0, 10 100, 5 50</trace><trace id="empty"> </trace>
<trace id="b">40 50, 90 50</trace><trace id="c">65 20, 65 80</trace>
<traceGroup><annotation type="truth">Segmentation</annotation>
<traceGroup><annotation type="truth">1</annotation><traceView traceDataRef="a"/></traceGroup>
<traceGroup><annotation type="truth">+</annotation><traceView traceDataRef="c"/>
<traceView traceDataRef="b"/></traceGroup></traceGroup></ink>"""


@pytest.mark.parametrize("zipped", [True, False])
def test_stroke_pack(tmp_path: Path, zipped: bool) -> None:
    pack = write_pack(tmp_path / "train.jsonl", 6)
    if zipped:
        (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(pack.read_bytes()))
        pack.unlink()
    loaded = open_source(tmp_path)
    assert loaded.source.kind == "stroke pack"
    assert [e.name for e in loaded.examples] == [f"w{i}" for i in range(6)]
    assert all(e.strokes and e.segments and e.writer for e in loaded.examples)
    assert loaded.examples[2].where.endswith("line 3")
    assert loaded.to_dict()["skipped"] == {}


def test_inkml_folder_with_segmentation(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "one.inkml").write_text(INKML.format(truth="$1+$"), encoding="utf-8")
    (tmp_path / "two.INKML").write_text(INKML.format(truth=r"\frac{1}+"), encoding="utf-8")
    first, second = open_source(tmp_path).examples
    assert (first.name, first.writer, first.tokens) == ("one", "w7", ("1", "+"))
    assert first.segments == (("1", (0,)), ("+", (2, 1)))  # the empty trace has no number
    assert [len(stroke) for stroke in first.strokes] == [3, 2, 2]
    assert second.tokens == ("\\frac", "{", "1", "}", "{", "+", "}")


def test_inkml_keeps_its_parts_apart(tmp_path: Path) -> None:
    for place in ("a.inkml", "more/b.inkml", "val/c.inkml", "test/d.inkml"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text(INKML.format(truth="1+"), encoding="utf-8")
    assert [e.name for e in open_source(tmp_path).examples] == ["a", "b"]
    assert [e.name for e in open_source(tmp_path, split="eval").examples] == ["c"]


@pytest.mark.parametrize("place", [".", "images", "elsewhere"])
def test_owners_layout(tmp_path: Path, place: str) -> None:
    names = pictures(tmp_path / place)
    write_list(tmp_path / "train.json", names[:3], LATEX[:3])
    write_list(tmp_path / "eval.json", names[3:], LATEX[3:])
    image_dir = tmp_path / place if place == "elsewhere" else None
    assert labels(tmp_path, image_dir=image_dir) == CANONICAL[:3]
    assert labels(tmp_path, split="eval", image_dir=image_dir) == CANONICAL[3:]
    loaded = open_source(tmp_path, image_dir=image_dir)
    first = loaded.examples[0]
    assert loaded.source.kind == "JSON list"
    assert first.picture is not None
    assert first.picture.path == tmp_path / place / "p0.png"
    assert first.where == f"{tmp_path / 'train.json'}, entry 1"
    assert not first.strokes


@pytest.mark.parametrize("between", ["\t", " ", "   "])
@pytest.mark.parametrize("ending", ["", ".png", ".bmp"])
def test_caption_file(tmp_path: Path, between: str, ending: str) -> None:
    pictures(tmp_path / "img")
    lines = [f"p{i}{ending}{between}{text}" for i, text in enumerate(LATEX)]
    text = "\ufeff" + "\r\n\r\n".join(lines)  # byte order mark, blank lines, Windows
    (tmp_path / "caption.txt").write_text(text, encoding="utf-8", newline="")
    loaded = open_source(tmp_path)
    assert loaded.source.kind == "caption file"
    assert [" ".join(e.tokens) for e in loaded.examples] == CANONICAL
    assert loaded.examples[1].where.endswith("caption.txt, line 3")


@pytest.mark.parametrize(
    "rows",
    [
        ["image,label", *(f'p{i}.png,"{text}"' for i, text in enumerate(LATEX))],
        ["n,Latex,FileName", *(f"{i},{text},p{i}" for i, text in enumerate(LATEX))],
        [f"p{i},{text}" for i, text in enumerate(LATEX)],
    ],
)
def test_table(tmp_path: Path, rows: list[str]) -> None:
    pictures(tmp_path)
    (tmp_path / "formulas.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    assert labels(tmp_path) == CANONICAL
    assert labels(tmp_path / "formulas.csv") == CANONICAL


def test_table_names_the_line_after_a_cell_over_lines(tmp_path: Path) -> None:
    pictures(tmp_path)
    text = 'image,label\np0,"1\n+\n0"\n\nmissing,1\n'
    (tmp_path / "train.csv").write_text(text, encoding="utf-8")
    loaded = open_source(tmp_path)
    assert [e.tokens for e in loaded.examples] == [("1", "+", "0")]
    assert loaded.skipped[0].where.endswith("train.csv, line 6")


def test_json_lines_of_pictures(tmp_path: Path) -> None:
    names = pictures(tmp_path / "sub", ".jpg")
    rows = [{"image": f"sub/{n}", "label": t} for n, t in zip(names, LATEX, strict=True)]
    rows[1]["label"] = ["0", "-", "1"]
    text = "\n".join(map(json.dumps, rows))
    (tmp_path / "data.jsonl").write_text(text, encoding="utf-8")
    loaded = open_source(tmp_path)
    assert loaded.source.kind == "JSON lines"
    assert [" ".join(e.tokens) for e in loaded.examples] == CANONICAL


def test_folders_named_train_and_val(tmp_path: Path) -> None:
    for part, (first, last) in {"train": (0, 3), "val": (3, 4)}.items():
        names = pictures(tmp_path / part / "images")
        lines = [f"{n}\t{t}" for n, t in zip(names[first:last], LATEX[first:last], strict=True)]
        (tmp_path / part / "caption.txt").write_text("\n".join(lines), encoding="utf-8")
    assert labels(tmp_path) == CANONICAL[:3]
    assert labels(tmp_path, split="eval") == CANONICAL[3:]
    own = own_eval(tmp_path)
    assert own is not None
    assert own.split


def test_a_folder_without_a_part_for_evaluation_says_so(tmp_path: Path) -> None:
    write_pack(tmp_path / "train.jsonl", 4)
    assert own_eval(tmp_path) is None
    assert own_eval(tmp_path / "train.jsonl") is None
    loaded = open_source(tmp_path, split="eval")
    assert len(loaded.examples) == 4
    assert not loaded.source.split


def test_limit_reads_no_further(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "train.jsonl", 6)
    with pack.open("a", encoding="utf-8") as stream:
        stream.write("{broken\n")
    assert len(open_source(pack, limit=6, strict=True).examples) == 6


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, ["is empty", "train.json", ".inkml", "caption.txt"]),
        ({"notes.md": b"x", "dictionary.txt": b"a b"}, ["notes.md", "caption.txt"]),
        ({"train.json": b"{broken"}, ["train.json", "JSON"]),
        ({"train.json": b'{"a": 1}'}, ["train.json", "not a list"]),
        ({"train.jsonl.gz": b"\x1f\x8b\x00"}, ["train.jsonl.gz", "cannot be read"]),
        ({"caption.txt": b"\xff\xfe\x00"}, ["caption.txt", "cannot be read"]),
        ({"train.json": b"[]"}, ["train.json", "no example"]),
    ],
)
def test_what_is_not_understood(tmp_path: Path, files: dict[str, bytes], words: list[str]) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError) as error:
        open_source(tmp_path)
    assert all(word in str(error.value) for word in words)


def test_places_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"nowhere[\s\S]*These are understood"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=re.escape("--image-dir")):
        open_source(tmp_path, image_dir=tmp_path / "nowhere")
    archive = tmp_path / "images.zip"
    zipfile.ZipFile(archive, "w").close()
    with pytest.raises(DatasetError, match="Unpack"):
        open_source(archive)


def test_crohme_pictures_show_what_the_strokes_show(tmp_path: Path, crohme: Path) -> None:
    """Rendered to files and read as pictures, handwriting keeps its labels and sizes."""
    from hmer.preprocess import PreprocessSettings
    from training.data import estimate_size

    strokes = open_source(crohme / "test_2014.jsonl.gz", split="eval", limit=20).examples
    with (tmp_path / "caption.txt").open("w", encoding="utf-8") as stream:
        for example in strokes:
            cv2.imwrite(str(tmp_path / f"{example.name}.png"), ink.render(example.strokes))
            stream.write(f"{example.name}\t{' '.join(example.tokens)}\n")
    drawn = open_source(tmp_path).examples
    assert [e.tokens for e in drawn] == [e.tokens for e in strokes]
    settings = PreprocessSettings()
    for a, b in zip(drawn, strokes, strict=True):
        ratio = np.array(estimate_size(a, settings)) / np.array(estimate_size(b, settings))
        assert (ratio > 0.6).all()
        assert (ratio < 1.7).all()
