"""What goes into the decode scheduler and comes out of it; ``hmer.decode`` re-exports all this."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from reprlib import repr as shown  # at most 40 characters of what a stranger wrote
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from hmer.errors import BadParameter, Cancelled, DeadlineExceeded, HmerError

_log = logging.getLogger(__name__)

Reason = Literal["eos", "length", "repetition", "stuck", "error"]

LENGTH_PENALTY = 0.6
MAX_LENGTH_PENALTY = 10.0
NO_BEAMS = (
    "This model has no graph for beam search (decoder_beam.onnx). Ask for a beam of 1, or export "
    "the checkpoint again with hmer-export onnx --beam 8."
)


@dataclass(frozen=True)
class SearchOptions:
    """How an answer is searched for.

    ``beam``: hypotheses that are followed at a time; 1 is greedy decoding. ``n_best``: answers
    that are wanted, at most ``beam``. ``length_penalty``: alpha of the normalisation by length
    (``hmer.beam``), 0 for none; it only matters with a beam.
    """

    beam: int = 1
    n_best: int = 1
    length_penalty: float = LENGTH_PENALTY

    def __post_init__(self) -> None:
        """Raise ``BadParameter`` for what is out of range."""
        if not _whole(self.beam) or self.beam < 1:
            raise BadParameter(
                f"beam is {shown(self.beam)}; it must be a whole number, at least 1."
            )
        if not _whole(self.n_best) or not 1 <= self.n_best <= self.beam:
            raise BadParameter(
                f"n_best is {shown(self.n_best)}; it must be a whole number, 1 to the beam's "
                f"width, which is {shown(self.beam)}."
            )
        penalty = self.length_penalty
        if isinstance(penalty, bool) or not isinstance(penalty, (int, float)):
            raise BadParameter(f"length_penalty is {shown(penalty)}; it must be a number.")
        if not 0.0 <= penalty <= MAX_LENGTH_PENALTY:  # nor is NaN within
            raise BadParameter(
                f"length_penalty is {shown(penalty)}; it must lie within 0 and "
                f"{MAX_LENGTH_PENALTY:g}."
            )

    def describe(self) -> str:
        """These options in words, without how many answers are wanted."""
        if self.beam == 1:
            return "greedy"
        return f"beam {self.beam}, length penalty {self.length_penalty:g}"

    def with_(
        self,
        beam: int | None = None,
        n_best: int | None = None,
        length_penalty: float | None = None,
    ) -> SearchOptions:
        """These options but for those given; ``n_best`` falls with a narrower beam."""
        width = self.beam if beam is None else beam
        return SearchOptions(
            width,
            min(self.n_best, width) if n_best is None else n_best,
            self.length_penalty if length_penalty is None else length_penalty,
        )


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


GREEDY = SearchOptions()


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

    Called from one thread at a time. Neighbours must not change a slot's tokens. One that can
    bring several numbers of tokens a step lists them in an attribute ``ks``; the scheduler sets
    ``k`` to one of them before a step, which must not change the tokens either.
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


class Move(NamedTuple):
    """What a slot does next: continue the slot ``parent`` of its request with ``token``."""

    slot: int
    token: int
    parent: int


@dataclass(frozen=True)
class BeamResult:
    """The best next tokens of n slots: ``candidates`` int32 (n, N) best first, and ``scores``.

    ``scores`` float32 (n, N) are log-probabilities.
    """

    candidates: NDArray[np.int32]
    scores: NDArray[np.float32]


class BeamStep(Protocol):
    """``StepFn`` for beam search: one token a call, N candidates a slot, slots that fork.

    A request holds several slots, whose features are those of one image. Called from one thread
    at a time. Neighbours must not change a slot's candidates.
    """

    slots: int

    def admit(self, slots: Sequence[int], encoded: EncodedImage) -> None:
        """Begin ``encoded`` in the free ``slots``. An exception fails this request alone."""

    def release(self, slots: Sequence[int]) -> None:
        """Free ``slots``: called once after each ``admit``, also when that or a step failed."""

    def step(self, moves: Sequence[Move]) -> BeamResult:
        """Make ``moves``, one of every occupied slot; rows come back in their order.

        All parents are read before any slot is written. <eos> as token leaves a slot standing
        still, its candidates are not used. An exception fails every request in the slots.
        """


@dataclass(frozen=True)
class Hypothesis:
    """One answer: ``ids`` and ``scores`` (log-probabilities) are parallel, <eos> included.

    ``rank`` is what beam search orders by: the sum of ``scores``, normalised by length.
    """

    ids: tuple[int, ...]
    scores: tuple[float, ...]
    rank: float


@dataclass(frozen=True)
class Outcome:
    """How a request ended.

    ``ids`` and ``scores`` (log-probabilities) are parallel; the final <eos> is among them when
    ``reason`` is "eos". "length" means that ``max_tokens`` came first, "repetition" that the
    answer went round in circles, "stuck" that every continuation of every hypothesis was refused
    by the guards. With "error", ``error`` says why and ``ids`` holds what was decoded until
    then. ``alternatives`` are a beam's next best answers, best first. ``steps`` counts step
    calls, ``queued_s`` and ``decode_s`` are seconds before and after it got its slot.
    """

    ids: tuple[int, ...]
    scores: tuple[float, ...]
    reason: Reason
    error: HmerError | None = None
    steps: int = 0
    queued_s: float = 0.0
    decode_s: float = 0.0
    alternatives: tuple[Hypothesis, ...] = ()


@dataclass(eq=False)
class DecodeRequest:
    """An image to decode, and whom to tell. The callables run in the decoding thread: be quick.

    ``max_tokens`` (<eos> included) bounds the answer; ``deadline`` is a time of the scheduler's
    clock. ``on_done(outcome)`` is called once. ``on_tokens(ids, scores)`` gets each step's new
    tokens, without <eos>, before that; of a beam, which knows its answer only at the end, all at
    once. ``cancelled()`` is asked before every step. If one of the last two raises, its caller is
    taken to be gone. ``search``: with a beam the request occupies as many slots as it is wide.
    ``priority``: one of ``hmer.serving.PRIORITIES``. ``k``: tokens a step at most, as far as the
    step has a choice. ``eager``: somebody waits for the first token, as of a stream.
    """

    encoded: EncodedImage
    max_tokens: int
    on_done: Callable[[Outcome], None]
    deadline: float | None = None
    on_tokens: Callable[[Sequence[int], Sequence[float]], None] | None = None
    cancelled: Callable[[], bool] | None = None
    search: SearchOptions = GREEDY
    priority: str = "interactive"
    k: int | None = None
    eager: bool = False

    @property
    def rows(self) -> int:
        """How many slots it needs."""
        return self.search.beam

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
    completed: int = 0  # answered, with whatever reason but "error"
    cancelled: int = 0
    deadline: int = 0
    failed: int = 0
    steps: int = 0  # step calls
    rows: int = 0  # occupied slots, summed over the steps: rows / steps is the mean batch
    tokens: int = 0  # decoded for answers, <eos> included; of a beam only the best one's
    wasted: int = 0  # computed in the same call after a greedy request had ended
