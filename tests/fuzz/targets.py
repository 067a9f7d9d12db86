"""What is fuzzed, and the property: a valid result, or an error of ``hmer.errors``, in time.

Needs no fuzzer: the tests replay the corpus through the same functions.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping

import numpy as np

from benchmarks import hostile_seeds
from hmer import ink, preprocess
from hmer.errors import BadParameter, HmerError
from hmer.preprocess_settings import PreprocessSettings
from hmer.serving import from_request

SETTINGS = PreprocessSettings(symbol_height=38.4, multiple=16)
# For inputs of the fuzzers' sizes (below 100 KB), on one slow core with instrumented code.
LIMIT_S = 10.0

Target = Callable[[bytes], None]


class TooSlow(Exception):
    """An input took longer than ``LIMIT_S``."""


def _network_input(gray: np.ndarray) -> None:
    assert gray.dtype == np.uint8
    assert gray.ndim == 2
    image = preprocess.preprocess(gray, SETTINGS)
    assert image.dtype == np.uint8
    assert image.ndim == 2
    height, width = image.shape
    assert height % SETTINGS.multiple == width % SETTINGS.multiple == 0
    assert SETTINGS.multiple <= height <= SETTINGS.max_height + SETTINGS.multiple
    assert SETTINGS.multiple <= width <= SETTINGS.max_width + SETTINGS.multiple
    assert image.any()


def _strokes(found: ink.Ink) -> None:
    assert found.strokes
    for stroke in found.strokes:
        assert stroke.dtype == np.float32
        assert stroke.ndim == 2
        assert stroke.shape[1] == 2
        assert np.isfinite(stroke).all()
    _network_input(ink.render(found.strokes))


def image(data: bytes) -> None:
    """Decoding of a picture, and its way to the network's input."""
    _network_input(preprocess.decode_image(data))


def inkml(data: bytes) -> None:
    """InkML to strokes, drawn."""
    _strokes(ink.parse_inkml(data))


def strokes(data: bytes) -> None:
    """JSON strokes, drawn."""
    _strokes(ink.parse_strokes(data))


def anything(data: bytes) -> None:
    """What the server does with an input: it finds out what it is."""
    _network_input(preprocess.decode(data))


def parameters(data: bytes) -> None:
    """The parameters of a request, as Triton hands them on: a JSON object."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(values, dict):
        found = from_request(values, 256)
        assert 1 <= found.max_tokens <= 256


_PARAMETERS: Mapping[str, bytes] = {
    "none.json": b"{}",
    "beam.json": b'{"beam": 4, "n_best": 2, "length_penalty": "0.5"}',
    "more.json": b'{"max_tokens": 20, "k": 2, "attention": true, "looks": 3}',
    "words.json": b'{"priority_class": "batch", "encoding": "base64", "timeout": 5, "id": "a"}',
}

# Name -> the function and its seeds.
TARGETS: Mapping[str, tuple[Target, Callable[[], Mapping[str, bytes]]]] = {
    "image": (image, hostile_seeds.pictures),
    "inkml": (inkml, hostile_seeds.inkmls),
    "strokes": (strokes, hostile_seeds.strokes),
    "anything": (anything, hostile_seeds.all_seeds),
    "parameters": (parameters, lambda: _PARAMETERS),
}


def holds(target: Target, data: bytes, limit_s: float = LIMIT_S) -> HmerError | None:
    """Run ``target``: the error that refused ``data``, ``None`` for a valid result.

    Whatever else comes out goes through: it is a finding.
    """
    began = time.process_time()
    refused: HmerError | None = None
    try:
        target(data)
    except HmerError as error:
        refused = error
    took = time.process_time() - began
    if refused is not None:
        _check_sentence(str(refused))
        assert type(refused) is not BadParameter or target is parameters
    if took > limit_s:
        raise TooSlow(f"{len(data)} bytes took {took:.1f} s.")
    return refused


def _check_sentence(text: str) -> None:
    assert text.endswith("."), f"no sentence: {text}"
    assert "Traceback" not in text
    assert len(text) < 2000, "a sentence of thousands of characters"
