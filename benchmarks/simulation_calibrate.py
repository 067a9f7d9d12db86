"""Measure what a simulation needs of this machine: the parts of a request, each by itself.

The encoder is timed in process over padded sizes, batches and numbers of threads; the step over
rows, through the product's own slots; reading a picture and what a server adds are timed on real
inputs, one at a time. Nothing here loads a server: what happens under load is what the simulation
is to find.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from benchmarks.crohme import Expression
from benchmarks.latency_served import ServedWay
from benchmarks.machine import ended
from benchmarks.repositories import Chosen
from benchmarks.simulation_times import KIND, VERSION
from hmer import contract
from hmer.bundle import ENCODER_FILE, STEP_FILE, Bundle
from hmer.decode_types import EncodedImage
from hmer.encoding import BATCH_PIXELS, workers_for
from hmer.errors import HmerError, InferenceFailed
from hmer.preprocess import load, to_batch
from hmer.recognizer import LocalRecognizer
from hmer.runtime import Runner, open_runner, thread_count
from hmer.slots import SlotStep, batches_for, split_encoded

ROWS = (1, 2, 4, 8, 16)
BATCHES = (1, 2)
SHAPES = 6  # padded sizes that are timed, from the smallest to the largest
BUDGET_S = 0.15  # of one call's timing
_PASSES = 3

Say = Callable[[str], None]


def calibrate(
    bundle: Bundle,
    chosen: Chosen,
    description: dict[str, Any],
    expressions: Sequence[Expression],
    url: str,
    ready_s: float,
    *,
    about: dict[str, Any],
    conditions: dict[str, Any],
    budget: float = BUDGET_S,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """The document of ``simulation_times`` for the idle server at ``url`` over ``bundle``.

    ``chosen``, ``description``: of its ``repository.json``. Raises ``InferenceFailed`` if no
    input can be read, or what loading and running the graphs raises.
    """
    cpus = thread_count(0)
    threads = thread_count(int(description.get("threads", 0)))
    say("Reading the inputs one by one, without a server and with one ...")
    kinds, server_ms = _requests(bundle, chosen, threads, expressions, url)
    if not kinds:
        raise InferenceFailed("None of the inputs can be recognised, so nothing can be timed.")
    shapes = _spread(sorted({(k["height"], k["width"]) for k in kinds}))
    say(f"Timing the encoder at {len(shapes)} sizes ...")
    points, images = _encoder(bundle, chosen, expressions, shapes, threads, budget)
    slots = int(description["slots"])
    say("Timing the step ...")
    steps, join_ms = _step(
        bundle, chosen, images, slots, int(description.get("step_threads", 1)), budget
    )
    workers = workers_for(chosen.target, threads, int(description.get("encoder_workers", 0)))
    return {
        **{"benchmark": KIND, "version": VERSION, "machine": ended(about), **conditions},
        "device": about["cpu"],
        "cpus": cpus,
        "runtime": vars(chosen),
        "ready_s": ready_s,
        "slots": slots,
        "max_queue": int(description["max_queue"]),
        "max_wait_ms": int(description.get("max_wait_ms", 0)),
        "k": bundle.k,
        "server_ms": server_ms,
        "encoder": {
            "workers": workers,
            "batch_pixels": int(description.get("batch_pixels", 0)) or BATCH_PIXELS,
            "points": points,
        },
        "step": {"join_ms": join_ms, "points": steps},
        "requests": kinds,
    }


def median_seconds(run: Callable[[], object], budget: float, least: int = 3) -> float:
    """The median of the calls that fit into ``budget`` seconds, after one that is not timed.

    Not the shortest: a model of many calls needs what a call usually takes.
    """
    run()
    took: list[float] = []
    while len(took) < least or sum(took) < budget:
        began = time.perf_counter()
        run()
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def _requests(
    bundle: Bundle, chosen: Chosen, threads: int, expressions: Sequence[Expression], url: str
) -> tuple[list[dict[str, Any]], float]:
    """Each input's size, tokens and reading; what the server takes more than the parts, in ms."""
    data = [e.data for e in expressions]
    with LocalRecognizer(
        bundle.folder, chosen.target, threads=threads, precision=chosen.precision,
        step_target=chosen.step_target,
    ) as local:  # fmt: skip
        served = ServedWay(url, data)
        try:
            served.take(range(len(data)))  # the first calls of each shape
            kinds, more = [], []
            for index, item in enumerate(data):
                found: list[tuple[float, float, int]] = []
                over: list[float] = []
                local.recognize_many([item])
                for _ in range(_PASSES):  # in turns: what slows the machine slows both
                    over += served.take([index]).ms
                    began = time.perf_counter()
                    (answer,) = local.recognize_many([item])
                    ms = (time.perf_counter() - began) * 1e3
                    if not isinstance(answer, HmerError):
                        front = dict(answer.timings).get("preprocess", 0.0)
                        found.append((ms, front, len(answer.tokens) + 1))
                if not found:
                    continue
                height, width = to_batch([load(item, bundle.preprocess)])[0].shape[2:]
                kinds.append(
                    {
                        **{"height": int(height), "width": int(width), "tokens": found[0][2]},
                        "positions": int(height * width) // bundle.sizes.stride**2,
                        "front_ms": statistics.median(front for _, front, _ in found),
                    }
                )
                more.append(statistics.median(over) - statistics.median(ms for ms, _, _ in found))
        finally:
            served.close()
    return kinds, max(0.0, statistics.median(more)) if more else 0.0


def _spread(shapes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Some of ``shapes``, evenly over their areas."""
    by_area = sorted(shapes, key=lambda s: s[0] * s[1])
    count = min(SHAPES, len(by_area))
    return [by_area[i * (len(by_area) - 1) // max(1, count - 1)] for i in range(count)]


def _encoder(
    bundle: Bundle,
    chosen: Chosen,
    expressions: Sequence[Expression],
    shapes: Sequence[tuple[int, int]],
    threads: int,
    budget: float,
) -> tuple[list[dict[str, Any]], list[Any]]:
    """Timed calls, and what the encoder made of the pictures of one input each."""
    points: list[dict[str, Any]] = []
    images: list[Any] = []
    feeds: dict[tuple[int, ...], tuple[Any, Any]] = {}
    for expression in expressions:
        try:
            image, size = to_batch([load(expression.data, bundle.preprocess)])
        except HmerError:
            continue
        feeds.setdefault(image.shape[2:], (image, size))
        if len(images) < max(ROWS):
            images.append((image, size))
    for count in sorted({1, threads}):
        with open_runner(
            chosen.target, bundle.file(ENCODER_FILE), count, chosen.precision
        ) as runner:
            if count == 1:
                images = [split_encoded(runner.infer(_feed(*pair)))[0] for pair in images]
            for shape, batch in itertools.product(shapes, BATCHES):
                image, size = feeds[shape]
                points.append(
                    {
                        **{"threads": count, "batch": batch},
                        **{"height": int(shape[0]), "width": int(shape[1])},
                        "ms": 1e3 * _call_s(runner, image, size, batch, budget),
                    }
                )
    return points, images


def _call_s(runner: Runner, image: Any, size: Any, batch: int, budget: float) -> float:
    feed = _feed(image.repeat(batch, axis=0), size.repeat(batch, axis=0))
    return median_seconds(lambda: runner.infer(feed), budget)


def _feed(image: Any, size: Any) -> dict[str, Any]:
    return {contract.IMAGE.name: image, contract.SIZE.name: size}


def _step(
    bundle: Bundle, chosen: Chosen, images: Sequence[Any], slots: int, threads: int, budget: float
) -> tuple[list[dict[str, Any]], float]:
    """Milliseconds of a step by rows and positions; what a formula's joining adds."""
    points: list[dict[str, Any]] = []
    joins: list[float] = []
    by_size = sorted(images, key=_positions)
    sizes = {
        _positions(image): image for image in (by_size[0], by_size[len(images) // 2], by_size[-1])
    }
    with open_runner(chosen.step_target, bundle.file(STEP_FILE), threads) as runner:
        for rows, image in itertools.product(sorted({min(r, slots) for r in ROWS}), sizes.values()):
            step = SlotStep(
                runner.infer, bundle.sizes, slots, **batches_for(chosen.step_target, slots, False)
            )
            taken = range(rows)
            first, usual = [], []
            for _ in range(_PASSES):
                for slot in taken:
                    step.release(slot)
                    step.admit(slot, image)
                began = time.perf_counter()
                step.step(taken)
                first.append(time.perf_counter() - began)
                usual.append(median_seconds(partial(step.step, taken), budget / _PASSES))
            ms = statistics.median(usual) * 1e3
            points.append({"rows": rows, "positions": rows * _positions(image), "ms": ms})
            joins.append(max(0.0, statistics.median(first) * 1e3 - ms) / rows)
    return points, statistics.median(joins)


def _positions(image: EncodedImage) -> int:
    height, width = image.values.shape[:2]
    return int(height * width)
