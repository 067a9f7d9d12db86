"""Synthetic expressions: ink, segmentation and label agree, and nothing held out is in them."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
import pytest
from click.testing import CliRunner, Result

from hmer.latex import is_valid
from hmer.latex_parser import parse
from hmer.writing.alphabet import GLYPHS, WORDS
from hmer.writing.layout import Hand, Writer
from training.build import load_data
from training.cli import main
from training.cutting import box_of, matches
from training.data import Example, read_pack
from training.synthetic import Synthesiser, SynthesisSettings, synthesise

_UPRIGHT = Hand(wobble=0.0, wander=0.0, sizes=0.0, slant=0.0)


def example(label: str, name: str = "e") -> Example:
    """``label`` written by the project's own alphabet, segmented."""
    written = Writer(_UPRIGHT, Random(name)).write(parse(label.split()))
    numbers = list(dict.fromkeys(s.number for s in written))
    segments = []
    for number in numbers:
        own = tuple(i for i, s in enumerate(written) if s.number == number)
        symbol = written[own[0]].symbol
        segments.append(("-" if symbol == "\\frac" else symbol, own))
    strokes = [(s.points * (2.0, -2.0)).astype(np.float32) for s in written]
    return Example(name, name, tuple(label.split()), strokes, tuple(segments))


LABELS = (
    "\\frac { x + 1 } { y }", "a ^ { 2 } + b _ { n } = c", "\\sqrt { x - y }",
    "\\sum _ { n = 1 } ^ { k } n", "( \\sin x ) ^ { 2 }",
)  # fmt: skip
EXAMPLES = [example(label, f"e{place}") for place, label in enumerate(LABELS)]


def pack(path: Path, examples: list[Example]) -> Path:
    """A stroke pack of ``examples``."""
    lines = [
        json.dumps({
            "id": e.name, "writer": e.writer, "norm": " ".join(e.tokens),
            "segs": [[s, list(i)] for s, i in e.segments],
            "strokes": [s.tolist() for s in e.strokes],
        })
        for e in examples
    ]  # fmt: skip
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_the_layout_tells_which_stroke_is_which_symbol() -> None:
    made = EXAMPLES[0]
    assert [symbol for symbol, _ in made.segments] == ["x", "+", "1", "-", "y"]
    x, bar, y = (box_of([made.strokes[i] for i in made.segments[p][1]]) for p in (0, 3, 4))
    assert x[0][1] < bar[0][1] < y[0][1]  # numerator, bar, denominator: y points down
    word = Writer(_UPRIGHT, Random(0)).write(parse(["\\sin", "x"]))
    assert [s.symbol for s in word] == ["\\sin"] * (len(word) - 2) + ["x", "x"]
    assert len({s.number for s in word}) == 2


def test_ink_label_and_segments_of_what_is_made_agree() -> None:
    made = synthesise(EXAMPLES, 40, seed=3)
    assert len(made) == 40
    for one in made:
        assert matches(one)
        assert is_valid(one.tokens)
        assert one.tokens
        assert all(np.isfinite(stroke).all() for stroke in one.strokes)
    labels = {one.tokens for one in made}
    assert len(labels) > 10
    assert not labels <= {e.tokens for e in EXAMPLES}
    assert {t for label in labels for t in label} <= {t for e in EXAMPLES for t in e.tokens}


def test_the_symbols_are_cut_from_the_examples() -> None:
    """One writing of x, three strokes that the alphabet never draws: all made x have them."""
    odd = [np.array([[0, 0], [110, 50 * k]], np.float32) for k in (0, 1, 2)]
    source = Example("odd", "w", ("x",), odd, (("x", (0, 1, 2)),))
    made = synthesise([source], 5, 0)
    assert [one.tokens for one in made] == [("x",)] * 5
    assert all([len(stroke) for stroke in one.strokes] == [2, 2, 2] for one in made)


def test_the_seed_decides() -> None:
    first, again, other = (synthesise(EXAMPLES, 6, seed) for seed in (1, 1, 2))
    assert [e.tokens for e in first] == [e.tokens for e in again]
    assert all(np.array_equal(a, b) for one, two in zip(first, again, strict=True)
               for a, b in zip(one.strokes, two.strokes, strict=True))  # fmt: skip
    assert [e.tokens for e in first] != [e.tokens for e in other]


def test_forbidden_labels_and_long_ones_are_never_made() -> None:
    still = SynthesisSettings(graft=0.0, rename=0.0)
    banned = EXAMPLES[2].tokens
    made = synthesise(EXAMPLES, 60, 0, forbidden=[banned], settings=still)
    assert {e.tokens for e in made} == {e.tokens for e in EXAMPLES} - {banned}
    short = synthesise(EXAMPLES, 30, 0, settings=SynthesisSettings(tokens=6))
    assert short
    assert max(len(e.tokens) for e in short) <= 6


def test_without_segmentation_or_alphabet_nothing_is_made() -> None:
    plain = Example("p", "w", ("x",), [np.ones((2, 2), np.float32)])
    assert synthesise([plain], 3, 0) == []
    unknown = Example("u", "w", ("\\aleph",), plain.strokes, (("\\aleph", (0,)),))
    assert list(islice(Synthesiser([unknown]).examples(0), 1)) == []


def test_the_alphabet_has_all_of_the_tokens_that_handwriting_data_uses(crohme: Path) -> None:
    tokens = {t for e in read_pack(crohme / "train.jsonl.gz") for t in e.tokens}
    assert tokens <= {*GLYPHS, *WORDS, "\\frac", "\\sqrt", "_", "^", "{", "}"}


def test_the_command_writes_a_pack_that_training_reads(tmp_path: Path) -> None:
    data = pack(tmp_path / "train.jsonl", EXAMPLES)
    output = tmp_path / "more.jsonl.gz"
    done = run("synthesise", "--data", data, "--count", "7", "--held-out", "0",
               "--output", output, "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1]) == {"output": str(output), "expressions": 7}
    assert all(matches(e) for e in read_pack(output))
    options = {"data": data, "extra": (output,), "image_dir": None, "sequence_length": 200,
               "strict": True, "held_out": 0.0, "seed": 0}  # fmt: skip
    assert len(load_data(options).train) == len(EXAMPLES) + 7


def test_extra_data_brings_no_held_out_writer_or_label(tmp_path: Path) -> None:
    data = pack(tmp_path / "train.jsonl", EXAMPLES)
    same = [example(LABELS[p], f"e{p}") for p in range(5)]  # the same writers and labels
    same += [example(label, "stranger") for label in LABELS]  # the same labels by another writer
    same += [example("z - 1", f"e{p}") for p in range(5)]  # another label by the same writers
    same += [example("z + 1", "e9")]
    extra = pack(tmp_path / "extra.jsonl", same)
    options = {"data": data, "image_dir": None, "sequence_length": 200, "strict": True,
               "held_out": 0.5, "seed": 1}  # fmt: skip
    alone, both = (load_data({**options, "extra": more}) for more in ((), (extra,)))
    assert 0 < len(alone.held_out) < 5
    assert [e.name for e in both.held_out] == [e.name for e in alone.held_out]
    assert len(both.train) == 4 * len(alone.train) + 1
    assert not {e.writer for e in both.train} & {e.writer for e in both.held_out}
    assert not {e.tokens for e in both.train} & {e.tokens for e in both.held_out}


def test_data_that_is_not_segmented_gives_a_sentence(tmp_path: Path) -> None:
    plain = [Example(e.name, e.writer, e.tokens, e.strokes) for e in EXAMPLES]
    output = tmp_path / "no.jsonl"
    failed = run("synthesise", "--data", pack(tmp_path / "train.jsonl", plain), "--count", "2",
                 "--output", output)  # fmt: skip
    assert failed.exit_code == 1
    assert "no segmentation" in failed.stderr
    assert not output.exists()
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("pens", ["", "0,3", "2,x", "60"])
def test_pens_out_of_range_give_a_sentence(tmp_path: Path, pens: str) -> None:
    failed = run("train", "--data", tmp_path, "--save-dir", tmp_path / "run", "--pens", pens)
    assert failed.exit_code == 1
    assert "--pens must be" in failed.stderr
