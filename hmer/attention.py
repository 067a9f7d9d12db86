"""Where the network looks, token by token: maps of attention, and pictures of them.

The attention of a step is what it adds to the coverage (``hmer.contract``), so maps need no
output of their own; but they need a graph that gives one token a call: ``decoder_beam``, or a
``decoder_step`` of k = 1. The maps of a step say where it looked before it chose its token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from hmer import contract
from hmer.bundle import BEAM_FILE, ENCODER_FILE, GRAPHS, STEP_FILE, Bundle, load_bundle
from hmer.decode_types import EncodedImage
from hmer.errors import BadParameter, BundleError
from hmer.preprocess import Gray, load, to_batch
from hmer.runtime import ONNXRUNTIME, open_runner
from hmer.slots import split_encoded
from hmer.vocab import EOS_ID, SOS_ID, UnknownToken

Array = NDArray[Any]
Maps = NDArray[np.float32]
Step = Callable[[int, Array, Array], tuple[int, float, Array, Array]]

EOS_NAME = "<eos>"
_GAP, _CAPTION = 10, 20  # pixels between the thumbnails, and below each for its token
_CELL = 110  # pixels at least for a token's name
_TINT = np.array([226, 74, 20], np.float32)  # RGB of full attention
_SHEET_WIDTH = 1600


@dataclass(frozen=True)
class Attention:
    """An answer with its attention.

    ``image`` uint8 (H, W), ink 255 on 0, as the network got it; ``tokens``, with ``<eos>`` at the
    end if it was reached; ``scores`` their log-probabilities, NaN where a given token was not
    among the candidates; ``maps`` float32 (T, H / stride, W / stride), each of sum 1.
    """

    image: Gray
    tokens: tuple[str, ...]
    scores: tuple[float, ...]
    maps: Maps
    stride: int


def trace_attention(
    bundle_folder: str | Path,
    data: bytes,
    *,
    target: str = ONNXRUNTIME,
    threads: int = 0,
    tokens: Sequence[str] | None = None,
    max_tokens: int = 256,
) -> Attention:
    """Recognise ``data`` greedily, one token a call, and keep each token's attention.

    With ``tokens`` these are fed instead of the network's own choices: where it looks for a
    given formula (the answer of a beam search, a truth). Raises an ``InputError``; a
    ``BundleError`` for a bundle whose graphs give only several tokens a call.
    """
    bundle = load_bundle(bundle_folder, kind=GRAPHS)
    file = _one_token_graph(bundle)
    image = load(data, bundle.preprocess)
    forced = None if tokens is None else _ids(bundle, tokens)
    with open_runner(target, bundle.file(ENCODER_FILE), threads) as encoder:
        batch, size = to_batch([image])
        outputs = encoder.infer({contract.IMAGE.name: batch, contract.SIZE.name: size})
        (encoded,) = split_encoded(outputs)
    with open_runner(target, bundle.file(file), threads) as runner:
        step = one_token_step(runner.infer, encoded, beam=file == BEAM_FILE)
        ids, scores, maps = _decode(step, encoded, forced, max_tokens)
    names = [EOS_NAME if i == EOS_ID else bundle.vocabulary.decode([i])[0] for i in ids]
    return Attention(image, tuple(names), tuple(scores), maps, bundle.sizes.stride)


def _one_token_graph(bundle: Bundle) -> str:
    if bundle.beam:
        return BEAM_FILE
    if bundle.k == 1:
        return STEP_FILE
    raise BundleError(
        f"The graphs of {bundle.folder} give {bundle.k} tokens a call, and attention is drawn for "
        "each. Export the checkpoint again with a decoder_beam graph (hmer-export onnx, its "
        "default), or with --k 1."
    )


def _ids(bundle: Bundle, tokens: Sequence[str]) -> list[int]:
    try:
        return [*bundle.vocabulary.encode(list(tokens)), EOS_ID]
    except UnknownToken as error:
        raise BadParameter(f"The formula to follow cannot be spelled: {error}") from error


def one_token_step(
    run: Callable[[dict[str, Array]], Any], encoded: EncodedImage, beam: bool
) -> Step:
    """One step: previous token, state and coverage to best token, its score, and what follows.

    ``run`` takes the tensors of ``decoder_beam`` if ``beam``, else of a ``decoder_step`` of k = 1.
    """
    height, width = encoded.values.shape[:2]
    feeds: dict[str, Array] = {
        "values": np.ascontiguousarray(encoded.values[None]),
        "keys": np.ascontiguousarray(encoded.keys[None]),
        contract.FEATURE_SIZE.name: np.array([[height, width]], np.int32),
    }
    if beam:
        feeds["parent"] = np.zeros((1, 1), np.int32)

    def step(token: int, state: Array, coverage: Array) -> tuple[int, float, Array, Array]:
        moving = {"token": np.array([[token]], np.int32), "state": state, "coverage": coverage}
        outputs = run(feeds | moving)
        best = outputs["candidates" if beam else "tokens"][0, 0]
        score = outputs["scores"][0, 0]
        return int(best), float(score), outputs["next_state"], outputs["next_coverage"]

    return step


def _decode(
    step: Step, encoded: EncodedImage, forced: Sequence[int] | None, max_tokens: int
) -> tuple[list[int], list[float], Maps]:
    state: Array = encoded.state[None].astype(np.float32)
    coverage: Array = np.zeros((1, *encoded.values.shape[:2]), np.float32)
    token, ids, scores, maps = SOS_ID, [], [], []
    for position in range(max_tokens if forced is None else len(forced)):
        best, score, state, after = step(token, state, coverage)
        token = best if forced is None else forced[position]
        maps.append(after[0] - coverage[0])
        ids.append(token)
        scores.append(score if token == best else math.nan)
        coverage = after
        if token == EOS_ID:
            break
    return ids, scores, np.stack(maps).astype(np.float32)


def draw_attention(
    image: Gray, tokens: Sequence[str], attention: Maps, stride: int
) -> NDArray[np.uint8]:
    """A contact sheet: the image once for each token, with the token's attention over it.

    ``image`` uint8 (H, W), ink 255 on 0; ``attention`` float32 (T, h, w), one map for each of
    the ``tokens``, a position being ``stride`` pixels. Returns uint8 RGB (rows, columns, 3): black
    ink on white, tinted by the attention relative to the map's own peak; small images are drawn
    at twice their size. Raises ``BadParameter`` if tokens and maps, or maps and image, don't fit.
    """
    height, width = image.shape
    shape = (len(tokens), -(-height // stride), -(-width // stride))
    if attention.shape != shape or not tokens:
        raise BadParameter(
            f"Attention of shape {attention.shape} does not fit {len(tokens)} tokens over an image "
            f"of {width} x {height} pixels with stride {stride}: {shape} was expected."
        )
    zoom = 2 if width <= _SHEET_WIDTH // 4 else 1
    cell_height, cell_width = zoom * height + _CAPTION + _GAP, max(zoom * width, _CELL) + _GAP
    columns = min(len(tokens), max(1, (_SHEET_WIDTH - _GAP) // cell_width))
    rows = -(-len(tokens) // columns)
    size = (columns * cell_width + _GAP, rows * cell_height + _GAP)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for index, (token, weights) in enumerate(zip(tokens, attention, strict=True)):
        left, top = _GAP + index % columns * cell_width, _GAP + index // columns * cell_height
        tinted = Image.fromarray(_tinted(image, weights, stride))
        sheet.paste(tinted.resize((zoom * width, zoom * height)), (left, top))
        right, bottom = left + zoom * width, top + zoom * height
        pen.rectangle((left - 1, top - 1, right, bottom), outline=(190, 190, 190))
        pen.text((left, bottom + 2), f"{index + 1}  {token}", fill="black", font=font)
    return np.asarray(sheet, np.uint8)


def _tinted(image: Gray, weights: NDArray[np.float32], stride: int) -> NDArray[np.uint8]:
    height, width = image.shape
    peak = float(weights.max())
    relative = weights / peak if peak > 0 else weights
    size = (weights.shape[1] * stride, weights.shape[0] * stride)
    smooth = cv2.resize(relative.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    share = np.clip(smooth[:height, :width, None], 0.0, 1.0) * 0.75
    paper = np.float32(255.0) * (1 - share) + _TINT * share
    ink = image[:, :, None].astype(np.float32) / 255.0
    return np.rint(paper * (1 - ink)).astype(np.uint8)
