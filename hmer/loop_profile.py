"""Where the time of the decode loop goes: seconds by part, taken by the loop itself.

::

    profile = LoopProfile()
    scheduler = Scheduler(SlotStep(run, sizes, slots, profile=profile), ..., profile=profile)
    ...
    profile.shares()        # {"runtime": 0.86, "copies": 0.06, ...}

The decoding thread is always in one part, so it takes laps: at the end of a part the time since
the last lap is that part's. A lap costs one reading of the clock; a loop without a profile takes
none. ``profile_loop`` runs a bundle's own decoder so and gives everything as one object.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from hmer.decode_types import DecodeRequest, EncodedImage, Outcome

if TYPE_CHECKING:
    from hmer.bundle import Bundle

# In the order of a turn.
PARTS = {
    "idle": "nothing to do",
    "scheduler": "deadlines, cancellations, the queue, who takes a slot",
    "copies": "features into their row when a request joins, states and tokens between steps",
    "runtime": "calls of the decoder's graph",
    "search": "tokens and scores into answers",
    "response": "what is done with an answer: on_tokens and on_done",
}


class LoopProfile:
    """Seconds and laps by part. Of one thread; read it when the loop stands still."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """Begin the first lap."""
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.laps = dict.fromkeys(PARTS, 0)
        self._clock = clock
        self._last = clock()

    def lap(self, part: str) -> None:
        """What passed since the last lap was ``part``."""
        now = self._clock()
        self.seconds[part] += now - self._last
        self.laps[part] += 1
        self._last = now

    def shares(self) -> dict[str, float]:
        """The parts' shares of the time that the loop was at work; their sum is 1, or 0."""
        work = {part: seconds for part, seconds in self.seconds.items() if part != "idle"}
        total = sum(work.values())
        return {part: seconds / total if total else 0.0 for part, seconds in work.items()}


def no_lap(part: str) -> None:
    """Take no lap: what a loop without a profile calls."""


def laps_of(profile: LoopProfile | None) -> Callable[[str], None]:
    """The function that takes ``profile``'s laps, or none."""
    return no_lap if profile is None else profile.lap


@dataclass(frozen=True)
class LoopReport:
    """A closed loop of ``concurrency`` requests, each followed by the next when it is answered.

    ``ms_a_request`` and ``shares`` are by part, ``rows`` is the mean batch of a call, ``padding``
    the positions that were computed for each that an image has. ``busy_ms_a_request``: all parts.
    """

    requests: int
    concurrency: int
    calls_a_request: float
    tokens_a_request: float
    wasted_a_request: float
    rows: float
    padding: float
    busy_ms_a_request: float
    ms_a_request: dict[str, float]
    shares: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def profile_loop(
    bundle: Bundle,
    encoded: Sequence[EncodedImage],
    concurrency: int,
    *,
    target: str = "onnxruntime",
    threads: int = 1,
    slots: int = 16,
    max_tokens: int = 256,
) -> LoopReport:
    """Decode ``encoded`` greedily with ``concurrency`` requests under way; an own step, in process.

    ``bundle`` is of kind "graphs"; ``target`` and ``threads`` are as for ``open_runner``. Raises
    ``BadParameter``, ``BundleError``, ``MissingDependency``, or a request's own error.
    """
    from hmer.bundle import STEP_FILE
    from hmer.errors import BadParameter
    from hmer.runtime import open_runner
    from hmer.scheduler import Scheduler
    from hmer.slots import SlotStep, lanes_for

    if concurrency < 1 or not encoded:
        raise BadParameter("A profile needs at least one image and a concurrency of at least 1.")
    computed = needed = calls = 0
    waiting = list(reversed(encoded))
    outcomes: list[Outcome] = []
    with open_runner(target, bundle.file(STEP_FILE), threads) as runner:

        def run(feeds: dict[str, Any]) -> dict[str, Any]:
            nonlocal computed, needed, calls
            calls += 1
            computed += int(feeds["coverage"].size)
            needed += int(feeds["feature_size"].prod(axis=1).sum())
            return runner.infer(feeds)

        def next_one() -> None:
            if waiting:
                scheduler.submit(DecodeRequest(waiting.pop(), max_tokens, answered))

        def answered(outcome: Outcome) -> None:
            outcomes.append(outcome)
            next_one()

        profile = LoopProfile()
        step = SlotStep(run, bundle.sizes, slots, lanes=lanes_for(target), profile=profile)
        scheduler = Scheduler(step, max_queue=len(encoded), profile=profile)
        for _ in range(concurrency):
            next_one()
        profile.lap("idle")
        while scheduler.run_once():
            pass
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
    stats, count = scheduler.stats(), len(outcomes)
    busy = {part: profile.seconds[part] * 1e3 / count for part in profile.shares()}
    return LoopReport(
        requests=count,
        concurrency=concurrency,
        calls_a_request=calls / count,
        tokens_a_request=stats.tokens / count,
        wasted_a_request=stats.wasted / count,
        rows=stats.rows / stats.steps,
        padding=computed / needed,
        busy_ms_a_request=sum(busy.values()),
        ms_a_request=busy,
        shares=profile.shares(),
    )
