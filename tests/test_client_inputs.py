"""What may be handed to the client, and what reaches the wire."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from client import inputs
from hmer.errors import BadInk, BadParameter, EmptyInput, HmerError, ImageTooLarge, MissingInput
from hmer.ink import Ink, parse_strokes


def decoded(png: bytes) -> NDArray[np.uint8]:
    """The picture in ``png`` as another library reads it, RGB(A)."""
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    assert picture is not None
    if picture.ndim == 3:
        picture = picture[:, :, [2, 1, 0, 3][: picture.shape[2]]]
    return picture.astype(np.uint8)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (5, 7, 4)])
def test_a_picture_array_arrives_pixel_for_pixel(shape: tuple[int, ...]) -> None:
    picture = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    assert np.array_equal(decoded(inputs.read(picture)), picture)
    flipped = picture[:, ::-1]  # not contiguous
    assert np.array_equal(decoded(inputs.read(flipped)), flipped)


def test_other_forms_of_a_gray_picture() -> None:
    picture = np.random.default_rng(2).integers(0, 256, (6, 9), dtype=np.uint8)
    assert np.array_equal(decoded(inputs.read(picture[:, :, None])), picture)
    assert np.array_equal(decoded(inputs.read(picture > 99)), np.where(picture > 99, 255, 0))


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 4), np.float32), np.zeros(4, np.uint8), np.zeros((4, 4, 2), np.uint8)],
)
def test_an_array_that_is_no_picture(array: NDArray[np.generic]) -> None:
    with pytest.raises(BadParameter, match="is not a picture"):
        inputs.read(array)


def test_an_array_without_pixels() -> None:
    with pytest.raises(EmptyInput):
        inputs.read(np.zeros((0, 4), np.uint8))


def test_strokes_arrive_as_the_server_reads_them() -> None:
    strokes = [[(0, 0), (1.5, 2)], np.array([[3, 4, 99], [5, 6, 99]])]  # 99: pressure, ignored
    ink = parse_strokes(inputs.read(strokes))
    assert [stroke.tolist() for stroke in ink.strokes] == [[[0, 0], [1.5, 2]], [[3, 4], [5, 6]]]
    again = parse_strokes(inputs.read(Ink(ink.strokes, latex="x")))
    assert all(np.array_equal(a, b) for a, b in zip(again.strokes, ink.strokes, strict=True))


@pytest.mark.parametrize(
    "strokes",
    [[], [[1, 2]], [[(0, 0), (1, float("nan"))]], [["ab"]], [[(0,)]], [[(0, 0), (1, 2, 3)]]],
)
def test_lists_that_are_no_strokes(strokes: list[object]) -> None:
    with pytest.raises(BadInk):
        inputs.read(strokes)


def test_other_types_are_refused() -> None:
    with pytest.raises(BadParameter, match="type float"):
        inputs.read(1.5)  # type: ignore[arg-type]


def test_files(tmp_path: Path) -> None:
    full, empty = tmp_path / "full.png", tmp_path / "empty.png"
    full.write_bytes(b"\x89PNG whatever")
    empty.touch()
    assert inputs.read(full) == inputs.read(str(full)) == b"\x89PNG whatever"
    with pytest.raises(EmptyInput, match=r"empty\.png is empty"):
        inputs.read(empty)
    with pytest.raises(MissingInput, match=r"There is no file .*none\.png"):
        inputs.read(tmp_path / "none.png")
    with pytest.raises(MissingInput, match="holds no picture and no ink"):
        inputs.read(tmp_path)
    with pytest.raises(MissingInput, match="cannot be read"):
        inputs.read("a\0b")


def test_a_file_over_the_limit_is_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "MAX_BYTES", 1024 * 1024)
    path = tmp_path / "large.tiff"
    with path.open("wb") as stream:
        stream.truncate(1024 * 1024)
    assert len(inputs.read(path)) == 1024 * 1024
    with path.open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(ImageTooLarge, match=r"large\.tiff is larger than 1 MiB"):
        inputs.read(path)


def make_tree(root: Path) -> None:
    for name in ("b.png", "a.JPG", "deep/c.inkml", "notes.txt", ".hidden.png", ".git/d.png"):
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    (root / "ink.json").write_text(json.dumps({"strokes": [[[0, 1]]]}), encoding="utf-8")
    (root / "bare.json").write_text("[[[0, 1], [2, 3]]]", encoding="utf-8")
    (root / "samples.json").write_text('[{"name": "b", "latex": "x"}]', encoding="utf-8")
    (root / "none").mkdir()


def test_a_folder_becomes_its_pictures_and_ink(tmp_path: Path) -> None:
    make_tree(tmp_path)
    names = [os.path.relpath(name, tmp_path) for name in inputs.expand([str(tmp_path)])]
    assert names == ["a.JPG", "b.png", "bare.json", "deep/c.inkml", "ink.json"]


def test_arguments_keep_their_order_and_what_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(tmp_path)
    monkeypatch.chdir(tmp_path)
    arguments = ["gone.png", "*.png", "-", "no*match", "none", "samples.json", "**/*.inkml"]
    assert inputs.expand(arguments) == [
        "gone.png",
        "b.png",
        "-",
        "no*match",
        "none",
        "samples.json",
        "deep/c.inkml",
    ]


def test_a_pattern_looks_into_the_folders_that_match(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert inputs.expand(["[d-n]*"]) == ["deep/c.inkml", "ink.json", "notes.txt"]
    assert inputs.expand(["no*"]) == ["notes.txt"]
    assert inputs.expand(["non*"]) == ["none"]  # so that it gets its error
    assert inputs.expand(["./**"]).count("./deep/c.inkml") + inputs.expand(["./**"]).count(
        "deep/c.inkml"
    ) == 1  # fmt: skip


def test_a_file_with_a_pattern_in_its_name(tmp_path: Path) -> None:
    path = tmp_path / "scan[1].png"
    path.write_bytes(b"x")
    assert inputs.expand([str(path)]) == [str(path)]


def test_an_error_names_its_input_once() -> None:
    assert inputs.describe("a.png", HmerError("It is blank.")) == "a.png: It is blank."
    assert inputs.describe("a.png", HmerError("There is no file a.png.")) == (
        "There is no file a.png."
    )
