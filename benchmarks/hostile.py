"""Hostile cases against a running server: which there are, their order, and what must hold."""

from __future__ import annotations

import time
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from benchmarks import hostile_http, hostile_ink, hostile_pictures, hostile_requests
from benchmarks.hostile_case import Case, Request, Rng, carry, input_of
from benchmarks.hostile_requests import MakeCase
from benchmarks.hostile_seeds import pictures
from benchmarks.hostile_send import ANSWERED, CLOSED, LEFT, LOST, TIMEOUT, Outcome, Sender
from benchmarks.server_metrics import read_metrics
from benchmarks.soak_watch import Held, held
from hmer.contract import Sizes
from hmer.errors import BadParameter, Overloaded, ServerUnavailable

GOOD = "good"
# Where it is no fault of the server that the model, or Triton, calls it a failure.
_MAY_FAIL = ("decode, features", "grpc, broken messages", "closed, control")
_BROKEN = ("inference_failed", "INTERNAL", "UNKNOWN", "HTTP 500")
_NOT_REFUSED = (ANSWERED, LEFT, CLOSED)
_FREE = ("hmer_decode_slots_in_use", "hmer_decode_queue_length", "hmer_recognize_workers_in_use",
         "hmer_recognize_queue_length")  # fmt: skip
ENDS = 3  # samples of what it holds that count at either end
_SETTLE_S = 20.0
_ROOM_S = 60.0
# Triton's HTTP end point says 500 where it cannot read a request's JSON, before any model sees it.
_NOT_READ = ("parse", "Inference-Header-Content-Length")


def all_kinds(sizes: Sizes) -> Mapping[str, tuple[MakeCase, int]]:
    """Kind -> what makes a case, and how often it comes; ``sizes`` of the network."""
    found: dict[str, tuple[MakeCase, int]] = {}
    for name, (make, weight) in {**hostile_pictures.KINDS, **hostile_ink.KINDS}.items():
        found[name] = (_carried(make), weight)
    features, attention = 2 * sizes.features, sizes.attention
    return {
        **found,
        **hostile_requests.kinds(features, attention, sizes.state),
        **hostile_http.KINDS,
        GOOD: (_good, 24),
    }


def but_for(
    kinds: Mapping[str, tuple[MakeCase, int]], without: Sequence[str]
) -> dict[str, tuple[MakeCase, int]]:
    """``kinds`` but for these. Raises ``BadParameter`` for one that there is not."""
    if unknown := [kind for kind in without if kind not in kinds]:
        raise BadParameter(f"{unknown[0]!r} is no kind; there are: {'; '.join(kinds)}.")
    return {kind: entry for kind, entry in kinds.items() if kind not in without}


def _carried(make: hostile_pictures.Make) -> MakeCase:
    return lambda rng: carry(rng, make(rng))


def _good(rng: Rng) -> Case:
    request = Request([input_of(pictures()["gray.png"])])
    return request.to_grpc() if rng.random() < 0.5 else request.to_http()


@dataclass(frozen=True)
class Planned:
    """Case number ``index`` of a kind: with the run's seed it is always the same."""

    kind: str
    index: int

    @property
    def name(self) -> str:
        """What ``--only`` takes."""
        return f"{self.kind}:{self.index}"

    def later(self, by: int) -> Planned:
        """Another case of the kind."""
        return replace(self, index=self.index + by)

    def make(self, kinds: Mapping[str, tuple[MakeCase, int]], seed: int) -> Case:
        """The bytes."""
        rng = np.random.default_rng([seed, zlib.crc32(self.kind.encode("utf-8")), self.index])
        return kinds[self.kind][0](rng)


def plan(kinds: Mapping[str, tuple[MakeCase, int]], cases: int, seed: int) -> list[Planned]:
    """``cases`` of all kinds, by their weights and at least one of each, mixed."""
    total = sum(weight for _, weight in kinds.values())
    counts = {kind: max(1, cases * weight // total) for kind, (_, weight) in kinds.items()}
    # Rounding is made up by the commonest kinds.
    while (missing := cases - sum(counts.values())) > 0:
        for kind in sorted(kinds, key=lambda kind: -kinds[kind][1])[:missing]:
            counts[kind] += 1
    while sum(counts.values()) > max(cases, len(kinds)):
        counts[max(counts, key=lambda kind: counts[kind])] -= 1
    found = [Planned(kind, index) for kind, count in counts.items() for index in range(count)]
    order = np.random.default_rng(seed).permutation(len(found))
    return [found[int(place)] for place in order]


def selected(kinds: Mapping[str, tuple[MakeCase, int]], only: Sequence[str]) -> list[Planned]:
    """The cases that ``KIND:INDEX`` name. Raises ``BadParameter``."""
    found = []
    for text in only:
        kind, _, index = text.rpartition(":")
        if kind not in kinds or not index.isdigit():
            raise BadParameter(
                f"{text!r} is no case. Write KIND:NUMBER, as the report does; the kinds are: "
                f"{'; '.join(kinds)}."
            )
        found.append(Planned(kind, int(index)))
    return found


@dataclass
class Tally:
    """What became of the cases of a kind."""

    outcomes: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    slowest: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        refused = {
            k: n for k, n in self.outcomes.items() if k not in (*_NOT_REFUSED, TIMEOUT, LOST)
        }
        found: dict[str, Any] = {"cases": self.outcomes.total(), "refused": refused}
        found |= {name: self.outcomes[name] for name in (*_NOT_REFUSED, TIMEOUT, LOST)}
        return found | {"slowest_s": round(self.slowest_s, 3), "slowest": self.slowest}


class Attack:
    """Cases against one server, and what must hold between and after them."""

    def __init__(
        self,
        sender: Sender,
        kinds: Mapping[str, tuple[MakeCase, int]],
        seed: int,
        metrics: str | None,
        pid: int | None,
    ) -> None:
        """``metrics``: address of its page. ``pid`` of the server, if it is this machine's."""
        self.tallies = {kind: Tally() for kind in kinds}
        self.failures: list[str] = []
        self.samples: list[tuple[int, Held]] = []
        self.done = self.sent_again = 0
        self._sender, self._kinds, self._seed = sender, kinds, seed
        self._metrics, self._pid = metrics, pid
        self.usual = self._usual()

    def _usual(self) -> str:
        found = self._sender.send(Request([input_of(pictures()["gray.png"])]).to_grpc())
        if found.label != ANSWERED:
            raise ServerUnavailable(
                f"The server does not answer a good request: {found.label} {found.text[:200]}."
            )
        return found.answer

    def run(
        self,
        cases: Sequence[Planned],
        concurrency: int,
        every: int,
        progress: Callable[[int], object] = lambda done: None,
    ) -> None:
        """Send ``cases``, with a look at the server after ``every`` of them."""
        with ThreadPoolExecutor(concurrency) as pool:
            for start in range(0, len(cases), every):
                batch = cases[start : start + every]
                for planned, outcome in zip(batch, pool.map(self._one, batch), strict=True):
                    self._note(planned, outcome)
                self.done += len(batch)
                self._look()
                progress(len(batch))

    def rest(self, seconds: float) -> None:
        """Leave the server alone for so long, and then look at what it still holds.

        Its models give freed memory back once a minute (``model_repository.memory``).
        """
        if self._pid is not None and seconds > 0:
            time.sleep(seconds)
            for _ in range(ENDS):
                self.samples.append((self.done, held(self._pid)))

    def _one(self, planned: Planned) -> Outcome:
        """Send a case; again and again while there is no room, for then nobody has looked at it."""
        case, end = planned.make(self._kinds, self._seed), time.monotonic() + _ROOM_S
        while True:
            outcome = self._sender.send(case)
            if outcome.label != Overloaded.code or time.monotonic() > end:
                return outcome
            self.sent_again += 1
            time.sleep(0.2)

    def _note(self, planned: Planned, outcome: Outcome) -> None:
        tally = self.tallies[planned.kind]
        tally.outcomes[outcome.label] += 1
        if outcome.seconds > tally.slowest_s:
            tally.slowest_s, tally.slowest = outcome.seconds, planned.name
        if (problem := self._problem(planned, outcome)) is not None:
            self.failures.append(f"{planned.name}: {problem}")

    def _problem(self, planned: Planned, outcome: Outcome) -> str | None:
        said = " ".join(outcome.text.split())[:200]
        if outcome.label in (TIMEOUT, LOST):
            return f"{outcome.label} after {outcome.seconds:.1f} s {said}"
        if "Traceback (most" in outcome.text:
            return f"a traceback reached the client: {said}"
        read = outcome.label != "HTTP 500" or not any(word in said for word in _NOT_READ)
        if outcome.label in _BROKEN and planned.kind not in _MAY_FAIL and read:
            return f"the server failed instead of refusing: {outcome.label} {said}"
        if planned.kind == GOOD and (outcome.label, outcome.answer) != (ANSWERED, self.usual):
            return f"a good request got {outcome.label} {outcome.answer!r} {said}"
        return None

    def _look(self) -> None:
        """Between batches: everything is free again, and the next good request is answered."""
        self._free()
        for case in (_good(np.random.default_rng(i)) for i in range(4)):
            outcome = self._sender.send(case)
            if (outcome.label, outcome.answer) != (ANSWERED, self.usual):
                self.failures.append(
                    f"After {self.done} cases a good request got {outcome.label} "
                    f"{outcome.answer!r} {outcome.text[:200]}"
                )
        if self._pid is not None:
            self.samples.append((self.done, held(self._pid)))
            if self.samples[-1][1].pids != self.samples[0][1].pids:
                self.failures.append(
                    f"After {self.done} cases the server's processes are other ones: "
                    f"{self.samples[0][1].pids} became {self.samples[-1][1].pids}."
                )

    def _free(self) -> None:
        if self._metrics is None:
            return
        end = time.monotonic() + _SETTLE_S
        while True:
            try:
                page = read_metrics(self._metrics)
                used = {name: page.get(name, 0.0) for name in _FREE}
            except ServerUnavailable as error:
                used = {str(error): 1.0}
            if not any(used.values()):
                return
            if time.monotonic() > end:
                self.failures.append(
                    f"After {self.done} cases something is still held: "
                    f"{ {name: value for name, value in used.items() if value} }."
                )
                return
            time.sleep(0.2)
