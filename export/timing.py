"""Which of several runners is faster, measured side by side.

A figure of one run says little beside other work on the machine. So all contenders do the same
work in turns, A B C A B C, in one process, and the median over the rounds counts; ratios of such
medians hold better than milliseconds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmer import contract
from hmer.bundle import Bundle
from hmer.contract import Sizes
from hmer.vocab import SOS_ID

Feeds = dict[str, NDArray[Any]]
Clock = Callable[[], float]  # seconds

# Padded heights and widths in pixels: a short formula, a common one, a fraction, a long line.
SIZES = ((64, 128), (96, 256), (128, 384), (96, 640))
ROWS = 4  # formulas that one step of a loaded server advances
ROUNDS = 7


@dataclass(frozen=True)
class Workload:
    """Inputs that the encoder and the step are timed on."""

    encoder: tuple[Feeds, ...]
    step: tuple[Feeds, ...]


def workload(bundle: Bundle, sizes: Sequence[tuple[int, int]] = SIZES, seed: int = 0) -> Workload:
    """Inputs of the right shapes; what is in them does not matter for the time they take."""
    rng = np.random.default_rng(seed)
    encoder, step = [], []
    for height, width in sizes:
        image = (rng.random((1, 1, height, width)) < 0.1).astype(np.uint8) * 255
        encoder.append({"image": image, "size": np.array([[height, width]], np.int32)})
        step.append(_step_feeds(bundle.sizes, height, width, rng))
    return Workload(tuple(encoder), tuple(step))


def side_by_side(
    contenders: Mapping[str, Callable[[], object]],
    *,
    rounds: int = ROUNDS,
    clock: Clock = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of each contender over ``rounds`` turns, after one that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, run in contenders.items():
            begin = clock()
            run()
            if turn:  # the first call of a shape prepares it
                times[name].append(clock() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


def _step_feeds(sizes: Sizes, height: int, width: int, rng: np.random.Generator) -> Feeds:
    h, w = -(-height // sizes.stride), -(-width // sizes.stride)
    known: dict[str, int] = {"feature_height": h, "feature_width": w}
    feeds: Feeds = {}
    for tensor in contract.models(sizes)[contract.DECODER_STEP].inputs:
        shape = [ROWS, *(known[d] if isinstance(d, str) else d for d in tensor.dims)]
        if tensor.name == "token":
            feeds[tensor.name] = np.full(shape, SOS_ID + 1, np.int32)
        elif tensor.name == contract.FEATURE_SIZE.name:
            feeds[tensor.name] = np.tile(np.array([h, w], np.int32), (ROWS, 1))
        else:
            feeds[tensor.name] = rng.standard_normal(shape).astype(tensor.dtype)
    return feeds
