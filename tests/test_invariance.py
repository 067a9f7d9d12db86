"""``hmer-bench invariance``: the pictures, the counting, and the command."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from benchmarks.cli import main
from benchmarks.crohme import Expression
from benchmarks.invariance import CHUNK, Row, measure, page_of, references, samples, table
from benchmarks.invariance_pictures import LOSSLESS, TRANSFORMATIONS, Transformation, chosen
from hmer.errors import BadParameter, BlankImage, DatasetError, HmerError
from hmer.preprocess import decode
from hmer.recognition import Recognition
from tests.handwriting import writing

SHIPPED = Path(__file__).resolve().parent.parent / "hmer" / "pretrained"


def expressions(count: int) -> list[Expression]:
    found = []
    for seed in range(count):
        strokes, _ = writing(["1", "+", "0"], seed)
        data = json.dumps([stroke.tolist() for stroke in strokes]).encode()
        found.append(Expression(f"e{seed}", (), data))
    return found


@pytest.mark.parametrize("item", TRANSFORMATIONS, ids=lambda item: item.name)
def test_pictures_can_be_read_and_made_again(item: Transformation) -> None:
    page = page_of(expressions(1)[0].data)
    made = [item.make(page, np.random.default_rng(3)) for _ in range(2)]
    assert made[0] == made[1]
    gray = decode(made[0])
    assert np.ptp(gray) > 40


def test_every_rotation_flag_gives_the_page_back() -> None:
    page = page_of(expressions(1)[0].data)
    (turned,) = chosen(["EXIF orientation"])
    flags = set()
    for seed in range(40):
        data = turned.make(page, np.random.default_rng(seed))
        flags.add(Image.open(io.BytesIO(data)).getexif()[0x0112])
        assert np.array_equal(decode(data), page)
    assert flags == set(range(2, 9))


class Scripted:
    """Answers ``1 + 0``, with the last token wrong where the picture's mean is low; or fails."""

    def __init__(self, error: HmerError | None = None) -> None:
        self.error = error
        self.asked = 0

    def recognize_many(self, inputs: Sequence[bytes]) -> list[Recognition | HmerError]:
        return [self.one(decode(data)) for data in inputs]

    def one(self, gray: NDArray[np.uint8]) -> Recognition | HmerError:
        self.asked += 1
        if self.error is not None and gray.mean() < 128:
            return self.error
        tokens = ("1", "+", "0" if gray.mean() > 128 else "6")
        return Recognition("".join(tokens), tokens, 1.0)


def test_changes_are_counted() -> None:
    found = expressions(CHUNK + 2)
    recogniser = Scripted()
    kept, answers = references(found, recogniser)
    assert kept == found
    same, inverted = chosen(["16 bit", "inverted"])
    row = measure(same, kept, answers, recogniser)
    assert (row.answers_percent, row.tokens_percent, row.reached) == (100.0, 100.0, True)
    row = measure(inverted, kept, answers, recogniser)
    assert (row.same, row.edits, row.failed) == (0, CHUNK + 2, 0)
    assert row.tokens_percent == pytest.approx(100 * 2 / 3)
    assert not row.reached
    assert row.changed[:2] == ("e0", "e1")
    assert recogniser.asked == 3 * (CHUNK + 2)


def test_a_failure_is_a_change() -> None:
    recogniser = Scripted(BlankImage("Nothing there."))
    kept, answers = references(expressions(3), recogniser)
    row = measure(chosen(["inverted"])[0], kept, answers, recogniser)
    assert (row.failed, row.same, row.tokens_percent) == (3, 0, 0.0)


def test_table_says_what_was_missed() -> None:
    item = TRANSFORMATIONS[0]
    text = table([Row(item, 100, 98, 700, 5, 0, ("a", "b"))]).markdown()
    assert "| 98.0 (missed) | 99.3 | 99 |" in text
    document = Row(item, 100, 99, 700, 1, 0, ("a",)).to_dict()
    assert document["reached"]
    assert document["aim"] == LOSSLESS
    assert document["interval"][0] < 99 < document["interval"][1]


def test_what_is_not_there_is_explained(tmp_path: Path) -> None:
    with pytest.raises(BadParameter, match="'scale x9'"):
        chosen(["scale x9"])
    with pytest.raises(DatasetError, match="no samples"):
        samples(tmp_path)


def test_command(tmp_path: Path) -> None:
    arguments = ["invariance", "--bundle", str(SHIPPED), "--limit", "2", "--threads", "1"]
    arguments += ["--only", "inverted", "--only", "alpha", "--json"]
    outcome = CliRunner().invoke(main, [*arguments, "--output", str(tmp_path / "table.json")])
    assert outcome.exit_code == 0, outcome.output
    document = json.loads(outcome.stdout)
    assert [row["transformation"] for row in document["transformations"]] == ["inverted", "alpha"]
    assert [row["answers_unchanged"] for row in document["transformations"]] == [100.0, 100.0]
    assert document == json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))


def test_command_refuses() -> None:
    outcome = CliRunner().invoke(main, ["invariance", "--bundle", "x", "--held-out"])
    assert outcome.exit_code == 2
    assert "--held-out needs --data" in outcome.output
