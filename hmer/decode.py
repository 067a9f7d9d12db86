"""The decode scheduler: continuous batching of autoregressive decoding over fixed slots.

::

    submit -> queue -> slot --step--step--step--> answer
                        ^ requests join and leave between two steps, first come, first served

A step advances every occupied slot by ``k`` tokens in one call. So a request joins the others
at the next step instead of waiting for them to end, and is answered the moment it ends,
whatever its neighbours still have to do. This module knows ids, not Triton, files or tensors:
what a step is lies behind ``StepFn`` (``hmer.slots`` has the real one, tests have mocks of
twenty lines), and how an answer grows behind ``hmer.search``.

A turn: cancelled and late requests leave, waiting ones take the free slots, one step is run,
and those that ended are answered. Whatever happens to a request that ``submit`` accepted, its
``on_done`` is called exactly once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType

from hmer.decode_types import (
    DecodeRequest,
    EncodedImage,
    Outcome,
    Reason,
    Stats,
    StepFn,
    StepResult,
)
from hmer.errors import (
    BadParameter,
    Cancelled,
    DeadlineExceeded,
    HmerError,
    InferenceFailed,
    Overloaded,
    ServerUnavailable,
)
from hmer.search import GreedySearch

__all__ = [
    "DecodeRequest",
    "EncodedImage",
    "Outcome",
    "Reason",
    "Scheduler",
    "Stats",
    "StepFn",
    "StepResult",
    "decode_all",
]

_log = logging.getLogger(__name__)
_STOPPED = "The decoder was stopped before this formula was complete."


@dataclass(eq=False)
class _Waiting:
    request: DecodeRequest
    since: float


class Scheduler:
    """Runs requests through a ``StepFn``, in the thread that ``start`` makes or by ``run_once``.

    ``max_queue`` requests may wait beyond the free slots; ``submit`` refuses more with
    ``Overloaded``. The thread sleeps while there is nothing to do. ``clock`` gives seconds.
    """

    def __init__(
        self,
        step_fn: StepFn,
        *,
        max_queue: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take all slots of ``step_fn``, which must be free. Raises ``BadParameter``."""
        if max_queue < 0 or step_fn.slots < 1:
            raise BadParameter(
                f"A scheduler needs at least 1 slot and a queue of at least 0, not "
                f"{step_fn.slots} and {max_queue}."
            )
        self._step_fn = step_fn
        self._max_queue = max_queue
        self._clock = clock
        # Guards what a submitting thread touches: the queue, the free slots, the stop sign. No
        # callback and no step runs under it.
        self._wake = threading.Condition()
        self._queue: deque[_Waiting] = deque()
        self._free = list(range(step_fn.slots - 1, -1, -1))
        self._active: dict[int, GreedySearch] = {}  # by slot
        self._stats = Stats(slots=step_fn.slots)
        self._asked = 0  # how many waiting requests were asked whether they are cancelled
        self._stopping = False
        self._thread: threading.Thread | None = None

    # Called from any thread

    def submit(self, request: DecodeRequest) -> None:
        """Queue ``request``; it joins at the next step if a slot is free.

        Raises ``Overloaded``, ``BadParameter`` or, once stopped, ``ServerUnavailable``; then
        ``on_done`` is not called.
        """
        if request.max_tokens < 1:
            raise BadParameter(f"max_tokens must be at least 1, not {request.max_tokens}.")
        entry = _Waiting(request, self._clock())
        with self._wake:
            if self._stopping:
                raise ServerUnavailable("The decoder is shutting down and takes no more requests.")
            if len(self._queue) >= self._max_queue + len(self._free):
                self._stats.rejected += 1
                raise Overloaded(
                    f"The decoder is full: {self._step_fn.slots} formulas at work and "
                    f"{len(self._queue)} waiting. Try again later."
                )
            self._queue.append(entry)
            self._stats.accepted += 1
            self._wake.notify()

    def stats(self) -> Stats:
        """A snapshot of the counters."""
        with self._wake:
            return replace(
                self._stats, slots_in_use=len(self._active), queue_length=len(self._queue)
            )

    def start(self) -> None:
        """Start the decoding thread, once."""
        if self._thread is not None or self._stopping:
            raise RuntimeError("A scheduler is started once.")
        self._thread = threading.Thread(target=self._loop, name="hmer-decode", daemon=True)
        self._thread.start()

    def stop(self, timeout: float = 10.0) -> None:
        """Stop after the current step and answer everything left with ``Cancelled``.

        A step that has not returned after ``timeout`` seconds is abandoned; its requests are
        answered all the same.
        """
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        thread, hung = self._thread, False
        if thread is threading.current_thread():
            return  # called by a callback: the loop ends, and answers, when that returns
        if thread is not None:
            thread.join(timeout)
            hung = thread.is_alive()
        if hung:
            _log.error("A decoder step did not return within %.1f s of stopping.", timeout)
        self._abandon(Cancelled(_STOPPED), release=not hung)

    def __enter__(self) -> Scheduler:
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

    # Called from the decoding thread

    def run_once(self) -> bool:
        """One turn, in a scheduler without a thread. Returns whether there is more to do."""
        if self._thread is not None:
            raise RuntimeError("The scheduler's own thread takes the turns.")
        self._turn()
        return bool(self._active or self._queue)

    def _loop(self) -> None:
        while True:
            with self._wake:
                while not (self._queue or self._active or self._stopping):
                    self._wake.wait()
                if self._stopping:
                    break
            try:
                self._turn()
            except Exception as error:  # a fault of this module: still nobody waits for ever
                _log.exception("The decode scheduler failed.")
                self._abandon(_failure(error))
        self._abandon(Cancelled(_STOPPED))

    def _turn(self) -> None:
        now = self._clock()
        for search in list(self._active.values()):
            if (error := search.request.ended(now)) is not None:
                self._finish(search, "error", error)
        if self._queue:
            self._sweep_queue(now)
            self._admit()
        if self._active:
            self._step()

    def _sweep_queue(self, now: float) -> None:
        """Let late and cancelled requests leave the queue.

        Asking whether one is cancelled may be a trip to another process, so a long queue is
        asked in turns: as many a step as there are slots.
        """
        with self._wake:
            waiting = list(self._queue)
        turns = min(len(waiting), self._step_fn.slots)
        asked = {(self._asked + turn) % len(waiting) for turn in range(turns)}
        self._asked += turns
        gone: dict[_Waiting, HmerError] = {}
        for place, entry in enumerate(waiting):
            if (error := entry.request.ended(now, ask=place in asked)) is not None:
                gone[entry] = error
        if gone:
            with self._wake:  # more may have joined the queue meanwhile
                self._queue = deque(entry for entry in self._queue if entry not in gone)
            for entry, error in gone.items():
                self._refuse(entry, error)

    def _admit(self) -> None:
        while True:
            with self._wake:
                if not self._queue or not self._free:
                    return
                entry = self._queue.popleft()
                slot = self._free.pop()
            now = self._clock()
            search = GreedySearch(slot, entry.request, now - entry.since, now)
            self._active[slot] = search
            self._stats.admitted += 1
            try:
                self._step_fn.admit(slot, entry.request.encoded)
            except Exception as error:
                self._finish(search, "error", _failure(error))

    def _step(self) -> None:
        searches = list(self._active.values())
        n, k = len(searches), self._step_fn.k
        self._stats.steps += 1
        self._stats.rows += n
        try:
            result = self._step_fn.step([search.slot for search in searches])
            if result.tokens.shape != (n, k) or result.scores.shape != (n, k):
                raise InferenceFailed(
                    f"The decoder step gave tokens of shape {result.tokens.shape} and scores of "
                    f"{result.scores.shape} instead of {(n, k)}."
                )
        except Exception as error:
            _log.exception("A decoder step with %d requests failed.", n)
            for search in searches:
                self._finish(search, "error", _failure(error))
            return
        rows = zip(searches, result.tokens.tolist(), result.scores.tolist(), strict=True)
        for search, ids, scores in rows:
            if self._active.get(search.slot) is search:  # not if stop() gave up on this step
                self._take(search, ids, scores)

    def _take(self, search: GreedySearch, ids: list[int], scores: list[float]) -> None:
        """Give a search its row of the step, and its caller the answer if that was the last."""
        before = len(search.ids)
        reason: Reason | None
        error: HmerError | None = None
        try:
            reason = search.take(ids, scores)
        except InferenceFailed as failure:
            reason, error = "error", failure
        after = len(search.ids)
        self._stats.tokens += after - before
        self._stats.wasted += len(ids) - (after - before)
        new = search.ids[before : after - (reason == "eos")]
        if new and search.request.on_tokens is not None:
            try:
                search.request.on_tokens(new, search.scores[before : before + len(new)])
            except Exception:
                _log.exception("on_tokens failed; its request is dropped.")
                reason, error = "error", Cancelled("The receiver of the tokens is gone.")
        if reason is not None:
            self._finish(search, reason, error)

    def _finish(
        self,
        search: GreedySearch,
        reason: Reason,
        error: HmerError | None = None,
        release: bool = True,
    ) -> None:
        """Free the slot, then answer; nothing if it was answered already."""
        if self._active.pop(search.slot, None) is None:
            return
        if release:
            try:
                self._step_fn.release(search.slot)
            except Exception:
                _log.exception("Slot %d could not be released cleanly.", search.slot)
        with self._wake:
            self._free.append(search.slot)
        ids, scores = tuple(search.ids), tuple(search.scores)
        decode_s = self._clock() - search.since
        self._answer(
            search.request,
            Outcome(ids, scores, reason, error, search.steps, search.queued_s, decode_s),
        )

    def _refuse(self, entry: _Waiting, error: HmerError) -> None:
        """Answer a request that never got a slot."""
        queued = self._clock() - entry.since
        self._answer(entry.request, Outcome((), (), "error", error, queued_s=queued))

    def _answer(self, request: DecodeRequest, outcome: Outcome) -> None:
        match outcome.error:
            case None:
                self._stats.completed += 1
            case Cancelled():
                self._stats.cancelled += 1
            case DeadlineExceeded():
                self._stats.deadline += 1
            case _:
                self._stats.failed += 1
        try:
            request.on_done(outcome)
        except Exception:
            _log.exception("on_done failed.")

    def _abandon(self, error: HmerError, release: bool = True) -> None:
        """Answer everything in flight and in the queue with ``error``."""
        with self._wake:
            waiting = list(self._queue)
            self._queue.clear()
        for search in list(self._active.values()):
            self._finish(search, "error", _failure(error), release)
        for entry in waiting:
            self._refuse(entry, _failure(error))


def _failure(error: Exception) -> HmerError:
    """``error`` as something to tell one person: a new object, as each is raised elsewhere."""
    if isinstance(error, HmerError):
        return type(error)(str(error))
    return InferenceFailed(
        f"The decoder failed ({type(error).__name__}: {error}). The server's log says more."
    )


def decode_all(step_fn: StepFn, encoded: Sequence[EncodedImage], max_tokens: int) -> list[Outcome]:
    """Decode ``encoded`` in this thread: outcomes in the same order, with errors inside them.

    ``step_fn``'s slots must all be free, and are free afterwards.
    """
    outcomes: dict[int, Outcome] = {}
    scheduler = Scheduler(step_fn, max_queue=len(encoded))
    for index, image in enumerate(encoded):
        done = partial(outcomes.__setitem__, index)
        scheduler.submit(DecodeRequest(image, max_tokens, done))
    while scheduler.run_once():
        pass
    return [outcomes[index] for index in range(len(encoded))]
