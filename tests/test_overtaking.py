"""Short formulas go first, in the encoder's queue and before the slots; nobody waits for ever."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field

import numpy as np
import pytest

from hmer.admission import Admission, Waiting
from hmer.decode_types import DecodeRequest, EncodedImage, SearchOptions
from hmer.encoding import EncodeJob, EncodeQueue
from hmer.overtaking import SMALL, Overtaking
from hmer.serving import BATCH

# Skewed as the sizes of real formulas are: more than half lie below half the mean.
WIDTHS = (4, 6, 6, 6, 8, 8, 8, 9, 10, 10, 15, 18, 19, 20, 25, 35, 43, 49, 49, 63, 74, 75, 77, 287)
MIX = [int(i) for i in np.random.default_rng(0).permutation(len(WIDTHS))]
FIXED_S, PER_ROW_S = 2.0, 0.8  # of a call, and of 1,000 pixels


@dataclass
class Loop:
    """Callers that each send the next picture when the last one is done, in simulated time."""

    now: float = 0.0
    latencies: dict[int, list[float]] = field(default_factory=dict)

    def run(self, callers: int, requests: int, probes: tuple[int, ...] = ()) -> None:
        """One encoder. With ``probes`` the first caller sends these, one after another."""
        queue = EncodeQueue(lambda feeds: {}, workers=1, max_queue=999, clock=lambda: self.now)
        mix, short = itertools.cycle(MIX), itertools.cycle(probes)
        sent: dict[int, tuple[int, int, float]] = {}
        turns = itertools.count()
        ends: list[tuple[float, int, list[EncodeJob]]] = []
        done = 0

        def send(caller: int) -> None:
            index = next(short) if probes and caller == 0 else next(mix)
            image = np.broadcast_to(np.uint8(0), (1, 1, 1000, WIDTHS[index]))
            job = EncodeJob(image, np.ones((1, 2), np.int32), lambda result: None)
            sent[id(job)] = (caller, index, self.now)
            kept.append(job)  # so that its id stays its own
            queue.submit(job)

        kept: list[EncodeJob] = []
        for caller in range(callers):
            send(caller)
        while done < requests:
            if not ends:
                jobs = queue.take()
                seconds = FIXED_S + PER_ROW_S * sum(job.pixels for job in jobs) / 1000
                queue.took(seconds, sum(job.pixels for job in jobs))
                heapq.heappush(ends, (self.now + seconds, next(turns), jobs))
            self.now, _, jobs = heapq.heappop(ends)
            for job in jobs:
                caller, index, since = sent[id(job)]
                if not probes or caller == 0:
                    self.latencies.setdefault(index, []).append(self.now - since)
                    done += 1
                send(caller)


def measured(callers: int, requests: int, probes: tuple[int, ...] = ()) -> list[float]:
    loop = Loop()
    loop.run(callers, requests, probes)
    return [value for values in loop.latencies.values() for value in values]


def test_the_tail_is_not_much_longer_than_the_middle() -> None:
    p50, p95 = np.quantile(measured(16, 480), (0.5, 0.95))
    assert p95 / p50 < 1.4


def test_a_short_formula_waits_no_longer_among_many() -> None:
    few, many = (float(np.median(measured(n, 40, probes=(0, 1, 2)))) for n in (4, 32))
    assert many <= 2 * few
    # Nor does it cost the others much, who would wait for 32 pictures in the order of arrival.
    ordinary = float(np.median(measured(32, 320)))
    assert ordinary < 1.5 * 32 * (FIXED_S + PER_ROW_S * sum(WIDTHS) / len(WIDTHS))


def test_what_takes_long_does_not_also_wait_long() -> None:
    loop = Loop()
    loop.run(16, 480)
    longest = loop.latencies[WIDTHS.index(max(WIDTHS))]
    alone = FIXED_S + PER_ROW_S * max(WIDTHS)
    others = [v for i, values in loop.latencies.items() if 287 > WIDTHS[i] > 40 for v in values]
    assert float(np.median(longest)) < float(np.median(others)) + alone / 2


def test_small_is_told_by_rank() -> None:
    rule = Overtaking()
    assert rule.first([1], int) is None, "nothing to compare with"
    sizes = [10] * 6 + [11] * 4 + [1000] * 4  # more than half far below the mean
    for size in sizes:
        rule.came(size)
    assert int(SMALL * len(sizes)) < 6
    assert rule.first([1000, 11, 10], int) == 10
    assert rule.first([1000, 11], int) is None


def test_the_others_get_their_turn() -> None:
    rule = Overtaking()
    for size in (1, 1, 1, 1, 1, 20):
        rule.came(size)
    passed = 0
    while rule.first([20, 1], int) == 1 and passed < 99:
        rule.overtook(1)
        passed += 1
    assert passed == 4  # as much as the mean, which is 25 / 6
    rule.turn()
    assert rule.first([20, 1], int) == 1


def entry(width: int, beam: int = 1, priority: str = "interactive") -> Waiting:
    image = EncodedImage(
        np.zeros((1, width, 2), np.float32),
        np.zeros((1, width, 2), np.float32),
        np.zeros(2, np.float32),
    )
    search = SearchOptions(beam)
    return Waiting(DecodeRequest(image, 9, print, search=search, priority=priority), 0.0)


def taken(admission: Admission) -> list[Waiting]:
    found = []
    while (head := admission.next()) is not None:
        found.append(head[0])
        admission.give_back(head[1])
    return found


def test_a_short_formula_gets_the_next_slot() -> None:
    admission = Admission(1, 99)
    entries = [entry(width) for width in (40, 40, 41, 4, 42, 43, 44, 5)]
    for waiting in entries:
        admission.submit(waiting)
    order = taken(admission)
    assert order[:2] == [entries[3], entries[7]]
    assert order[2:] == [e for e in entries if e.size > 5], "the others as they came"


@pytest.mark.parametrize("small", [entry(3, priority=BATCH), entry(3, beam=2)])
def test_who_does_not_overtake(small: Waiting) -> None:
    admission = Admission(2, 99)
    admission.submit(entry(39))
    assert admission.next() is not None  # one slot is left: too few for the beam
    first = [entry(40 + i) for i in range(5)]
    for waiting in (*first, small):
        admission.submit(waiting)
    head = admission.next()
    assert head is not None
    assert head[0] is first[0]


def test_nobody_overtakes_a_beam_that_waits_for_slots() -> None:
    admission = Admission(2, 99)
    wide, small = entry(40, beam=2), entry(3)
    for waiting in (entry(41), wide, entry(42), small):
        admission.submit(waiting)
    assert admission.next() is not None  # the small one: a slot is left
    assert admission.next() is not None  # the first
    assert admission.next() is None
