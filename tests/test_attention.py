"""hmer.attention: the maps are the network's own, and the pictures show them."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import hmer.attention
from benchmarks.cli import main
from export.graphs import DecoderStepGraph
from hmer.attention import EOS_NAME, Attention, draw_attention, trace_attention
from hmer.bundle import ENCODER_FILE, STEP_FILE, Bundle, load_bundle, save_bundle
from hmer.errors import BadParameter, BundleError, UnreadableImage
from hmer.preprocess import load, to_batch
from hmer.recognizer import LocalRecognizer
from hmer.runtime import open_runner
from hmer.vocab import EOS_ID, SOS_ID
from tests.tiny import SETTINGS, VOCABULARY, make_network

ZIGZAG = [[0, 0], [40, 60], [80, 0], [120, 60]]
STROKES = [ZIGZAG, [[150, 5], [150, 70]], [[180, 30], [240, 30]]]
INK = json.dumps({"strokes": STROKES}).encode()
MAX_TOKENS = 40
ROUNDING = 3e-3  # the weights are stored as float16


@pytest.fixture
def beams(tiny_graphs: Bundle) -> Bundle:
    assert tiny_graphs.beam
    return tiny_graphs


def without_beams(bundle: Bundle, folder: Path, k: int) -> Bundle:
    """A copy that says that it has no ``decoder_beam``, and ``k`` tokens a step."""
    shutil.copytree(bundle.folder, folder)
    copy = load_bundle(folder)
    copy.beam, copy.k = 0, k
    save_bundle(copy, [ENCODER_FILE, STEP_FILE])
    return load_bundle(folder)


@torch.no_grad()
def reference(ids: list[int] | None) -> tuple[list[int], np.ndarray[Any, Any]]:
    """The network's own attention, greedily or along ``ids``."""
    model = make_network()
    image, size = (torch.from_numpy(part) for part in to_batch([load(INK, SETTINGS)]))
    encoded = model.encode(image, size)
    state, coverage = encoded.state, model.begin(encoded)
    token, found, maps = SOS_ID, [], []
    for position in range(MAX_TOKENS if ids is None else len(ids)):
        step = model.step(encoded, torch.tensor([token]), state, coverage)
        state, coverage = step.state, step.coverage
        token = int(step.logits.argmax()) if ids is None else ids[position]
        found.append(token)
        maps.append(step.attention.reshape(coverage.shape)[0].numpy())
        if token == EOS_ID:
            break
    height, width = encoded.size[0].tolist()
    return found, np.stack(maps)[:, :height, :width]


def names(ids: list[int]) -> tuple[str, ...]:
    return tuple(EOS_NAME if i == EOS_ID else VOCABULARY.decode([i])[0] for i in ids)


def test_the_maps_are_the_networks_attention(beams: Bundle) -> None:
    found = trace_attention(beams.folder, INK, threads=1, max_tokens=MAX_TOKENS)
    ids, maps = reference(None)
    assert found.tokens == names(ids)
    np.testing.assert_allclose(found.maps, maps, atol=ROUNDING)
    np.testing.assert_allclose(found.maps.sum((1, 2)), 1.0, atol=1e-3)
    height, width = found.image.shape
    assert found.maps.shape[1:] == (height // found.stride, width // found.stride)


def test_the_greedy_answer_is_the_recognisers(beams: Bundle) -> None:
    found = trace_attention(beams.folder, INK, threads=1)
    with LocalRecognizer(beams.folder, threads=1, guards=False) as recognizer:
        answer = recognizer.recognize(INK)
    if found.tokens[-1] == EOS_NAME:
        assert found.tokens[:-1] == answer.tokens
        assert math.exp(math.fsum(found.scores)) == pytest.approx(answer.score, rel=1e-3)
    else:
        assert found.tokens == answer.tokens


def test_a_given_formula_is_followed(beams: Bundle) -> None:
    given = ["x", "^", "{", "2", "}"]
    found = trace_attention(beams.folder, INK, threads=1, tokens=given)
    ids = [*VOCABULARY.encode(given), EOS_ID]
    assert found.tokens == names(ids)
    np.testing.assert_allclose(found.maps, reference(ids)[1], atol=ROUNDING)
    own = trace_attention(beams.folder, INK, threads=1)
    assert [math.isnan(s) for s in found.scores][:1] == [own.tokens[0] != "x"]
    with pytest.raises(BadParameter, match="cannot be spelled"):
        trace_attention(beams.folder, INK, tokens=["\\foo"])


class TorchStep:
    """``decoder_step`` of one token a call, without an export."""

    def __init__(self) -> None:
        self.graph = DecoderStepGraph(make_network(), k=1)

    @torch.no_grad()
    def infer(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        order = ("values", "keys", "feature_size", "token", "state", "coverage")
        assert set(feeds) == set(order)
        outputs = self.graph(*(torch.from_numpy(feeds[name]) for name in order))
        result = ("tokens", "scores", "next_state", "next_coverage")
        return {name: tensor.numpy() for name, tensor in zip(result, outputs, strict=True)}

    def __enter__(self) -> TorchStep:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def test_a_step_of_one_token_will_do(
    tiny_graphs: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = without_beams(tiny_graphs, tmp_path / "one", k=1)

    def opened(target: str, path: Path, threads: int = 1) -> Any:
        return TorchStep() if path.name == STEP_FILE else open_runner(target, path, threads)

    monkeypatch.setattr(hmer.attention, "open_runner", opened)
    found = trace_attention(one.folder, INK, threads=1, max_tokens=MAX_TOKENS)
    ids, maps = reference(None)
    assert found.tokens == names(ids)
    np.testing.assert_allclose(found.maps, maps, atol=ROUNDING)


def test_graphs_of_several_tokens_a_call_are_refused(tiny_graphs: Bundle, tmp_path: Path) -> None:
    several = without_beams(tiny_graphs, tmp_path / "several", k=3)
    with pytest.raises(BundleError, match=r"3 tokens a call.*decoder_beam"):
        trace_attention(several.folder, INK)


def test_bad_input_is_named(beams: Bundle) -> None:
    with pytest.raises(UnreadableImage):
        trace_attention(beams.folder, b"no picture")


def made(peaks: list[tuple[int, int]], height: int = 4, width: int = 6) -> Attention:
    image = np.zeros((height * 8, width * 8), np.uint8)
    image[10:13, 4:40] = 255
    maps = np.zeros((len(peaks), height, width), np.float32)
    for index, (row, column) in enumerate(peaks):
        maps[index, row, column] = 1.0
    return Attention(image, tuple("xy+")[: len(peaks)], (0.0,) * len(peaks), maps, 8)


def test_each_thumbnail_is_tinted_where_its_token_looked() -> None:
    found = made([(3, 0), (0, 5)])
    sheet = draw_attention(found.image, found.tokens, found.maps, found.stride)
    assert sheet.dtype == np.uint8
    assert (sheet.ndim, sheet.shape[2]) == (3, 3)
    zoom, gap, cell = 2, 10, 120  # two thumbnails side by side, twice their size
    first = sheet[gap : gap + 64, gap : gap + 96].astype(int)
    second = sheet[gap : gap + 64, gap + cell : gap + cell + 96].astype(int)
    for thumbnail, (row, column) in ((first, (3, 0)), (second, (0, 5))):
        tint = thumbnail[:, :, 0] - thumbnail[:, :, 2]  # red less blue
        y, x = np.unravel_index(tint.argmax(), tint.shape)
        assert (int(y) // (8 * zoom), int(x) // (8 * zoom)) == (row, column)
        assert tint.max() > 100
        assert (thumbnail[11 * zoom, 20 * zoom] < 90).all()  # the ink stays dark
        corner = thumbnail[4 if row else -4, 30 * zoom if column == 0 else 2]
        assert (corner > 250).all()  # paper stays white elsewhere


def test_a_long_formula_gets_several_rows() -> None:
    wide = made([(0, 0)] * 3, width=100)
    sheet = draw_attention(wide.image, wide.tokens, wide.maps, wide.stride)
    assert sheet.shape[0] == 3 * (32 + 20 + 10) + 10
    assert sheet.shape[1] < 1700


def test_what_does_not_fit_is_refused() -> None:
    found = made([(0, 0), (1, 1)])
    with pytest.raises(BadParameter, match="does not fit 1 tokens"):
        draw_attention(found.image, ["x"], found.maps, 8)
    with pytest.raises(BadParameter, match="stride 16"):
        draw_attention(found.image, found.tokens, found.maps, 16)
    with pytest.raises(BadParameter):
        draw_attention(found.image, [], found.maps[:0], 8)


def test_the_command(beams: Bundle, tmp_path: Path) -> None:
    source, out = tmp_path / "ink.json", tmp_path / "out.png"
    source.write_bytes(INK)
    arguments = ["attention", str(source), "--bundle", str(beams.folder), "--output"]
    result = CliRunner().invoke(main, [*arguments, str(out), "--follow", "x^2", "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert [part["token"] for part in document["tokens"]] == ["x", "^", "2", EOS_NAME]
    assert document["latex"] == "x^2"
    with Image.open(out) as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")

    result = CliRunner().invoke(main, [*arguments, str(tmp_path / "no" / "out.png")])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: The picture cannot be written")
    source.unlink()
    result = CliRunner().invoke(main, [*arguments, str(out)])
    assert result.stderr.startswith("error: There is no file")
