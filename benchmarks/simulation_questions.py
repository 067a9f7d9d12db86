"""What a simulation is asked: is it right about a measured load, and how many replicas."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.inputs import shuffled
from benchmarks.load import CLOSED, OPEN
from benchmarks.loops import poisson
from benchmarks.simulation import Outcome, Sizes, run_closed, run_open
from benchmarks.simulation_arrivals import bursty, draw
from benchmarks.simulation_times import Kind, ServiceTimes, scaled
from hmer.errors import BadParameter
from hmer.tables import Table

REQUESTS = 3000  # of a run that answers a question: 30 of them beyond p99
_FITS = 4
_SPEEDS = (0.1, 2.0)  # beyond that it is not the CPUs that are shared
_STEPS = 6  # halvings of the interval in which the rate that is sought lies
BURST = 4.0  # bursts have so many times the arrivals of the times between them
BALANCED = 4  # replicas behind a balancer that knows who has the fewest requests

PERCENTILES = ("p50", "p95")
Say = Callable[[str], None]


def validate(times: ServiceTimes, measured: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Every level of a load test, as measured and as simulated, with the error in percent.

    ``measured``: what ``hmer-bench load --output`` wrote. The same inputs arrive in the same
    order at the same times if the times were measured with the same inputs; otherwise others are
    drawn of the same kinds. Raises ``BadParameter``.
    """
    levels = measured.get("levels")
    if measured.get("benchmark") != "load" or not isinstance(levels, list) or not levels:
        raise BadParameter(
            f"{name} holds no load test. Write one with: hmer-bench load --rate 5,10 --output FILE"
        )
    same = all(times.about.get(key) == measured.get(key) for key in ("data", "input", "inputs"))
    found = []
    for level in levels:
        try:
            kind, value, count = level["kind"], float(level["level"]), int(level["requests"])
            seen = {
                "throughput": float(level["throughput"]),
                **{p: level["latency_ms"][p] for p in PERCENTILES},
            }
        except (KeyError, TypeError, ValueError) as error:
            raise BadParameter(f"A level of {name} lacks {error}. Measure again.") from None
        outcome = _replay(times, kind, value, _kinds(times, count, same))
        figures = outcome.figures()
        predicted = {"throughput": figures["throughput"]} | {
            p: figures["latency_ms"][p] for p in PERCENTILES
        }
        found.append(
            {
                **{"kind": kind, "level": value, "requests": count, "same_trace": same},
                "measured": seen,
                "predicted": predicted,
                "error_percent": {
                    key: _error(predicted[key], seen[key]) for key in ("throughput", *PERCENTILES)
                },
                "rejected": {"measured": level.get("rejected"), "predicted": figures["rejected"]},
                "rounds_p95": _of_rounds(level),
            }
        )
    return found


def at_pace(document: Mapping[str, Any], alone_ms: float) -> ServiceTimes:
    """The times of ``document``, all by one factor, so that a request alone takes ``alone_ms``.

    The parts were timed before the load test, and a machine that others share, or that grows warm,
    is not as fast all the time. ``alone_ms``: the median of a closed loop of one.
    """
    times = ServiceTimes.from_dict(document, "the measurement")
    kinds = _kinds(times, len(times.kinds), same=True)
    found = run_closed(times, kinds, 1).figures()["latency_ms"]["p50"]
    return ServiceTimes.from_dict(scaled(document, alone_ms / found), "the measurement")


def fit(times: ServiceTimes, throughput: float, concurrency: int) -> ServiceTimes:
    """``times`` with the ``shared_speed`` that gives a full server its measured ``throughput``.

    The parts were timed one by one; how much they slow each other on the same CPUs is the one
    thing that this does not show. ``throughput``: answers a second of a closed loop with
    ``concurrency`` requests under way.
    """
    kinds = _kinds(times, max(4 * concurrency, len(times.kinds)), same=True)
    found, speed = times, times.shared_speed
    for _ in range(_FITS):
        seen = run_closed(found, kinds, concurrency).figures()["throughput"]
        speed = min(_SPEEDS[1], max(_SPEEDS[0], speed * throughput / seen))
        found = replace(times, shared_speed=speed, about={**times.about, "shared_speed": speed})
    return found


def _kinds(times: ServiceTimes, count: int, same: bool) -> list[Kind]:
    if not same:
        return draw(times, count, seed=0)
    order = shuffled(len(times.kinds))
    return [times.kinds[order[i % len(order)]] for i in range(count)]


def _replay(times: ServiceTimes, kind: str, value: float, kinds: Sequence[Kind]) -> Outcome:
    if kind == OPEN:
        return run_open(times, kinds, poisson(value, len(kinds)))
    if kind == CLOSED:
        return run_closed(times, kinds, int(value))
    raise BadParameter(f"There is no kind of load {kind!r}; there are {CLOSED} and {OPEN}.")


def _error(predicted: float | None, measured: float | None) -> float | None:
    return (predicted / measured - 1) * 100 if predicted is not None and measured else None


def _of_rounds(level: Mapping[str, Any]) -> list[float]:
    """p95 of each round of a load test, rising; empty where there was one round alone."""
    found = [one["latency_ms"]["p95"] for one in level.get("rounds", ())]
    return sorted(value for value in found if value is not None)


def validation_table(levels: Sequence[Mapping[str, Any]]) -> Table:
    """Measured beside predicted."""
    rows = []
    for level in levels:
        shown = "at once" if level["kind"] == CLOSED else "a second"
        cells = []
        for key in ("throughput", *PERCENTILES):
            error = level["error_percent"][key]
            cells += [_number(level["measured"][key]), _number(level["predicted"][key])]
            cells.append("-" if error is None else f"{error:+.0f} %")
        rounds = level.get("rounds_p95")
        cells.append(f"{rounds[0]:.0f} to {rounds[-1]:.0f}" if rounds else "-")
        rows.append((f"{level['level']:g} {shown}", *cells))
    header = ("load", "requests/s", "simulated", "error", "p50 ms", "simulated", "error")
    return Table(
        "The simulation beside a measured load",
        (*header, "p95 ms", "simulated", "error", "p95 ms of each round"),
        tuple(rows),
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def capacity(
    times: ServiceTimes,
    bound_ms: float,
    percentile: str = "p99",
    *,
    burst: float | None = None,
    balanced: int = 1,
    sizes: Sizes | None = None,
    requests: int = REQUESTS,
    seed: int = 1,
) -> dict[str, Any]:
    """The highest rate (a second and replica) at which ``percentile`` stays below ``bound_ms``.

    ``burst``: arrivals in bursts by this factor (``simulation.bursty``) instead of Poisson.
    ``balanced``: so many replicas behind a balancer that gives each request to the one with the
    fewest in flight; 1 stands for replicas that are chosen at random, as each of them then sees
    a Poisson process of its own. ``rate`` is ``None`` if even an idle replica misses the bound.
    """
    kinds = draw(times, requests, seed)

    def at(rate: float) -> Outcome:
        total = rate * balanced
        if burst is None:
            due = poisson(total, requests, seed)
        else:
            due = bursty(total, requests, seed, factor=burst)
        return run_open(times, kinds, due, replicas=balanced, sizes=sizes)

    def within(outcome: Outcome) -> bool:
        figures = outcome.figures()
        value = figures["latency_ms"][percentile]
        return value is not None and value < bound_ms and figures["rejected"] == 0

    alone = run_closed(times, kinds, 1, sizes=sizes).figures()
    idle = float(alone["latency_ms"][percentile])
    full = run_closed(times, kinds, 2 * times.slots, sizes=sizes).figures()
    found: dict[str, Any] = {
        "percentile": percentile,
        "bound_ms": bound_ms,
        "burst": burst,
        "balanced": balanced,
        "idle_ms": idle,
        "saturated": full["throughput"],
        "rate": None,
        "at": None,
    }
    if not idle < bound_ms:
        return found
    low, high, best = 0.0, float(full["throughput"]), None
    for _ in range(_STEPS):
        rate = (low + high) / 2
        outcome = at(rate)
        if within(outcome):
            low, best = rate, outcome
        else:
            high = rate
    if best is not None:
        found |= {"rate": low, "at": best.figures()}
    return found


def replica_rows(
    times: ServiceTimes, gpu: ServiceTimes | None, bound_ms: float, seed: int
) -> list[dict[str, Any]]:
    """For each device and kind of arrivals its ``capacity``; ``None`` for what has no times."""
    rows: list[dict[str, Any]] = []
    for known in (times, gpu):
        if known is None:
            rows.append({"device": "GPU", "found": None})
            continue
        for settings in ({}, {"balanced": BALANCED}, {"burst": BURST, "balanced": BALANCED}):
            found = capacity(known, bound_ms, seed=seed, **settings)
            rows.append({"device": known.device, "found": found})
    return rows


def attainable(idle_ms: float) -> float:
    """A bound that is worth asking for where an idle replica takes ``idle_ms``: twice that, in
    steps of 50 ms."""
    return math.ceil(2 * idle_ms / 50) * 50.0


def replicas_for(found: Mapping[str, Any], rate: float) -> int | None:
    """How many replicas ``rate`` requests a second need by a result of ``capacity``."""
    return math.ceil(rate / found["rate"]) if found["rate"] else None


def replicas_table(rows: Sequence[Mapping[str, Any]], rate: float) -> Table:
    """One row for each device and kind of arrivals; a row without ``found`` was not measured."""
    cells = []
    for row in rows:
        found = row["found"]
        if found is None:
            cells.append((row["device"], "-", "-", "-", "-", "unmeasured: give its service times"))
            continue
        count = replicas_for(found, rate)
        per = found["rate"]
        cells.append(
            (
                row["device"],
                _arrivals(found),
                f"{found['idle_ms']:.0f}",
                f"{found['saturated']:.1f}",
                "-" if per is None else f"{per:.1f}",
                f"none: an idle replica's {found['percentile']} is over the bound"
                if count is None
                else f"{count:,}",
            )
        )
    some = next((row["found"] for row in rows if row["found"]), None)
    bound = f"{some['percentile']} < {some['bound_ms']:g} ms" if some else ""
    header = ("replica", "arrivals", "idle, ms", "saturated, /s", "within bound, /s", "replicas")
    return Table(f"Replicas for {rate:,.0f} requests a second at {bound}", header, tuple(cells), 2)


def _arrivals(found: Mapping[str, Any]) -> str:
    kind = "Poisson" if found["burst"] is None else f"bursts x {found['burst']:g}"
    shared = "at random" if found["balanced"] == 1 else f"least busy of {found['balanced']}"
    return f"{kind}, {shared}"
