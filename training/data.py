"""Training data: the held-out split, batches of like size."""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hmer import ink
from hmer.preprocess import PreprocessSettings, size_class, to_batch
from hmer.vocab import EOS_ID, PAD_ID
from training.examples import Example
from training.render import Renderer, Sample
from training.sources import pack_of, read_pack

__all__ = [
    "DRAWN_AS",
    "STRUCTURE",
    "Batch",
    "Example",
    "Plan",
    "Renderer",
    "Sample",
    "Split",
    "collate",
    "estimate_size",
    "fixed_batches",
    "pack_of",
    "plan_epoch",
    "read_pack",
    "split_by_writer_and_label",
]

# Tokens drawn with the ink of another symbol: a fraction bar is segmented as a minus.
DRAWN_AS = {"\\frac": ("-",), "\\cdot": (".", "\\cdot"), "\\cdots": ("\\ldots", "\\cdots")}
STRUCTURE = frozenset({"_", "^", "{", "}"})  # tokens without ink of their own


Sizes = Callable[[int, int], tuple[int, int]]  # from height and width to the padded ones


def _draw(text: str, seed: int) -> float:
    digest = hashlib.sha256(f"{seed}:{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2.0**64


class Split(NamedTuple):
    """``train`` and ``held_out`` share neither writer nor label."""

    train: list[Example]
    held_out: list[Example]


def split_by_writer_and_label(
    examples: Sequence[Example], share: float = 0.05, seed: int = 0, common: int = 4
) -> Split:
    """Hold out about ``share`` of the writers, and with them every label they wrote.

    Training loses the examples of other writers with a held-out label; so that it loses
    few, labels written more than ``common`` times in all are not held out (the held-out
    writers' examples of those are dropped). The choice hangs on the names alone. Where no
    example names its writer, labels are drawn instead of writers.
    """
    counts = Counter(example.tokens for example in examples)
    if not any(example.writer for example in examples):
        drawn = {t for t, n in counts.items() if n <= common and _draw(" ".join(t), seed) < share}
        return Split(
            [e for e in examples if e.tokens not in drawn],
            [e for e in examples if e.tokens in drawn],
        )
    writers = {e.writer for e in examples if _draw(e.writer, seed) < share}
    held_out = [e for e in examples if e.writer in writers and counts[e.tokens] <= common]
    labels = {example.tokens for example in held_out}
    train = [e for e in examples if e.writer not in writers and e.tokens not in labels]
    return Split(train, held_out)


class Batch(NamedTuple):
    """Tensors of a batch: B images, T steps, S vocabulary classes as cell maps.

    ``image`` uint8 (B, 1, H, W), ``size`` int32 (B, 2), ``targets`` int64 (B, T) that end in
    ``<eos>`` and are padded with ``<pad>``, ``symbols`` bool (B, V, h, w): where ink of each
    symbol lies; a row without segmentation is all false.
    """

    image: Tensor
    size: Tensor
    targets: Tensor
    symbols: Tensor


def few_sizes(height: int, width: int) -> tuple[int, int]:
    """A padded size out of few: sides are powers of two, or one and a half of one, from 64 on.

    On a GPU a convolution's first call with a new shape costs some milliseconds of planning,
    more than computing it: there, more padding is the cheaper part.
    """
    return _few(height), _few(width)


def _few(length: int) -> int:
    power = 64
    while power < length:
        power *= 2
    return power * 3 // 4 if power > 64 and length <= power * 3 // 4 else power


def collate(
    samples: Sequence[Sample], vocabulary_size: int, stride: int, sizes: Sizes = size_class
) -> Batch:
    """Pad samples to one size: what ``sizes`` makes of the greatest height and width."""
    image, size = to_batch([sample.image for sample in samples])
    height, width = sizes(*size.max(0).tolist())
    below, right = height - image.shape[2], width - image.shape[3]
    if below > 0 or right > 0:
        image = np.pad(image, ((0, 0), (0, 0), (0, max(0, below)), (0, max(0, right))))
    length = max(len(sample.ids) for sample in samples) + 1
    targets = torch.full((len(samples), length), PAD_ID, dtype=torch.int64)
    h, w = image.shape[2] // stride, image.shape[3] // stride
    symbols = np.zeros((len(samples), vocabulary_size, h, w), np.bool_)
    for row, sample in enumerate(samples):
        targets[row, : len(sample.ids) + 1] = torch.tensor([*sample.ids, EOS_ID])
        symbols[row, sample.cells[:, 0], sample.cells[:, 1], sample.cells[:, 2]] = True
    return Batch(
        torch.from_numpy(image), torch.from_numpy(size), targets, torch.from_numpy(symbols)
    )


def estimate_size(example: Example, settings: PreprocessSettings) -> tuple[int, int]:
    """About the rendered height and width, without rendering: for buckets only."""
    border = 2 * settings.margin
    if example.picture:
        height, width = (side * settings.symbol_height for side in example.picture.extent)
        return int(height) + border, int(width) + border
    unit = ink.typical_height(example.strokes) or 1.0
    span = np.ptp(np.concatenate(example.strokes), axis=0) / unit * settings.symbol_height
    return int(span[1]) + border, int(span[0]) + border


class Plan(NamedTuple):
    """One batch to make: indices of examples, and the scale augmentation that they share."""

    indices: list[int]
    zoom: float


def plan_epoch(
    sizes: Sequence[tuple[int, int]],
    zooms: tuple[float, float],
    pixels: int,
    limit: int,
    rng: np.random.Generator,
    padded_sizes: Sizes = size_class,
    rows: int = 1,
) -> list[Plan]:
    """Batches of like-sized examples in random order: about ``pixels`` padded pixels each.

    ``sizes`` are (height, width) at zoom 1. A batch holds at most ``limit`` examples; its
    zoom is log-uniform in ``zooms``: one for all, because unlike sizes would be padding.
    Bins of width, sorted by height, with noise: neighbours differ from epoch to epoch.
    All batches but the last hold a multiple of ``rows`` examples, if they hold that many.
    """
    logs = np.log(np.array(sizes, dtype=np.float64)) + rng.normal(0.0, 0.04, (len(sizes), 2))
    bins = np.floor(logs[:, 1] / 0.2 + rng.random())
    low, high = np.log(zooms)
    plans: list[Plan] = []
    current: list[int] = []
    tallest = widest = 0
    zoom = float(np.exp(rng.uniform(low, high)))
    waiting = deque(int(index) for index in np.lexsort((logs[:, 0], bins)))
    while waiting:
        index = waiting.popleft()
        height, width = sizes[index]
        high_side, wide_side = max(tallest, height), max(widest, width)
        padded = padded_sizes(int(high_side * zoom), int(wide_side * zoom))
        full = padded[0] * padded[1] * (len(current) + 1) > pixels
        if current and (len(current) >= limit or full):
            waiting.appendleft(index)
            kept = max(len(current) // rows * rows, min(len(current), rows - 1))
            waiting.extendleft(reversed(current[kept:]))
            plans.append(Plan(current[:kept], zoom))
            current, tallest, widest = [], 0, 0
            zoom = float(np.exp(rng.uniform(low, high)))
            continue
        current.append(index)
        tallest, widest = high_side, wide_side
    if current:
        plans.append(Plan(current, zoom))
    return [plans[i] for i in rng.permutation(len(plans))]


def fixed_batches(count: int, sizes: Sequence[tuple[int, int]], limit: int) -> Iterator[list[int]]:
    """Indices by size, ``limit`` at a time: for evaluation, where the order does not matter."""
    order = sorted(range(count), key=lambda i: (sizes[i][1], sizes[i][0]))
    for start in range(0, count, limit):
        yield order[start : start + limit]
