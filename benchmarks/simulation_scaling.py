"""Which signal an autoscaler should follow: replicas come and go under a ramp of requests.

The autoscaler is Kubernetes' horizontal one: every 15 s it wants ``ceil(replicas * signal /
target)``, stays where that ratio is within 10 %, at most doubles (or adds four), and scales down
to the highest wish of the last five minutes. (Kubernetes documentation, "Horizontal Pod
Autoscaling", algorithm details and default behavior.) A new replica takes requests after
``start_s``; one that leaves finishes what it has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.loops import poisson
from benchmarks.simulation import Process, Replica, Request, run_open
from benchmarks.simulation_arrivals import draw
from benchmarks.simulation_cpu import Meter, simulation_library
from benchmarks.simulation_times import ServiceTimes
from hmer.tables import Table

PERIOD_S = 15.0
TOLERANCE = 0.1
STABLE_S = 300.0
CPU, WAIT, SLOTS, FLIGHT = "CPU utilisation", "queue wait", "slots in use", "requests in flight"
SIGNALS = (CPU, WAIT, SLOTS, FLIGHT)
UNITS = {CPU: "%", WAIT: "ms", SLOTS: "a replica", FLIGHT: "a replica"}


@dataclass(frozen=True)
class Ramp:
    """Requests a second: ``low``, then up to ``high`` in a line, held, and down to ``low``.

    Seconds of the five parts: ``quiet`` before, ``up``, ``hold``, ``down``, and ``quiet`` again.
    """

    low: float
    high: float
    quiet_s: float = 60.0
    up_s: float = 180.0
    hold_s: float = 300.0
    down_s: float = 60.0

    @property
    def seconds(self) -> float:
        """In all."""
        return 2 * self.quiet_s + self.up_s + self.hold_s + self.down_s

    def rate(self, at: float) -> float:
        """At a time."""
        ends = np.cumsum([0, self.quiet_s, self.up_s, self.hold_s, self.down_s, self.quiet_s])
        levels = (self.low, self.low, self.high, self.high, self.low, self.low)
        return float(np.interp(at, ends, levels))

    def arrivals(self, seed: int) -> list[float]:
        """A Poisson process of this rate, by thinning (Lewis, Shedler 1979)."""
        rng = np.random.default_rng([seed, 4])
        found, at = [], 0.0
        while (at := at + rng.exponential(1 / self.high)) < self.seconds:
            if rng.random() * self.high < self.rate(at):
                found.append(float(at))
        return found


class _Fleet:
    """Replicas that come and go."""

    def __init__(self, times: ServiceTimes, count: int, start_s: float) -> None:
        self.env = simulation_library().Environment()
        self._times, self._start_s = times, start_s
        self.waits: list[float] = []
        self.ready: list[Replica] = []
        self.leaving: list[Replica] = []
        self.starting: list[object] = []
        self.paid = Meter(self.env)  # replicas, whatever they do
        for _ in range(count):
            self._join(object())

    def _join(self, ticket: object) -> None:
        self.starting = [other for other in self.starting if other is not ticket]
        self.ready.append(Replica(self.env, self._times, on_wait=self.waits.append))
        self._pay()

    def _pay(self) -> None:
        self.leaving = [replica for replica in self.leaving if replica.in_flight.level]
        self.paid.set(len(self.ready) + len(self.starting) + len(self.leaving))

    @property
    def count(self) -> int:
        """Those that serve or will."""
        return len(self.ready) + len(self.starting)

    def scale(self, wanted: int) -> None:
        """Start what is missing; let go of what is too much, the ones that start first."""
        for _ in range(wanted - self.count):
            ticket = object()
            self.starting.append(ticket)
            self.env.process(self._start(ticket))
        while self.count > wanted and self.starting:
            self.starting.pop()
        while self.count > wanted and len(self.ready) > 1:
            least = min(self.ready, key=lambda r: r.in_flight.level)
            self.ready.remove(least)
            self.leaving.append(least)
        self._pay()

    def _start(self, ticket: object) -> Process:
        yield self.env.timeout(self._start_s)
        if any(other is ticket for other in self.starting):
            self._join(ticket)

    def serve(self, request: Request) -> None:
        """By the replica with the fewest requests in flight."""
        min(self.ready, key=lambda r: r.in_flight.level).take(request)

    def signal(self, name: str, before: dict[int, float]) -> float:
        """Its mean over the replicas and over the time since ``before`` was noted, which it is
        again."""
        if name == WAIT:
            found = 1e3 * sum(self.waits) / len(self.waits) if self.waits else 0.0
            self.waits.clear()
            return found
        totals = {}
        for replica in self.ready:
            meters = {CPU: replica.cpus.busy, SLOTS: replica.slots_in_use}
            totals[id(replica)] = meters.get(name, replica.in_flight).total
        shares = [total - before.get(key, 0.0) for key, total in totals.items()]
        before.clear()
        before |= totals
        mean = sum(shares) / len(shares) / PERIOD_S
        return mean / max(1, self._times.cpus) * 100 if name == CPU else mean


def targets(times: ServiceTimes, rate: float, seed: int = 1, seconds: float = 300.0) -> dict[
    str, float
]:  # fmt: skip
    """What each signal shows on one replica that is given ``rate`` requests a second.

    So all signals aim at the same load, and only what they make of changes differs.
    """
    count = max(50, int(rate * seconds))
    outcome = run_open(times, draw(times, count, seed), poisson(rate, count, seed))
    waits = [r.waited for r in outcome.requests if not r.rejected]
    answered = [r for r in outcome.requests if r.done is not None and not r.rejected]
    return {
        CPU: 100 * outcome.busy / max(1, times.cpus),
        WAIT: 1e3 * sum(waits) / max(1, len(waits)),
        SLOTS: outcome.slots,
        FLIGHT: sum(r.latency for r in answered) / outcome.seconds,  # Little's law
    }


def follow(
    times: ServiceTimes,
    ramp: Ramp,
    name: str,
    target: float,
    bound_ms: float,
    *,
    enough: float,
    start_s: float,
    seed: int = 1,
) -> dict[str, Any]:
    """The ramp with an autoscaler that follows the signal ``name``.

    ``enough``: requests a second that a replica serves within the bound; ``overshoot`` is by how
    much the most replicas exceed what the ramp's top needs by that.
    """
    fleet = _Fleet(times, max(1, math.ceil(ramp.low / enough)), start_s)
    env, due = fleet.env, ramp.arrivals(seed)
    requests = [Request(kind, at) for kind, at in zip(draw(times, len(due), seed), due,
                                                      strict=True)]  # fmt: skip
    history: list[dict[str, float]] = []

    def arrive() -> Process:
        for request in requests:
            yield env.timeout(max(0.0, request.due - env.now))
            fleet.serve(request)

    def autoscale() -> Process:
        before: dict[int, float] = {}
        wishes: list[tuple[float, int]] = []
        while env.now < ramp.seconds:
            yield env.timeout(PERIOD_S)
            now = fleet.count
            seen = fleet.signal(name, before)
            wanted = wish(now, seen, target)
            wishes = [w for w in wishes if w[0] > env.now - STABLE_S] + [(env.now, wanted)]
            if wanted < now:  # down to the highest wish of the last minutes
                wanted = min(now, max(w for _, w in wishes))
            fleet.scale(wanted)
            history.append(
                {"at": env.now, "rate": ramp.rate(env.now), "replicas": now, "signal": seen}
            )

    env.process(arrive())
    env.process(autoscale())
    env.run(until=ramp.seconds)
    minutes = fleet.paid.total / 60  # what is left after the ramp is not paid for
    env.run()
    late = [r for r in requests if r.rejected or r.latency * 1e3 > bound_ms]
    most, needed = max(h["replicas"] for h in history), math.ceil(ramp.high / enough)
    return {
        "signal": name,
        "target": target,
        "requests": len(requests),
        "late": len(late) / len(requests) if requests else 0.0,
        "rejected": sum(r.rejected for r in requests),
        "most": int(most),
        "needed": needed,
        "overshoot": most / needed - 1,
        "replica_minutes": minutes,
        "history": history,
    }


def wish(now: int, seen: float, target: float) -> int:
    """Replicas that the autoscaler wants of ``now``, within what it may change at a time."""
    ratio = seen / target if target > 0 else 1.0
    if abs(ratio - 1) <= TOLERANCE:
        return now
    return max(1, min(math.ceil(now * ratio), max(2 * now, now + 4)))


def compare(
    times: ServiceTimes,
    enough: float,
    bound_ms: float,
    *,
    start_s: float,
    ramp: Ramp | None = None,
    load: float = 0.7,
    seed: int = 1,
) -> dict[str, Any]:
    """All signals under the same ramp; each aims at ``load`` of what a replica serves in time."""
    ramp = ramp or Ramp(2 * load * enough, 12 * load * enough)
    aims = targets(times, load * enough, seed)
    return {
        "ramp": {**vars(ramp), "seconds": ramp.seconds},
        "bound_ms": bound_ms,
        "start_s": start_s,
        "load": load,
        "enough": enough,
        "signals": [
            follow(
                times, ramp, name, aims[name], bound_ms,
                enough=load * enough, start_s=start_s, seed=seed,
            )
            for name in SIGNALS
        ],
    }  # fmt: skip


def scaling_table(found: Mapping[str, Any]) -> Table:
    """One row a signal."""
    rows: Sequence[tuple[str, ...]] = [
        (
            one["signal"],
            f"{one['target']:.1f} {UNITS[one['signal']]}",
            f"{100 * one['late']:.2f}",
            str(one["rejected"]),
            f"{one['most']} of {one['needed']}",
            f"{100 * one['overshoot']:+.0f}",
            f"{one['replica_minutes']:.0f}",
        )
        for one in found["signals"]
    ]
    header = ("signal", "target", "late %", "rejected", "most replicas", "overshoot %", "minutes")
    return Table("Autoscaling by a signal, under a ramp", header, tuple(rows))
