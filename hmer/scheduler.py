"""The scheduler: turns, slots, answers (see ``hmer.decode``, through which it is used)."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Any

from hmer.admission import Admission, Waiting
from hmer.decode_types import (
    NO_BEAMS,
    BeamStep,
    DecodeRequest,
    Outcome,
    Reason,
    Stats,
    StepFn,
)
from hmer.errors import BadParameter, Cancelled, DeadlineExceeded, HmerError, InferenceFailed
from hmer.guards import Guards
from hmer.loop_profile import LoopProfile, laps_of
from hmer.machines import BeamMachine, GreedyMachine, Machine
from hmer.search import Search, Taken

_log = logging.getLogger(__name__)
_STOPPED = "The decoder was stopped before this formula was complete."


class Scheduler:
    """Runs requests through its steps, in the thread that ``start`` makes or by ``run_once``.

    ``beam_step`` takes requests with a beam, over the same slots as ``step_fn``; without it they
    are refused. ``guards``: what answers may not contain (``hmer.guards``). ``max_queue``
    requests may wait beyond the free slots; ``submit`` refuses more with ``Overloaded``. The
    thread sleeps while there is nothing to do. ``clock`` gives seconds. ``profile``, best the
    steps' own too, tells where the thread's time goes (``hmer.loop_profile``).
    """

    def __init__(
        self,
        step_fn: StepFn,
        *,
        max_queue: int,
        beam_step: BeamStep | None = None,
        guards: Guards | None = None,
        clock: Callable[[], float] = time.monotonic,
        profile: LoopProfile | None = None,
    ) -> None:
        """Take all slots of the steps, which must be free. Raises ``BadParameter``."""
        if beam_step is not None and beam_step.slots != step_fn.slots:
            raise BadParameter(
                f"The two steps share their slots, but one has {step_fn.slots} and the other "
                f"{beam_step.slots}."
            )
        self._admission = Admission(step_fn.slots, max_queue)
        self._greedy: Machine[Any] = GreedyMachine(step_fn, guards)
        self._beams: Machine[Any] | None = None
        if beam_step is not None:
            self._beams = BeamMachine(beam_step, guards)
        self._clock = clock
        self._lap = laps_of(profile)
        self._active: dict[int, Search] = {}  # by their first slot
        self._stats = Stats(slots=step_fn.slots)
        self._thread: threading.Thread | None = None

    # Called from any thread

    def submit(self, request: DecodeRequest) -> None:
        """Queue ``request``; it joins at the next step if enough slots are free.

        Raises ``Overloaded``, ``BadParameter`` or, once stopped, ``ServerUnavailable``; then
        ``on_done`` is not called.
        """
        if request.max_tokens < 1:
            raise BadParameter(f"max_tokens must be at least 1, not {request.max_tokens}.")
        if request.rows > 1 and self._beams is None:
            raise BadParameter(NO_BEAMS)
        if request.rows > self._stats.slots:
            raise BadParameter(
                f"beam is {request.rows}, but the decoder has {self._stats.slots} slots. Ask for "
                "a narrower beam, or give the decoder more slots."
            )
        self._admission.submit(Waiting(request, self._clock()))

    def stats(self) -> Stats:
        """A snapshot of the counters."""
        return replace(
            self._stats,
            accepted=self._admission.accepted,
            rejected=self._admission.rejected,
            slots_in_use=sum(len(s.slots) for s in list(self._active.values())),
            queue_length=len(self._admission),
        )

    def start(self) -> None:
        """Start the decoding thread, once."""
        if self._thread is not None or self._admission.stopping:
            raise RuntimeError("A scheduler is started once.")
        self._thread = threading.Thread(target=self._loop, name="hmer-decode", daemon=True)
        self._thread.start()

    def stop(self, timeout: float = 10.0) -> None:
        """Stop after the current step and answer everything left with ``Cancelled``.

        A step that has not returned after ``timeout`` seconds is abandoned; its requests are
        answered all the same.
        """
        self._admission.stop()
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
        return bool(self._active or len(self._admission))

    def _loop(self) -> None:
        while self._admission.wait(busy=bool(self._active)):
            self._lap("idle")
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
        if len(self._admission):
            for entry, error in self._admission.sweep(now).items():
                self._refuse(entry, error)
            self._admit()
        self._lap("scheduler")
        for machine in (self._greedy, self._beams):
            if machine is not None:
                self._step(machine)

    def _machine(self, request: DecodeRequest) -> Machine[Any]:
        return self._greedy if request.rows == 1 or self._beams is None else self._beams

    def _admit(self) -> None:
        while (head := self._admission.next()) is not None:
            entry, slots = head
            now = self._clock()
            machine = self._machine(entry.request)
            search: Search = machine.begin(slots, entry.request, now - entry.since, now)
            self._active[slots[0]] = search
            self._stats.admitted += 1
            self._lap("scheduler")
            try:
                machine.admit(search)
                self._lap("copies")
            except Exception as error:
                self._finish(search, "error", _failure(error))

    def _step(self, machine: Machine[Any]) -> None:
        """One step of the machine's searches, if it has any."""
        searches = [s for s in self._active.values() if self._machine(s.request) is machine]
        if not searches:
            return
        self._stats.steps += 1
        self._stats.rows += sum(len(search.slots) for search in searches)
        try:
            taken = machine.step(searches)
        except Exception as error:
            _log.exception("A decoder step with %d requests failed.", len(searches))
            for search in searches:
                self._finish(search, "error", _failure(error))
            return
        finally:
            self._lap("runtime")  # a step with a profile of its own leaves but a rest
        for search, news in taken:
            self._lap("search")
            if self._active.get(search.slots[0]) is search:  # not if stop() gave up on this step
                self._take(search, news)

    def _take(self, search: Search, news: Taken) -> None:
        """Hand on what a step brought, and the answer if that was the last."""
        self._stats.tokens += news.tokens
        self._stats.wasted += news.wasted
        reason, error = news.reason, news.error
        if news.ids and search.request.on_tokens is not None:
            try:
                search.request.on_tokens(news.ids, news.scores)
            except Exception:
                _log.exception("on_tokens failed; its request is dropped.")
                reason, error = "error", Cancelled("The receiver of the tokens is gone.")
            self._lap("response")
        if reason is not None:
            self._finish(search, reason, error)

    def _finish(
        self,
        search: Search,
        reason: Reason,
        error: HmerError | None = None,
        release: bool = True,
    ) -> None:
        """Free the slots, then answer; nothing if it was answered already."""
        if self._active.pop(search.slots[0], None) is None:
            return
        if release:
            try:
                self._machine(search.request).release(search)
            except Exception:
                _log.exception("Slots %s could not be released cleanly.", search.slots)
        self._admission.give_back(search.slots)
        self._lap("scheduler")
        best, *others = search.answers()
        decode_s = self._clock() - search.since
        self._answer(
            search.request,
            Outcome(
                best.ids, best.scores, reason, error, search.steps, search.queued_s, decode_s,
                tuple(others) if error is None else (),
            ),
        )  # fmt: skip

    def _refuse(self, entry: Waiting, error: HmerError) -> None:
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
        self._lap("search")
        try:
            request.on_done(outcome)
        except Exception:
            _log.exception("on_done failed.")
        self._lap("response")

    def _abandon(self, error: HmerError, release: bool = True) -> None:
        """Answer everything in flight and in the queue with ``error``."""
        waiting = self._admission.drain()
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
