"""The same runtimes without a server: what serving is compared with.

Recognisers live in processes of their own, so that neither their threads nor Python's lock meet
the load generator's.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.asking import Reply
from benchmarks.repositories import Chosen
from hmer.errors import HmerError, InferenceFailed
from hmer.runtime import thread_count

_JOIN_S = 10.0


@dataclass(frozen=True)
class Spec:
    """What a worker runs: a bundle's graphs in a runtime, or a checkpoint in PyTorch."""

    folder: Path
    threads: int
    chosen: Chosen | None  # None: PyTorch, eager


@dataclass(frozen=True)
class Timed:
    """Seconds for each input where they were sent one by one, for all of them together, and the
    answers, which are in the inputs' order; ``timings`` are milliseconds by stage."""

    seconds: list[float]
    wall: float
    replies: list[Reply]
    timings: list[dict[str, float]]


@dataclass(frozen=True)
class Started:
    """Seconds until a recogniser was loaded, and seconds that its first input took."""

    load_s: float
    first_s: float


class Worker:
    """A process with one recogniser; a context manager."""

    def __init__(self, spec: Spec, inputs: Sequence[bytes]) -> None:
        """Start it; ``ready`` waits for it."""
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(there, spec, list(inputs)), daemon=True
        )
        self._process.start()
        there.close()

    def ready(self) -> Started:
        """Return when it is loaded and warm. Raises what loading raised."""
        found: Started = self._take()
        return found

    def ask(self, order: Sequence[int], *, together: bool) -> None:
        """Begin to recognise these inputs: ``together``, or one after another."""
        self._here.send((list(order), together))

    def answer(self) -> Timed:
        """Wait for the answers to ``ask``. Raises ``InferenceFailed`` if the process is gone."""
        found: Timed = self._take()
        return found

    def _take(self) -> Any:
        try:
            found = self._here.recv()
        except (EOFError, ConnectionError):
            raise InferenceFailed(
                "A process that recognises without a server ended by itself; its own words are "
                "above."
            ) from None
        if isinstance(found, HmerError):
            raise found
        return found

    def close(self) -> None:
        """End the process."""
        self._here.close()
        self._process.join(_JOIN_S)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()

    def __enter__(self) -> Worker:
        """The worker itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()


class InProcess:
    """The recognisers of a comparison: one over all CPUs, and one for every CPU."""

    def __init__(
        self, bundle: Path, chosen: Chosen, inputs: Sequence[bytes], cpus: int = 0
    ) -> None:
        """Start the processes, for ``cpus`` CPUs (0: all); for one there is one process.

        Raises ``BundleError`` or ``MissingDependency``.
        """
        cpus = thread_count(cpus)
        with ExitStack() as stack:
            self.whole = stack.enter_context(Worker(Spec(bundle, cpus, chosen), inputs))
            parts = cpus if cpus > 1 else 0
            self.each = [
                stack.enter_context(Worker(Spec(bundle, 1, chosen), inputs)) for _ in range(parts)
            ]
            for worker in (self.whole, *self.each):
                worker.ready()
            self._stack = stack.pop_all()

    def one_by_one(self, order: Sequence[int]) -> Timed:
        """Each input alone, with the threads of all CPUs."""
        self.whole.ask(order, together=False)
        return self.whole.answer()

    def throughput(self, order: Sequence[int]) -> dict[str, float]:
        """Inputs a second, all at once: one process with all CPUs, and one for each CPU."""
        self.whole.ask(order, together=True)
        found = {"one process": len(order) / self.whole.answer().wall}
        if len(self.each) > 1:
            parts = [order[i :: len(self.each)] for i in range(len(self.each))]
            began = time.perf_counter()
            for worker, part in zip(self.each, parts, strict=True):
                worker.ask(part, together=True)
            for worker in self.each:
                worker.answer()
            found["a process a CPU"] = len(order) / (time.perf_counter() - began)
        return found

    def answers(self, order: Sequence[int]) -> dict[int, Reply]:
        """The answer to each input, by all CPUs."""
        workers = self.each or [self.whole]
        parts = [order[i :: len(workers)] for i in range(len(workers))]
        for worker, part in zip(workers, parts, strict=True):
            worker.ask(part, together=True)
        found: dict[int, Reply] = {}
        for worker, part in zip(workers, parts, strict=True):
            found |= zip(part, worker.answer().replies, strict=True)
        return found

    def close(self) -> None:
        """End the processes."""
        self._stack.close()


def _serve(connection: Connection, spec: Spec, inputs: list[bytes]) -> None:
    """A worker's process: answer what comes over ``connection`` until it is closed."""
    try:
        began = time.perf_counter()
        one, many, close = _open(spec)
        loaded = time.perf_counter()
        one(inputs[0])
        first = time.perf_counter()
    except HmerError as error:
        connection.send(error)
        return
    connection.send(Started(loaded - began, first - loaded))
    try:
        while True:
            order, together = connection.recv()
            connection.send(_timed(one, many if together else None, [inputs[i] for i in order]))
    except (EOFError, ConnectionError, KeyboardInterrupt):
        close()


One = Callable[[bytes], tuple[Reply, dict[str, float]]]
Many = Callable[[list[bytes]], list[Reply]]


def _open(spec: Spec) -> tuple[One, Many, Callable[[], None]]:
    if spec.chosen is None:
        from benchmarks.reference.eager_loop import EagerLoop

        loop = EagerLoop(spec.folder, spec.threads)

        def eager(data: bytes) -> tuple[Reply, dict[str, float]]:
            try:
                read = loop.recognize(data)
            except HmerError as error:
                return error, {}
            return read.tokens, read.timings

        return eager, lambda many: [eager(data)[0] for data in many], lambda: None

    from hmer.recognizer import LocalRecognizer

    chosen = spec.chosen
    recognizer = LocalRecognizer(
        spec.folder,
        chosen.target,
        threads=spec.threads,
        precision=chosen.precision,
        step_target=chosen.step_target,
    )

    def one(data: bytes) -> tuple[Reply, dict[str, float]]:
        (found,) = recognizer.recognize_many([data])
        if isinstance(found, HmerError):
            return found, {}
        return found.tokens, dict(found.timings)

    def many(data: list[bytes]) -> list[Reply]:
        found = recognizer.recognize_many(data)
        return [f if isinstance(f, HmerError) else f.tokens for f in found]

    return one, many, recognizer.close


def _timed(one: One, many: Many | None, data: list[bytes]) -> Timed:
    began = time.perf_counter()
    if many is not None:
        replies = many(data)
        return Timed([], time.perf_counter() - began, replies, [])
    seconds, replies, timings = [], list[Reply](), []
    for item in data:
        start = time.perf_counter()
        reply, stages = one(item)
        seconds.append(time.perf_counter() - start)
        replies.append(reply)
        timings.append(stages)
    return Timed(seconds, time.perf_counter() - began, replies, timings)
