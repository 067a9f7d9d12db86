"""The questions of ``verify``, each asked of one runner.

``answers``   every image as it is served (padded, batched, k tokens a call) against the checkpoint
``padding``   an image without padding, and the same in a larger canvas
``batch``     images one by one, and 32 of unlike sizes at once
``k``         one token a call, and k
``beam``      ``decoder_beam`` followed along its best candidate, and ``decoder_step``
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.verify_reference import MAX_TOKENS
from export.verify_runners import OPENVINO_BF16, Graphs
from export.verify_types import (
    BATCHING,
    BEAM,
    PADDING,
    STEPS,
    Answer,
    Images,
)
from hmer import contract
from hmer.contract import Sizes
from hmer.decode import EncodedImage, decode_all
from hmer.errors import ExportError
from hmer.preprocess import size_class, to_batch
from hmer.runtime import OPENVINO
from hmer.slots import BUCKET, Run, SlotStep, lanes_for, split_encoded

ENCODE = 8  # images of one size class that the encoder takes at once
SLOTS = 16  # formulas that are decoded together, as in a repository
WINDOW = 64  # images whose features are in memory together
WITHIN = (PADDING, BATCHING, STEPS, BEAM)
TOGETHER = 32  # images of unlike sizes in one batch, for the check of that name
WIDE = (8, 16)  # a bucket of feature positions that pads much more than the served one

Array = NDArray[Any]
Pixels = NDArray[np.uint8]
Answers = dict[str, Answer]


def answer_all(
    graphs: Graphs,
    images: Images,
    limit: int = MAX_TOKENS,
    advance: Callable[[int], None] = lambda count: None,
) -> Answers:
    """The graphs' answers to ``images`` by the product's own decode loop.

    Images of one size class are encoded together, formulas of all sizes decoded together;
    ``advance`` is told how many images are done since the last time.
    """
    classes: defaultdict[tuple[int, int], list[str]] = defaultdict(list)
    for name, image in images.items():
        classes[size_class(*image.shape)].append(name)
    rows = min(ENCODE, graphs.max_rows)
    batches = [
        members[first : first + rows]
        for _, members in sorted(classes.items())
        for first in range(0, len(members), rows)
    ]
    found: Answers = {}
    for window in _windows(batches):
        encoded: dict[str, EncodedImage] = {}
        for names in window:
            encoded.update(zip(names, _encode(graphs, [images[n] for n in names]), strict=True))
        found |= _decode(graphs, encoded, limit=limit)
        advance(len(encoded))
    return {name: found[name] for name in images}


def within(
    graphs: Graphs,
    images: Images,
    advance: Callable[[int], None] = lambda count: None,
    checks: Collection[str] = WITHIN,
) -> Iterator[tuple[str, Answers, Answers]]:
    """The checks that need no checkpoint: name, and two sets of answers that must be the same.

    Of ``checks`` those for which the runner has the graphs; ``advance`` as for ``answer_all``.
    """
    padded: Answers = {}
    if PADDING in checks or BATCHING in checks:
        alone, padded, wide = _one_by_one(graphs, images)
        advance(3 * len(images))
        if PADDING in checks:
            yield PADDING, alone, wide
        if BATCHING in checks:
            yield BATCHING, padded, _together(graphs, images)
            advance(len(images))
    steps = graphs.single if STEPS in checks else None
    beam = graphs.beam if BEAM in checks else None
    if steps is None and beam is None:
        return
    features = _features(graphs, images)
    greedy = _decode(graphs, features)
    if steps is not None:
        yield STEPS, _decode(graphs, features, steps.infer, k=1), greedy
    if beam is not None:
        yield BEAM, greedy, _decode(graphs, features, best_of_beam(beam.infer), k=1)


def best_of_beam(run: Run) -> Run:
    """``decoder_beam`` with one hypothesis a row: a ``decoder_step`` of one token a call."""

    def step(feeds: dict[str, Array]) -> dict[str, Array]:
        rows = np.arange(len(feeds["token"]), dtype=np.int32)[:, None]
        outputs = run({**feeds, "parent": rows})
        return {
            "tokens": outputs["candidates"][:, :1],
            "scores": outputs["scores"][:, :1],
            "next_state": outputs["next_state"],
            "next_coverage": outputs["next_coverage"],
        }

    return step


def _one_by_one(graphs: Graphs, images: Images) -> tuple[Answers, Answers, Answers]:
    """Each image by itself: without padding, as served, and in a canvas a class larger."""
    alone: Answers = {}
    padded: Answers = {}
    wide: Answers = {}
    for name, image in images.items():
        height, width = size_class(*image.shape)
        served = {name: _encode_one(graphs, image, (height, width))}
        padded |= _decode(graphs, served, slots=1)
        if graphs.any_shape:
            tight = {name: _encode_one(graphs, image, image.shape)}
            alone |= _decode(graphs, tight, slots=1, bucket=(1, 1))
        else:
            alone[name] = padded[name]
        canvas = size_class(height + 1, width + 1)
        if graphs.greatest is not None:
            canvas = min(canvas[0], graphs.greatest[0]), min(canvas[1], graphs.greatest[1])
        larger = {name: _encode_one(graphs, image, canvas)}
        wide |= _decode(graphs, larger, slots=1, bucket=WIDE if graphs.any_shape else BUCKET)
    return alone, padded, wide


def _together(graphs: Graphs, images: Images) -> Answers:
    """Images of unlike sizes in batches of ``TOGETHER``, by the encoder and by the decoder."""
    names = list(images)
    found: Answers = {}
    rows = min(TOGETHER, graphs.max_rows)
    for first in range(0, len(names), rows):
        batch = names[first : first + rows]
        encoded = _encode(graphs, [images[name] for name in batch])
        found |= _decode(graphs, dict(zip(batch, encoded, strict=True)), slots=rows, lanes=())
    return found


def _features(graphs: Graphs, images: Images) -> dict[str, EncodedImage]:
    return {
        name: _encode_one(graphs, image, size_class(*image.shape)) for name, image in images.items()
    }


def _encode(graphs: Graphs, images: Sequence[Pixels]) -> list[EncodedImage]:
    batch, size = to_batch(images)
    return split_encoded(
        graphs.encoder.infer({contract.IMAGE.name: batch, contract.SIZE.name: size})
    )


def _encode_one(graphs: Graphs, image: Pixels, canvas: tuple[int, ...]) -> EncodedImage:
    batch = np.zeros((1, 1, *canvas), np.uint8)
    batch[0, 0, : image.shape[0], : image.shape[1]] = image
    size = np.array([image.shape], np.int32)
    (encoded,) = split_encoded(
        graphs.encoder.infer({contract.IMAGE.name: batch, contract.SIZE.name: size})
    )
    return encoded


def _decode(
    graphs: Graphs,
    encoded: Mapping[str, EncodedImage],
    run: Run | None = None,
    *,
    k: int | None = None,
    slots: int = SLOTS,
    bucket: tuple[int, int] = BUCKET,
    lanes: Sequence[int] | None = None,
    limit: int = MAX_TOKENS,
) -> Answers:
    """Answers by name; ``run`` and its ``k`` take the place of the greedy step."""
    sizes: Sizes = graphs.sizes if k is None else replace(graphs.sizes, k=k)
    if lanes is None:
        lanes = lanes_for(OPENVINO if graphs.runner == OPENVINO_BF16 else graphs.runner)
    step = SlotStep(
        run or graphs.step.infer,
        sizes,
        min(slots, graphs.max_rows, len(encoded)),
        lanes=lanes,
        bucket=bucket,
    )
    found = {}
    for name, outcome in zip(encoded, decode_all(step, list(encoded.values()), limit), strict=True):
        if outcome.error is not None:
            raise ExportError(f"{graphs.runner} failed on {name}: {outcome.error}")
        found[name] = Answer(outcome.ids, outcome.scores)
    return found


def _windows(batches: Sequence[Sequence[str]]) -> Iterator[list[Sequence[str]]]:
    """``batches`` in groups of about ``WINDOW`` images."""
    group: list[Sequence[str]] = []
    for batch in batches:
        group.append(batch)
        if sum(map(len, group)) >= WINDOW:
            yield group
            group = []
    if group:
        yield group
