"""Who waits, who is served, who is gone: the requests of one ``recognize``.

``workers`` requests are on their way through the models at a time; the others wait here, where
they cost their bytes and nothing else, a person's before what can wait. A thread looks after them
all: one whose time is up, or whose client went away, is answered at once and its slot freed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from hmer.errors import Cancelled, DeadlineExceeded, HmerError, InferenceFailed
from hmer.priority import PriorityLine
from hmer.room import Room
from hmer.serving import MAX_PENDING_BYTES
from model_repository.publisher import Value
from model_repository.recognize.cache import Answer, AnswerCache, key_of
from model_repository.recognize.job import Job
from model_repository.recognize.stats import FrontStats

_log = logging.getLogger(__name__)

# Asking whether a client is still there is a trip to another process (0.1 ms).
WATCH_S = 0.05
# How long requests may go on when the model is unloaded.
DRAIN_S = 3.0


class Way(Protocol):
    """What a job goes through (``road.Road``)."""

    def go(self, job: Job, remaining_us: int) -> Answer | None:
        """The answer, or ``None`` if nobody waits for it any more. Raises an ``HmerError``."""

    def cancel(self, job: Job) -> None:
        """Free what is held for ``job``, in another thread than ``go``'s."""

    def done(self, job: Job) -> None:
        """``job`` was answered, and its ``go`` has returned."""

    def close(self) -> None:
        """Free everything."""


class Front:
    """Jobs in, answers out; a context manager around its threads."""

    def __init__(
        self,
        road: Way,
        cache: AnswerCache,
        workers: int,
        max_queue: int,
        room: Room,
        on_end: Callable[[Job, HmerError | None], object] = lambda job, error: None,
        max_bytes: int = MAX_PENDING_BYTES,
    ) -> None:
        """``on_end`` gets every job when it was answered, and the error that it got.

        ``max_bytes``: of the inputs of all requests that wait or are at work.
        """
        self._on_end, self._max_bytes = on_end, max_bytes
        self.stats = FrontStats(workers)
        self._road, self._cache, self._workers, self._max_queue = road, cache, workers, max_queue
        self._room = room
        self._wake = threading.Condition()
        self._line: PriorityLine[Job] = PriorityLine()
        self._working: set[Job] = set()
        self._stopping = False
        self._threads: list[threading.Thread] = []
        self._watcher = threading.Thread(target=self._watch, name="hmer-watch", daemon=True)
        self._watcher.start()

    def submit(self, job: Job) -> None:
        """Queue ``job``, or answer it from the cache; returns at once. Raises ``Overloaded``."""
        if self._cache:
            job.key = key_of(job.rows, job.parameters)
            if (known := self._cache.get(job.key)) is not None:
                job.box, job.cached = known.box, True
                for part in known.tokens:
                    job.tokens(part)
                self._end(job, known)
                return
        with self._wake:
            self.stats.count("received_total")
            idle = len(self._threads) - len(self._working) - len(self._line)
            free = self._workers - len(self._working)
            held = sum(other.size for other in (*self._working, *self._line))
            full = held + job.size > self._max_bytes and held > 0
            if self._stopping or full or len(self._line) >= self._max_queue + free:
                raise self._room.refusal(
                    f"{len(self._working)} requests are at work and {len(self._line)} wait.",
                    self._inside(),
                )
            self._room.enter(self._inside(), job.parameters.priority)
            self._line.push(job, job.parameters.priority)
            if idle <= 0 and len(self._threads) < self._workers:
                name = f"hmer-worker-{len(self._threads)}"
                self._threads.append(threading.Thread(target=self._work, name=name, daemon=True))
                self._threads[-1].start()
            self._wake.notify_all()

    def _inside(self) -> int:
        """Pictures that are not answered yet.

        Whoever has the answer may ask again at once: its threads may still have to tidy up.
        """
        waiting = (job for jobs in (self._working, self._line) for job in jobs)
        return sum(job.work for job in waiting if not job.answered)

    def values(self) -> dict[str, Value]:
        """What is published (``model_repository.decode.metrics``)."""
        with self._wake:
            found: dict[str, Value] = {
                "workers_in_use": len(self._working),
                "queue_length": len(self._line),
                "pictures": self._inside(),
                "full": self._room.full,
                "cache_hits_total": self._cache.hits,
                "cache_misses_total": self._cache.misses,
                "cache_bytes": self._cache.size,
            }
        return self.stats.values() | found

    def _work(self) -> None:
        while True:
            with self._wake:
                while not (self._line or self._stopping):
                    self._wake.wait()
                if self._stopping:
                    return
                job = self._line.pop()
                self._working.add(job)
            began = time.monotonic()
            self.stats.waited(began - job.arrived)
            try:
                self._serve(job, began)
            finally:
                self._road.done(job)
                with self._wake:
                    self._working.discard(job)
                    self._room.left(job.work, self._inside())

    def _serve(self, job: Job, began: float) -> None:
        if job.answered:
            return
        left = 0 if job.deadline is None else max(1, int((job.deadline - began) * 1e6))
        try:
            answer = self._road.go(job, left)
            if answer is None:
                return
            if self._end(job, answer) and job.key is not None:
                self._cache.put(job.key, Answer(answer.outputs, tuple(job.sent), job.box))
        except HmerError as error:
            self._fail(job, error)
        except Exception as error:
            _log.exception("A request failed.")
            self._fail(job, InferenceFailed(f"The model failed: {type(error).__name__}: {error}"))

    def _end(self, job: Job, answer: Answer) -> bool:
        if not job.answer(answer):
            return False
        self.stats.answered(time.monotonic() - job.arrived, job.first_token_s)
        self._tell(job, None)
        return True

    def _fail(self, job: Job, error: HmerError) -> None:
        if isinstance(error, InferenceFailed) and job.late(time.monotonic()):
            error = _late()  # a queue of Triton's on the way was the first to notice
        if job.fail(error):
            self.stats.failed(error)
            self._tell(job, error)

    def _tell(self, job: Job, error: HmerError | None) -> None:
        try:
            self._on_end(job, error)
        except Exception:  # who looks on may not harm the request
            _log.exception("The end of a request could not be told.")

    def _watch(self) -> None:
        while not self._stopping:
            time.sleep(WATCH_S)
            now = time.monotonic()
            with self._wake:
                jobs = [*self._working, *self._line]
            for job in jobs:
                if job.answered or now - job.arrived < WATCH_S:
                    continue
                try:
                    error: HmerError | None = None
                    if job.late(now):
                        error = _late()
                    elif job.gone():
                        error = Cancelled("The request was cancelled.")
                    if error is not None:
                        self._fail(job, error)
                        self._road.cancel(job)
                except Exception:
                    _log.exception("A request could not be looked after.")
            with self._wake:
                self._line.remove(lambda job: job.answered)

    def close(self, drain_s: float = DRAIN_S) -> None:
        """Answer what is left, after ``drain_s`` with an error, and stop the threads.

        A model that a new version replaces still has requests; one whose server stops gets
        errors from the other models, and is soon done.
        """
        end = time.monotonic() + drain_s
        while time.monotonic() < end and (self._working or self._line):
            time.sleep(0.01)
        with self._wake:
            self._stopping = True
            jobs = [*self._working, *self._line]
            self._line.clear()
            self._wake.notify_all()
        for job in jobs:
            self._fail(job, Cancelled("The server is stopping."))
            self._road.cancel(job)
        for thread in self._threads:
            thread.join(5.0)
        self._watcher.join(5.0)
        self._road.close()


def _late() -> DeadlineExceeded:
    return DeadlineExceeded(
        "The time limit was reached before the formula was complete. Allow more time, or lower "
        "max_tokens."
    )
