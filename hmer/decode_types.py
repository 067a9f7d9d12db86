"""What goes into the decode scheduler and comes out of it; ``hmer.decode`` re-exports all this."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from hmer.errors import Cancelled, DeadlineExceeded, HmerError

_log = logging.getLogger(__name__)

Reason = Literal["eos", "length", "error"]


@dataclass(frozen=True)
class EncodedImage:
    """What the decoder needs of one image, cropped to its true size of h x w positions.

    ``values`` float32 (h, w, 2D), ``keys`` float32 (h, w, A), ``state`` float32 (2U + D,).
    """

    values: NDArray[np.float32]
    keys: NDArray[np.float32]
    state: NDArray[np.float32]


@dataclass(frozen=True)
class StepResult:
    """The next ``k`` tokens of n slots: ``tokens`` int32 (n, k), ``scores`` float32 (n, k).

    Scores are log-probabilities. What follows an <eos> within a row is ignored.
    """

    tokens: NDArray[np.int32]
    scores: NDArray[np.float32]


class StepFn(Protocol):
    """Owns the features and the recurrent state of ``slots`` slots, numbered from 0.

    Called from one thread at a time. Neighbours must not change a slot's tokens.
    """

    slots: int
    k: int

    def admit(self, slot: int, encoded: EncodedImage) -> None:
        """Begin ``encoded`` in the free ``slot``. An exception fails this request alone."""

    def release(self, slot: int) -> None:
        """Free ``slot``: called once after each ``admit``, also when that or a step failed."""

    def step(self, slots: Sequence[int]) -> StepResult:
        """Advance ``slots``, which are all the occupied ones; rows come back in their order.

        An exception fails every request in them.
        """


@dataclass(frozen=True)
class Outcome:
    """How a request ended.

    ``ids`` and ``scores`` (log-probabilities) are parallel; the final <eos> is among them when
    ``reason`` is "eos". "length" means that ``max_tokens`` came first. With "error", ``error``
    says why and ``ids`` holds what was decoded until then. ``steps`` counts step calls,
    ``queued_s`` and ``decode_s`` are seconds before and after it got its slot.
    """

    ids: tuple[int, ...]
    scores: tuple[float, ...]
    reason: Reason
    error: HmerError | None = None
    steps: int = 0
    queued_s: float = 0.0
    decode_s: float = 0.0


@dataclass(eq=False)
class DecodeRequest:
    """An image to decode, and whom to tell. The callables run in the decoding thread: be quick.

    ``max_tokens`` (<eos> included) bounds the answer; ``deadline`` is a time of the scheduler's
    clock. ``on_done(outcome)`` is called once. ``on_tokens(ids, scores)`` gets each step's new
    tokens, without <eos>, before that. ``cancelled()`` is asked before every step. If one of the
    last two raises, its caller is taken to be gone.
    """

    encoded: EncodedImage
    max_tokens: int
    on_done: Callable[[Outcome], None]
    deadline: float | None = None
    on_tokens: Callable[[Sequence[int], Sequence[float]], None] | None = None
    cancelled: Callable[[], bool] | None = None

    def ended(self, now: float, ask: bool = True) -> HmerError | None:
        """Why the request must not go on at the time ``now``, if so. ``ask``: ask its caller."""
        if self.deadline is not None and now >= self.deadline:
            return DeadlineExceeded(
                "The time limit was reached before the formula was complete. Allow more time, or "
                "lower max_tokens."
            )
        if not ask or self.cancelled is None:
            return None
        try:
            gone = self.cancelled()
        except Exception:
            _log.exception("cancelled() failed; its request is dropped.")
            gone = True
        return Cancelled("The request was cancelled.") if gone else None


@dataclass
class Stats:
    """Counters since the start, and two gauges (``slots_in_use``, ``queue_length``).

    Every accepted request is in one of: completed, cancelled, deadline, failed, in use, queued.
    """

    slots: int = 0
    slots_in_use: int = 0
    queue_length: int = 0
    accepted: int = 0  # by submit
    rejected: int = 0  # by submit: Overloaded
    admitted: int = 0  # got a slot
    completed: int = 0  # <eos> or length
    cancelled: int = 0
    deadline: int = 0
    failed: int = 0
    steps: int = 0  # step calls
    rows: int = 0  # occupied slots, summed over the steps: rows / steps is the mean batch
    tokens: int = 0  # decoded for answers, <eos> included
    wasted: int = 0  # computed in the same call after a request had ended
