"""The shipped samples: they are what the generator makes, and their labels are right."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from client.samples.formulas import SAMPLES, Sample
from client.samples.generate import INDEX, ink, label, main, picture, write
from hmer.ink import parse_inkml
from hmer.latex import canonical, is_valid, to_latex, tokenize
from hmer.preprocess import PreprocessSettings, load
from hmer.writing.alphabet import GLYPHS, WORDS

FOLDER = Path(__file__).parents[1] / "client" / "samples"
NAMES = [sample.name for sample in SAMPLES]
samples = pytest.mark.parametrize("sample", SAMPLES, ids=NAMES)

# The common part of CROHME's vocabulary: every token that a sample may use.
COMMON = r"""
    \alpha \beta \gamma \theta \pi \sigma \phi \mu \lambda \Delta \infty \frac \sqrt \sum \int
    \lim \log \sin \cos \tan \leq \geq \neq \times \div \pm \cdot \rightarrow \prime \ldots
    { } _ ^ ( ) [ ] | + - = < > / ! , .
"""
CROHME_TOKENS = frozenset(COMMON.split()) | frozenset(
    "0123456789abcdefghijklmnopqrstuvwxyzABCEFGHLMNPRSTVXY"
)


@pytest.fixture(scope="module")
def index() -> list[dict[str, object]]:
    entries: list[dict[str, object]] = json.loads((FOLDER / INDEX).read_text(encoding="utf-8"))
    return entries


def image_of(sample: Sample, folder: Path = FOLDER) -> NDArray[np.uint8]:
    image = cv2.imdecode(
        np.frombuffer((folder / (sample.name + sample.look.suffix)).read_bytes(), np.uint8),
        cv2.IMREAD_COLOR,
    )
    return np.asarray(image, dtype=np.uint8)


def test_the_index_names_every_sample_and_its_files(index: list[dict[str, object]]) -> None:
    assert [entry["name"] for entry in index] == NAMES
    assert len(set(NAMES)) == len(NAMES)
    for entry, sample in zip(index, SAMPLES, strict=True):
        files = entry["files"]
        assert files == [sample.name + sample.look.suffix, f"{sample.name}.inkml"]
        assert entry["tokens"] == label(sample)
        assert entry["latex"] == to_latex(label(sample))
    shipped = {path.name for path in FOLDER.iterdir() if path.suffix not in (".py", "")}
    assert shipped == {INDEX} | {name for entry in index for name in entry["files"]}  # type: ignore[attr-defined]


def test_the_structures_that_people_write_are_all_there() -> None:
    labels = [label(sample) for sample in SAMPLES]
    holding = Counter(token for tokens in labels for token in set(tokens))
    assert len(labels) >= 16
    least = {r"\frac": 5, r"\sqrt": 4, "^": 8, "_": 5, r"\sum": 2, r"\int": 1, r"\lim": 1, "(": 3}
    for token, count in least.items():
        assert holding[token] >= count, token
    lengths = sorted(len(tokens) for tokens in labels)
    assert lengths[0] <= 8
    assert lengths[-1] >= 25
    looks = [sample.look for sample in SAMPLES]
    assert {look.suffix for look in looks} == {".png", ".jpg"}
    assert len({look.pen for look in looks}) >= 4


@samples
def test_label_is_canonical_and_in_the_vocabulary(sample: Sample) -> None:
    tokens = label(sample)
    assert is_valid(tokens)
    assert canonical(tokens) == tokens
    assert tokenize(to_latex(tokens)) == tokens
    assert set(tokens) <= CROHME_TOKENS


@samples
def test_shipped_ink_is_what_the_generator_draws(sample: Sample) -> None:
    parsed = parse_inkml((FOLDER / f"{sample.name}.inkml").read_bytes())
    assert parsed.latex is not None
    assert tokenize(parsed.latex) == label(sample)
    drawn = ink(sample)
    assert len(parsed.strokes) == len(drawn)
    for shipped, stroke in zip(parsed.strokes, drawn, strict=True):
        # One device unit: rounding may fall either way on another processor.
        np.testing.assert_allclose(shipped, stroke, atol=1.0)


@samples
def test_shipped_picture_is_what_the_generator_paints(sample: Sample, tmp_path: Path) -> None:
    painted = picture(sample, ink(sample))
    if painted.ndim == 2:
        painted = np.repeat(painted[..., None], 3, axis=2)
    shipped = image_of(sample)
    assert shipped.shape == painted.shape
    difference = np.abs(shipped.astype(np.int16) - painted)
    # JPEG loses a little everywhere; another OpenCV may antialias edges differently.
    assert difference.mean() < (4.0 if sample.look.photo else 0.5)
    assert np.median(difference) <= (4 if sample.look.photo else 0)


@samples
def test_picture_and_ink_give_the_network_nearly_the_same(sample: Sample) -> None:
    settings = PreprocessSettings()
    files = [sample.name + sample.look.suffix, f"{sample.name}.inkml"]
    first, second = (load((FOLDER / file).read_bytes(), settings) for file in files)
    for length, other in zip(first.shape, second.shape, strict=True):
        assert abs(length - other) <= max(2 * settings.multiple, 0.12 * other)
    # Ink on both, on a clean background: neither tint nor noise nor shade gets through.
    for image in (first, second):
        covered = float((image > 127).mean())
        assert 0.01 < covered < 0.3
        assert float(((image > 24) & (image < 96)).mean()) < 0.2


def test_generating_twice_gives_the_same_files(tmp_path: Path) -> None:
    first = write(tmp_path / "a")
    assert first == write(tmp_path / "b")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(names) == 2 * len(SAMPLES) + 1
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_no_two_writings_of_a_symbol_are_equal() -> None:
    sample = next(sample for sample in SAMPLES if sample.name == "addition")
    other = Sample(sample.name, sample.latex, sample.hand, sample.look, seed=sample.seed + 1)
    shapes = [[len(stroke) for stroke in ink(each)] for each in (sample, other)]
    assert shapes[0] != shapes[1]


def test_the_alphabet_draws_every_token_that_the_samples_use() -> None:
    structural = {"\\frac", "\\sqrt", "{", "}", "_", "^"}
    used = {token for sample in SAMPLES for token in label(sample)} - structural
    assert used <= set(GLYPHS) | set(WORDS)


def test_files_are_small() -> None:
    sizes = {path.name: path.stat().st_size for path in FOLDER.iterdir() if path.is_file()}
    assert max(sizes.values()) < 24_000
    assert sum(sizes.values()) < 400_000


def test_the_command_writes_the_folder_and_prints_json(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--output", str(tmp_path / "new"), "--json"])
    assert result.exit_code == 0
    document = json.loads(result.stdout.splitlines()[-1])
    assert [entry["name"] for entry in document["samples"]] == NAMES
    assert (tmp_path / "new" / INDEX).exists()


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way", encoding="utf-8")
    result = CliRunner().invoke(main, ["--output", str(blocked / "folder")])
    assert result.exit_code == 1
    assert "The samples cannot be written to" in result.output
