"""The encoder's queue: who is encoded next, and with whom, by workers that share one session.

On a CPU the encoder is nearly all of a formula's work, and its time grows with the picture's
pixels; a batch saves little but the fixed cost of a call. So one session with a thread a core is
called by one worker or, with more cores, several: a picture alone gets all cores, those of several
workers their share each, with no core waiting for a batch to end.

First come, first served, with two exceptions. Short formulas go first (``hmer.overtaking``). And
among the others a picture counts as having come earlier by as long as it will take, so that what
takes long does not also wait long.

Batches are of one size class (equal padded shapes) and small: pictures join while their pixels
sum up to less than a call's fixed cost is worth. Who shares a batch never changes an answer.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmer import contract
from hmer.errors import (
    BadParameter,
    DeadlineExceeded,
    HmerError,
    InferenceFailed,
    Overloaded,
    ServerUnavailable,
)
from hmer.overtaking import Overtaking
from hmer.runtime import ONNXRUNTIME

_log = logging.getLogger(__name__)

Tensors = Mapping[str, NDArray[Any]]

# How fast the seconds that a pixel takes follow: about the last 32 calls count.
FOLLOW = 1 / 32
# Added to a thread's niceness: a thread gets a third of what others do that want the CPU.
NICER = 5
# A batch's pixels, padding included. Measured on one core: two pictures of 10,000 pixels in a
# call take 5 % less time than in two calls; with 30,000 it is the same.
BATCH_PIXELS = 24_000
# Threads for each worker: on two cores two workers take so much from the decoder that formulas wait
# for slots, where short ones cannot help it, and have twice the activations in memory.
_THREADS_PER_WORKER, _MOST_WORKERS = 2, 4


def workers_for(target: str, threads: int, wanted: int = 0) -> int:
    """How many workers share a session of ``threads``; ``wanted`` of them if that is not 0.

    One where calls take turns, as those of an OpenVINO runner do.
    """
    if target != ONNXRUNTIME:
        return 1
    return wanted or max(1, min(threads // _THREADS_PER_WORKER, _MOST_WORKERS))


@dataclass(eq=False)
class EncodeJob:
    """Pictures of one padded shape: ``image`` uint8 (B, 1, H, W), ``size`` int32 (B, 2).

    ``on_done`` gets the encoder's outputs, rows as in ``image``, or why there are none; it is
    called once, by a worker: be quick. ``deadline``: a time of the queue's clock.
    """

    image: NDArray[np.uint8]
    size: NDArray[np.int32]
    on_done: Callable[[Tensors | HmerError], None]
    deadline: float | None = None
    arrived: float = 0.0  # set by the queue

    @property
    def pixels(self) -> int:
        """How much work it is."""
        return int(self.image.size)

    @property
    def kind(self) -> tuple[object, ...]:
        """What pictures of one batch have in common: shapes and types, so that one that is wrong
        does not spoil its neighbours."""
        return self.image.shape[1:], self.image.dtype, self.size.shape[1:], self.size.dtype


class EncodeQueue:
    """Jobs for ``infer``, which takes and gives the encoder's tensors and may be called by
    several threads at a time; a context manager around its ``workers``.

    ``max_queue`` jobs may wait beyond those at work.
    """

    def __init__(
        self,
        infer: Callable[[dict[str, NDArray[Any]]], Tensors],
        *,
        workers: int,
        max_queue: int,
        batch_pixels: int = BATCH_PIXELS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """No thread yet. Raises ``BadParameter``."""
        self._batch_pixels = batch_pixels
        if workers < 1 or max_queue < 1:
            raise BadParameter(f"workers ({workers}) and max_queue ({max_queue}) must be positive.")
        self._infer, self._max_queue, self._clock = infer, max_queue, clock
        self._wake = threading.Condition()
        self._waiting: list[EncodeJob] = []  # in the order of arrival
        self._idle = workers
        self._small = Overtaking()  # by pixels
        self._pace = 0.0  # seconds that a pixel takes
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._work, name=f"hmer-encode-{index}", daemon=True)
            for index in range(workers)
        ]

    def submit(self, job: EncodeJob) -> None:
        """Queue ``job``. Raises ``Overloaded`` or ``ServerUnavailable``; then it is not answered
        otherwise."""
        with self._wake:
            if self._stopping:
                raise ServerUnavailable("The encoder is shutting down and takes no more requests.")
            if len(self._waiting) >= self._max_queue + self._idle:
                raise Overloaded(
                    f"The encoder is full: {len(self._waiting)} requests wait. Try again later."
                )
            job.arrived = self._clock()
            self._waiting.append(job)
            self._small.came(job.pixels)
            self._wake.notify()

    def __len__(self) -> int:
        """How many jobs wait."""
        return len(self._waiting)

    def take(self) -> list[EncodeJob]:
        """The jobs of the next call, oldest first; none if none wait."""
        with self._wake:
            return self._take()

    def _take(self) -> list[EncodeJob]:
        if not self._waiting:
            return []
        first = self._small.first(self._waiting, lambda job: job.pixels)
        if first is None:
            first = min(self._waiting, key=self._since)
            self._small.turn()
        else:
            self._small.overtook(first.pixels)
        chosen, pixels = [first], first.pixels
        # Others of its size class fill the batch, unless an idle worker can have them at once.
        spare = len(self._waiting) - 1 - self._idle
        for job in self._waiting:
            if spare < 1 or pixels + first.pixels > self._batch_pixels:
                break
            if job is not first and job.kind == first.kind:
                chosen.append(job)
                pixels += job.pixels
                spare -= 1
        self._waiting = [job for job in self._waiting if job not in chosen]
        return chosen

    def _since(self, job: EncodeJob) -> float:
        return job.arrived - self._pace * job.pixels

    def _work(self) -> None:
        step_back()
        while True:
            with self._wake:
                while not (self._waiting or self._stopping):
                    self._wake.wait()
                if self._stopping:
                    return
                self._idle -= 1
                jobs = self._take()
            try:
                self.encode(jobs)
            finally:
                with self._wake:
                    self._idle += 1

    def encode(self, jobs: Sequence[EncodeJob]) -> None:
        """One call for ``jobs``, of equal shapes, and their answers."""
        now = self._clock()
        due = []
        for job in jobs:
            if job.deadline is not None and now >= job.deadline:
                _answer(job, DeadlineExceeded("The time limit was reached before encoding began."))
            else:
                due.append(job)
        if not due:
            return
        try:
            outputs = self._infer(
                {
                    contract.IMAGE.name: _joined([job.image for job in due]),
                    contract.SIZE.name: _joined([job.size for job in due]),
                }
            )
        except Exception as error:
            for job in due:
                _answer(job, _failure(error))
            return
        self.took(self._clock() - now, sum(job.pixels for job in due))
        first = 0
        for job in due:
            rows = slice(first, first + len(job.image))
            first = rows.stop
            _answer(job, {name: values[rows] for name, values in outputs.items()})

    def took(self, seconds: float, pixels: int) -> None:
        """Learn from a call how long pixels take."""
        pace = seconds / pixels
        self._pace += (pace - self._pace) * (FOLLOW if self._pace else 1.0)

    def start(self) -> None:
        """Start the workers, once."""
        for thread in self._threads:
            thread.start()

    def stop(self, timeout: float = 10.0) -> None:
        """Answer what waits with ``ServerUnavailable``, and end the workers after their calls."""
        with self._wake:
            self._stopping = True
            left, self._waiting = self._waiting, []
            self._wake.notify_all()
        for job in left:
            _answer(job, ServerUnavailable("The server is shutting down. Ask another one."))
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(timeout)

    def __enter__(self) -> EncodeQueue:
        """Start."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop."""
        self.stop()


def step_back() -> None:
    """Let others have the CPU before this thread, and before those that it will start.

    The encoder has as many threads as there are CPUs, and more to do than everybody else. Beside
    them the decoder's one thread would get a share that is too small under load: formulas would
    pile up before its slots, where a short one cannot overtake.
    """
    if hasattr(os, "setpriority"):
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + NICER)


def _joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _failure(error: Exception) -> HmerError:
    if isinstance(error, HmerError):
        return type(error)(str(error))  # a new object for each: it is raised elsewhere
    return InferenceFailed(f"The encoder failed: {type(error).__name__}: {error}")


def _answer(job: EncodeJob, result: Tensors | HmerError) -> None:
    try:
        job.on_done(result)
    except Exception:
        _log.exception("An encoder's answer could not be handed on.")
