"""benchmarks.crohme: packs, the images beside them, and selections."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.crohme import STROKES, WAP_IMAGES, read_pack, select
from hmer.errors import BadParameter, DatasetError, MissingInput
from tests.bench_fixtures import write_pack


def test_strokes_are_sent_as_ink(pack: Path) -> None:
    expressions = read_pack(pack, form=STROKES)
    assert [expression.id for expression in expressions] == list("abcd")
    assert json.loads(expressions[0].data) == {"strokes": [[[0, 0], [9, 9]]]}
    assert expressions[1].truth == ("\\frac", "{", "a", "}", "{", "b", "}")
    assert read_pack(pack, label="norm_wap")[0].truth == ("x", "-", "y")


def test_images_come_from_the_zip_beside_it(pack: Path) -> None:
    assert [e.data for e in read_pack(pack, form=WAP_IMAGES)][1] == b"picture of b"
    pack.with_name("test_x_wap_images.zip").unlink()
    with pytest.raises(MissingInput, match="test_x_wap_images"):
        read_pack(pack, form=WAP_IMAGES)


def test_packs_that_cannot_be_used(tmp_path: Path, pack: Path) -> None:
    with pytest.raises(MissingInput):
        read_pack(tmp_path / "none.jsonl.gz")
    whole = pack.read_bytes()
    pack.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match="cannot be read"):
        read_pack(pack)
    pack.write_bytes(b"text")
    with pytest.raises(DatasetError, match="cannot be read"):
        read_pack(pack)
    with pytest.raises(DatasetError, match=r"Line 1 .* 'norm_wap'"):
        read_pack(write_pack(tmp_path, [{"id": "a", "norm": "x", "strokes": []}]), "norm_wap")
    with pytest.raises(DatasetError, match="no expressions"):
        read_pack(write_pack(tmp_path, []))


def test_selection(pack: Path) -> None:
    expressions = read_pack(pack)
    assert [e.id for e in select(expressions, None, 2)] == ["a", "b"]
    assert [e.id for e in select(expressions, ["d", "b"], None)] == ["b", "d"]
    with pytest.raises(BadParameter, match="no expression nosuch"):
        select(expressions, ["a", "nosuch"], None)
