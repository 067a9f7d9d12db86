"""Settings measured on real servers: two at a time, in turn."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.asking import GrpcAsker
from benchmarks.crohme import Expression
from benchmarks.figures import percentiles
from benchmarks.inputs import shuffled
from benchmarks.loops import Run, closed_loop
from benchmarks.repositories import with_k
from benchmarks.served import ServedProcess
from benchmarks.tune_search import Score, Settings
from benchmarks.tune_space import Goal, K, options_of
from export.repository import assemble
from hmer.bundle import Bundle
from hmer.errors import HmerError, InferenceFailed, InputError

Say = Callable[[str], None]
TURN_S = 2.0  # what a turn at a level should last at least
MOST_PASSES = 8


class Servers:
    """Repositories and servers of settings; a context manager that stops what runs.

    Bundles with other tokens a call than ``bundle`` are exported from ``checkpoint``. The
    repositories lie in ``work``; the server of the last winner goes on running.
    """

    def __init__(
        self,
        bundle: Bundle,
        checkpoint: Path | None,
        expressions: Sequence[Expression],
        goal: Goal,
        concurrency: int,
        work: Path,
    ) -> None:
        """Nothing is started yet."""
        self._bundle, self._checkpoint = bundle, checkpoint
        self._expressions, self._goal, self._most = expressions, goal, concurrency
        self._work = work
        self._running: dict[str, tuple[ExitStack, ServedProcess, int]] = {}

    def __enter__(self) -> Servers:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop all servers."""
        for key in list(self._running):
            self._stop(key)

    def bundle_of(self, settings: Settings) -> Path:
        """The bundle with these settings' ``k``. Raises what exporting it raises."""
        if settings[K] == self._bundle.k or self._checkpoint is None:
            return self._bundle.folder
        return with_k(self._checkpoint, settings[K], self._work, self._bundle.beam)

    def pairs(self, incumbent: Settings, challenger: Settings) -> Iterator[tuple[Score, Score]]:
        """Pairs of scores for as long as they are asked for; see ``tune_search.Pairs``."""
        keep = {_key(incumbent), _key(challenger)}
        for key in [key for key in self._running if key not in keep]:
            self._stop(key)
        first, second = self._server(incumbent), self._server(challenger)
        turn = 0
        while True:
            if turn % 2 == 0:
                a = self._score(first)
                b = self._score(second)
            else:
                b = self._score(second)
                a = self._score(first)
            turn += 1
            yield a, b

    def measure(self, settings: Settings) -> Score:
        """One measurement."""
        return self._score(self._server(settings))

    def _server(self, settings: Settings) -> tuple[ServedProcess, int]:
        key = _key(settings)
        if key not in self._running:
            folder = self._work / "repositories" / key
            shutil.rmtree(folder, ignore_errors=True)
            folder.parent.mkdir(parents=True, exist_ok=True)
            assemble(self.bundle_of(settings), folder, options_of(settings, max_wait_ms=0))
            with ExitStack() as stack:
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
                server = stack.enter_context(ServedProcess(folder))
                passes = asyncio.run(self._warm(server))
                self._running[key] = (stack.pop_all(), server, passes)
        _, server, passes = self._running[key]
        return server, passes

    def _stop(self, key: str) -> None:
        stack, *_ = self._running.pop(key)
        stack.close()

    async def _warm(self, server: ServedProcess) -> int:
        """A pass that does not count; how many passes make a turn long enough."""
        order = shuffled(len(self._expressions))
        async with GrpcAsker(server.grpc, self._expressions) as ask:
            run = _checked(await closed_loop(ask, order, self._most))
        return max(1, min(MOST_PASSES, math.ceil(run.throughput * TURN_S / len(order))))

    def _score(self, running: tuple[ServedProcess, int]) -> Score:
        return self._goal.score(asyncio.run(self._levels(*running)))

    async def _levels(self, server: ServedProcess, passes: int) -> list[dict[str, Any]]:
        order = shuffled(len(self._expressions))
        found = []
        async with GrpcAsker(server.grpc, self._expressions) as ask:
            for concurrency in self._goal.levels(self._most):
                # One at a time a pass lasts as long as many of them at once.
                some = order * passes if concurrency > 1 else order
                run = _checked(await closed_loop(ask, some, concurrency))
                latency = percentiles([s.latency * 1e3 for s in run.samples if s.tokens])
                found.append(
                    {
                        "concurrency": concurrency,
                        "throughput": run.throughput,
                        "latency_ms": latency,
                    }
                )
                bound = self._goal
                if bound.percentile and (latency[bound.percentile] or 0.0) > bound.bound_ms:
                    break  # more at once only makes it worse
        return found


def _checked(run: Run) -> Run:
    """``run``, unless the server refused what it should take, or nothing was answered."""
    failed = [s.reply for s in run.samples if isinstance(s.reply, HmerError)]
    faults = [error for error in failed if not isinstance(error, InputError)]
    if faults:
        raise type(faults[0])(f"{len(faults)} of {len(run.samples)} requests failed: {faults[0]}")
    if len(failed) == len(run.samples):
        raise InferenceFailed(f"No input was answered: {failed[0]}")
    return run


def _key(settings: Settings) -> str:
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
