"""The encoder's queue: small pictures first, batches of a size class, nobody forgotten."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hmer.encoding import BATCH_PIXELS, EncodeJob, EncodeQueue, workers_for
from hmer.errors import (
    BadParameter,
    DeadlineExceeded,
    HmerError,
    InferenceFailed,
    Overloaded,
    ServerUnavailable,
)

Tensors = Mapping[str, NDArray[Any]]
LARGE, SMALL = (96, 320), (48, 80)


class Encoder:
    """Answers with the mean of every picture; notes the shapes of its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, ...]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.busy = threading.Semaphore(0)
        self.error: Exception | None = None

    def __call__(self, feeds: dict[str, NDArray[Any]]) -> Tensors:
        self.calls.append(feeds["image"].shape)
        self.busy.release()
        assert self.gate.wait(10)
        if self.error is not None:
            raise self.error
        return {"state": feeds["image"].mean(axis=(1, 2, 3), keepdims=False)[:, None]}


class Box:
    """Takes one job's answer."""

    def __init__(
        self, shape: tuple[int, int], level: int = 1, rows: int = 1, **options: Any
    ) -> None:
        self.answers: list[Tensors | HmerError] = []
        self._done = threading.Event()
        image = np.full((rows, 1, *shape), level, np.uint8)
        size = np.tile(np.array(shape, np.int32), (rows, 1))
        self.job = EncodeJob(image, size, self._take, **options)

    def _take(self, result: Tensors | HmerError) -> None:
        self.answers.append(result)
        self._done.set()

    def result(self) -> Tensors | HmerError:
        assert self._done.wait(10), "no answer"
        (answer,) = self.answers
        return answer


def queue(encoder: Any, workers: int = 1, max_queue: int = 99, **options: Any) -> EncodeQueue:
    return EncodeQueue(encoder, workers=workers, max_queue=max_queue, **options)


def shapes(jobs: list[EncodeJob]) -> list[tuple[int, ...]]:
    return [job.image.shape[2:] for job in jobs]


def test_everybody_is_answered_with_their_own_rows() -> None:
    boxes = [Box(SMALL if i % 3 else LARGE, i, rows=1 + i % 2) for i in range(40)]
    with queue(Encoder(), workers=3) as waiting:
        for box in boxes:
            waiting.submit(box.job)
        for level, box in enumerate(boxes):
            result = box.result()
            assert not isinstance(result, HmerError)
            assert result["state"].tolist() == [[level]] * (1 + level % 2)


def test_a_small_picture_goes_first() -> None:
    waiting = queue(Encoder())
    for shape in (LARGE, LARGE, LARGE, SMALL, LARGE, (48, 96)):
        waiting.submit(Box(shape).job)
    order = [shapes(waiting.take())[0] for _ in range(6)]
    assert order == [SMALL, (48, 96), LARGE, LARGE, LARGE, LARGE]
    assert waiting.take() == []


def test_small_pictures_do_not_keep_a_large_one_waiting_for_ever() -> None:
    waiting = queue(Encoder())
    for _ in range(8):
        waiting.submit(Box(LARGE).job)
    for width in range(80, 112):  # of as many size classes, so that none share a call
        waiting.submit(Box((64, width)).job)
    before = 0
    while (job := waiting.take()[0]).image.shape[2:] != LARGE:
        before += job.pixels
    assert 0 < before <= 96 * 320
    assert waiting.take()[0].image.shape[2:] != LARGE, "then small ones may overtake again"


def test_pictures_of_about_one_size_are_first_come_first_served() -> None:
    waiting = queue(Encoder())
    sizes = [(64, 64 + 16 * (i % 4)) for i in range(8)]
    for shape in sizes:
        waiting.submit(Box(shape).job)
    taken: list[tuple[int, ...]] = []
    while jobs := waiting.take():
        taken += shapes(jobs)[:1]
    assert taken[:3] == sizes[:3]


def test_small_pictures_of_one_size_class_share_a_call() -> None:
    waiting = queue(Encoder())
    for shape in (SMALL, LARGE, SMALL, (48, 96), *[SMALL] * 8):
        waiting.submit(Box(shape).job)
    together = waiting.take()
    assert set(shapes(together)) == {SMALL}
    assert sum(job.pixels for job in together) <= BATCH_PIXELS
    assert len(together) == BATCH_PIXELS // (48 * 80)
    assert len(waiting.take()) == 1, "a large one gains nothing by company"


def test_an_idle_worker_gets_a_picture_before_a_batch_does() -> None:
    waiting = queue(Encoder(), workers=4)  # not started: all of them idle
    for _ in range(4):
        waiting.submit(Box(SMALL).job)
    assert [len(waiting.take()) for _ in range(4)] == [1, 1, 1, 1]


def test_a_full_queue_refuses_and_goes_on() -> None:
    encoder = Encoder()
    encoder.gate.clear()
    boxes = [Box(LARGE) for _ in range(3)]
    with queue(encoder, max_queue=2) as waiting:
        waiting.submit(boxes[0].job)
        assert encoder.busy.acquire(timeout=10)
        waiting.submit(boxes[1].job)
        waiting.submit(boxes[2].job)
        with pytest.raises(Overloaded, match="2 requests wait"):
            waiting.submit(Box(LARGE).job)
        encoder.gate.set()
        assert all(not isinstance(box.result(), HmerError) for box in boxes)


def test_a_failing_call_fails_its_own_jobs_only() -> None:
    encoder = Encoder()
    encoder.error = RuntimeError("boom")
    with queue(encoder) as waiting:
        bad, good = Box(LARGE), Box(LARGE)
        waiting.submit(bad.job)
        error = bad.result()
        assert isinstance(error, InferenceFailed)
        assert "boom" in str(error)
        encoder.error = None
        waiting.submit(good.job)
        assert not isinstance(good.result(), HmerError)


def test_who_is_late_is_not_encoded() -> None:
    encoder, now = Encoder(), [0.0]
    late, early = Box(SMALL, deadline=1.0), Box(SMALL, deadline=9.0)
    waiting = queue(encoder, clock=lambda: now[0])
    now[0] = 5.0
    waiting.encode([late.job, early.job])
    assert isinstance(late.result(), DeadlineExceeded)
    assert not isinstance(early.result(), HmerError)
    assert encoder.calls == [(1, 1, *SMALL)]


def test_stopping_answers_what_waits() -> None:
    encoder = Encoder()
    encoder.gate.clear()
    running, left = Box(LARGE), Box(LARGE)
    waiting = queue(encoder)
    waiting.start()
    waiting.submit(running.job)
    assert encoder.busy.acquire(timeout=10)
    waiting.submit(left.job)
    opener = threading.Timer(0.05, encoder.gate.set)
    opener.start()
    waiting.stop()
    assert not isinstance(running.result(), HmerError)
    assert isinstance(left.result(), ServerUnavailable)
    with pytest.raises(ServerUnavailable):
        waiting.submit(Box(LARGE).job)


@pytest.mark.parametrize(("workers", "max_queue"), [(0, 4), (1, 0)])
def test_bad_numbers_are_refused(workers: int, max_queue: int) -> None:
    with pytest.raises(BadParameter):
        queue(Encoder(), workers=workers, max_queue=max_queue)


@pytest.mark.parametrize("wrong", ["size", "type", "size type"])
def test_one_that_is_wrong_joins_no_batch(wrong: str) -> None:
    """In one call it would take its neighbours with it."""
    waiting = queue(Encoder())
    good, bad, other = Box(SMALL), Box(SMALL), Box(SMALL)
    if wrong == "size":
        bad.job.size = bad.job.size[:, :1]
    elif wrong == "type":
        bad.job.image = bad.job.image.astype(np.float64)  # type: ignore[assignment]
    else:
        bad.job.size = bad.job.size.astype(np.int64)  # type: ignore[assignment]
    for box in (good, bad, other, Box(LARGE), Box(LARGE)):
        waiting.submit(box.job)
    assert waiting.take() == [good.job, other.job]
    assert waiting.take() == [bad.job]


def test_how_many_workers() -> None:
    assert [workers_for("onnxruntime", threads) for threads in (1, 2, 3, 4, 8, 64)] == [
        *(1, 1, 1, 2, 4, 4)
    ]
    assert workers_for("onnxruntime", 2, wanted=3) == 3
    assert workers_for("openvino", 8) == workers_for("openvino", 8, wanted=3) == 1
