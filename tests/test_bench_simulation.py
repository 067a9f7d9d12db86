"""The discrete-event model: closed forms of queueing theory, conservation, determinism."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simpy

from benchmarks.loops import poisson
from benchmarks.simulation import (
    Replica,
    Request,
    Sizes,
    run_closed,
    run_open,
)
from benchmarks.simulation_arrivals import bursty, draw
from benchmarks.simulation_cpu import Cpus, Meter, one_cpu
from benchmarks.simulation_times import ServiceTimes, read_times
from hmer.errors import BadParameter, MissingInput
from tests.simulation_fixtures import document, only_encoder, times

COUNT = 6_000


def mean_wait_s(known: ServiceTimes, rate: float) -> float:
    """Of arrivals stretched to their nominal rate; one run's mean is still off by 4 to 7 %."""
    arrivals = np.array(poisson(rate, COUNT, 0))
    due = (arrivals * COUNT / rate / arrivals[-1]).tolist()
    outcome = run_open(known, draw(known, COUNT, 0), due)
    assert not any(request.rejected for request in outcome.requests)
    return sum(request.waited for request in outcome.requests) / COUNT


def erlang_c(servers: int, offered: float) -> float:
    """Probability that an arrival waits in an M/M/c queue."""
    last = offered**servers / math.factorial(servers) * servers / (servers - offered)
    return last / (sum(offered**n / math.factorial(n) for n in range(servers)) + last)


@pytest.mark.parametrize("servers", [1, 3])
def test_m_d_c(servers: int) -> None:
    rho, service = 0.5, 0.01
    m_m_c = erlang_c(servers, rho * servers) * service / (servers * (1 - rho))
    # Cosmetatos, "Approximate explicit formulae for the multi-server queue with Poisson input and
    # constant service times", 1975: within 1 %; for one server it is Pollaczek and Khinchine's.
    factor = 1 + (1 - rho) * (servers - 1) * (math.sqrt(4 + 5 * servers) - 2) / (16 * servers * rho)
    found = mean_wait_s(only_encoder(servers, service * 1e3), rho * servers / service)
    assert found == pytest.approx(m_m_c / 2 * factor, rel=0.08)


@pytest.mark.parametrize("servers", [1, 3])
def test_every_wait_of_a_queue_in_order(servers: int) -> None:
    # Kiefer and Wolfowitz: the workload vector of the servers, arrival by arrival.
    known, due = only_encoder(servers, 10.0), poisson(90.0 * servers, 600, 1)
    outcome = run_open(known, draw(known, 600, 1), due)
    work, before, expected = [0.0] * servers, 0.0, []
    for at in due:
        work = sorted(max(0.0, w - (at - before)) for w in work)
        expected.append(work[0])
        work[0] += 0.01
        before = at
    assert [r.waited for r in outcome.requests] == pytest.approx(expected, abs=1e-9)


def test_m_m_1() -> None:
    random = np.random.default_rng(11)

    class Exponential(ServiceTimes):
        """One slot, one call a request, of random duration: the decode loop is the server."""

        def step_s(self, rows: int, joins: int = 0, positions: int = 0) -> float:
            return float(random.exponential(0.01))

    base = only_encoder(64, 0.0)
    known = Exponential(**vars(base) | {"slots": 1, "workers": 1})
    # The front lets (2 slots + 8) requests in at a time, in order: waiting there is waiting.
    outcome = run_open(known, draw(known, COUNT, 3), poisson(50.0, COUNT, 3))
    latencies = np.array([r.latency for r in outcome.requests])
    assert latencies.mean() == pytest.approx(1 / (100 - 50), rel=0.07)
    # The time in the system is exponentially distributed.
    assert np.percentile(latencies, 95) == pytest.approx(-math.log(0.05) / 50, rel=0.08)


def test_shared_cpus_are_processor_sharing() -> None:
    env = simpy.Environment()
    cpus = Cpus(env, 1)
    random = np.random.default_rng(2)
    spent: list[float] = []

    def one(seconds: float) -> Any:
        began = env.now
        yield cpus.work(one_cpu(seconds))
        spent.append(env.now - began)

    def arrive() -> Any:
        for gap, seconds in zip(
            random.exponential(1.0, 3000), random.uniform(0.0, 1.2, 3000), strict=True
        ):
            yield env.timeout(gap)
            env.process(one(seconds))

    env.process(arrive())
    env.run()
    # M/G/1 with processor sharing does not care what is distributed how: E[S] / (1 - rho).
    assert len(spent) == 3000
    assert sum(spent) / 3000 == pytest.approx(0.6 / 0.4, rel=0.08)
    assert cpus.busy.total == pytest.approx(0.6 * 3000, rel=0.05)


def test_work_of_two_threads_gives_way_to_work_of_one() -> None:
    env = simpy.Environment()
    cpus = Cpus(env, 2)
    ends: dict[str, float] = {}

    def run(name: str, seconds: Any, threads: int) -> Any:
        yield cpus.work(seconds, threads)
        ends[name] = env.now

    env.process(run("wide", lambda n: 2.0 / n, 2))  # a second on both
    env.process(run("narrow", one_cpu(0.4), 1))
    env.run()
    # Three threads want two CPUs: each gets 2/3. Narrow: 0.4 / (2/3) = 0.6 s; wide has had 0.8
    # CPU seconds by then, and needs 1.2 more of two CPUs.
    assert ends["narrow"] == pytest.approx(0.6)
    assert ends["wide"] == pytest.approx(1.2)


def test_nice_work_gives_way() -> None:
    env = simpy.Environment()
    cpus = Cpus(env, 1)
    ends: dict[str, float] = {}

    def run(name: str, nice: int) -> Any:
        yield cpus.work(one_cpu(1.0), 1, nice)
        ends[name] = env.now

    env.process(run("nice", 5))
    env.process(run("normal", 0))
    env.run()
    share = 1 / (1 + 1.25**-5)
    assert ends["normal"] == pytest.approx(1 / share)
    assert ends["nice"] == pytest.approx(2.0)


def test_what_one_cannot_use_the_others_get() -> None:
    env = simpy.Environment()
    cpus = Cpus(env, 2)
    ends: list[float] = []

    def run(seconds: Any, threads: int, nice: int) -> Any:
        yield cpus.work(seconds, threads, nice)
        ends.append(env.now)

    env.process(run(one_cpu(1.0), 1, 0))  # sated by one CPU: its weight is far above the others'
    env.process(run(lambda n: 2.0 / n, 2, 19))
    env.run()
    assert ends == pytest.approx([1.0, 1.5])


def test_a_meter() -> None:
    env = simpy.Environment()
    meter = Meter(env)
    meter.add(2)
    env.run(until=3)
    meter.add(-1)
    env.run(until=5)
    assert meter.total == 8


@pytest.mark.parametrize("replicas", [1, 3])
def test_requests_are_conserved(replicas: int) -> None:
    known = times(slots=2, max_queue=4)
    due = poisson(400.0, 1000, 7)  # far too many
    outcome = run_open(known, draw(known, 1000, 7), due, replicas=replicas)
    figures = outcome.figures()
    assert figures["rejected"] > 100
    assert figures["answered"] > 20
    assert figures["answered"] + figures["rejected"] == 1000
    for request, at in zip(outcome.requests, due, strict=True):
        assert request.due == at
        assert request.done is not None
        assert request.done >= at
        assert request.rejected or request.left <= 0
    assert 0 < figures["cpus_busy"] <= 2
    assert 0 < figures["slots_in_use"] <= 2


def test_the_rule_of_admission_keeps_waits_short() -> None:
    waits = {}
    for most in (0.0, 100.0):
        known = times(slots=2, max_queue=256, max_wait_ms=most)
        full = run_closed(known, draw(known, 300, 1), 12).figures()["throughput"]
        outcome = run_open(known, draw(known, 2000, 3), poisson(2 * full, 2000, 3))
        figures = outcome.figures()
        assert figures["answered"] + figures["rejected"] == 2000
        waits[most] = figures["latency_ms"]["p99"]
        assert figures["throughput"] == pytest.approx(full, rel=0.1)  # and the server is busy
    assert waits[100.0] < waits[0.0] / 4


def test_littles_law() -> None:
    env = simpy.Environment()
    known = times()
    replica = Replica(env, known)
    requests = [Request(k, t) for k, t in zip(draw(known, 800, 1), poisson(25.0, 800, 1),
                                              strict=True)]  # fmt: skip

    def arrive() -> Any:
        for request in requests:
            yield env.timeout(request.due - env.now)
            replica.take(request)

    env.process(arrive())
    env.run()
    assert replica.in_flight.level == 0
    assert replica.in_flight.total == pytest.approx(sum(r.latency for r in requests))


def test_equal_seeds_give_equal_runs() -> None:
    known = times()
    one, two, other = (
        run_open(known, draw(known, 400, seed), poisson(20.0, 400, seed)).figures()
        for seed in (1, 1, 2)
    )
    assert one == two != other


def test_one_request_alone_takes_the_sum_of_its_parts() -> None:
    known = times()
    (kind, *_) = sorted(known.kinds, key=lambda k: k.pixels)
    outcome = run_closed(known, [kind] * 3, 1)
    expected = 0.001 + 0.002 + 0.010 + 0.001 + 0.0001  # front, server, encoder, step, joining
    assert [r.latency for r in outcome.requests] == pytest.approx([expected] * 3)


def test_a_closed_loop_is_as_fast_as_what_limits_it() -> None:
    outcome = run_closed(only_encoder(2, 10.0), draw(only_encoder(2, 10.0), 400, 1), 8)
    figures = outcome.figures()
    assert figures["throughput"] == pytest.approx(200.0, rel=0.02)
    assert figures["latency_ms"]["p50"] == pytest.approx(40.0, rel=0.02)


def test_k_and_slots_matter() -> None:
    known = times()
    kinds = draw(known, 300, 1)

    def p50(sizes: Sizes) -> float:
        return float(run_closed(known, kinds, 1, sizes=sizes).figures()["latency_ms"]["p50"])

    assert p50(Sizes(8, 2, 1)) > p50(Sizes(8, 2, 4))
    with pytest.raises(BadParameter, match="at least one slot"):
        run_closed(known, kinds, 1, sizes=Sizes(0, 2, 4))


def test_arrivals_in_bursts() -> None:
    calm, bursts = poisson(50.0, 20_000, 1), bursty(50.0, 20_000, 1)
    assert bursts == sorted(bursts)
    assert bursts[-1] / 20_000 == pytest.approx(1 / 50, rel=0.15)
    counts = [np.histogram(t, bins=200)[0] for t in (calm, bursts)]
    dispersion = [c.var() / c.mean() for c in counts]
    assert dispersion[0] == pytest.approx(1.0, abs=0.4)
    assert dispersion[1] > 5


def test_times_between_what_was_measured() -> None:
    known = times()
    assert known.encode_s(64 * 128, 1) == pytest.approx(0.020)
    assert known.encode_s(64 * 128, 1, 1) == pytest.approx(0.036)
    assert known.encode_s(64 * 128, 1, 0.5) == pytest.approx(0.072)
    assert known.encode_s(64 * 128, 1, 1.5) == pytest.approx(2 / (1 / 0.020 + 1 / 0.036))
    assert known.encode_s(64 * 128, 3) == pytest.approx(0.060)
    assert known.step_s(8) == pytest.approx(0.0024)
    assert known.step_s(15) == pytest.approx(0.0038)
    assert known.step_s(1, joins=2) == pytest.approx(0.0012)


def test_a_step_takes_as_long_as_its_rows_are_large() -> None:
    points = [
        {"rows": rows, "positions": rows * size, "ms": 0.5 + 0.2 * rows + 0.01 * rows * size}
        for rows in (1, 4, 16)
        for size in (40, 200, 600)
    ]
    known = times(step={"join_ms": 0.1, "points": points})
    assert known.step_s(2, positions=400) == pytest.approx(0.0049)
    assert known.step_s(16, joins=1, positions=9600) == pytest.approx(0.0998)
    requests = [{"height": 64, "width": 64, "tokens": 4, "front_ms": 0.0, "positions": 100}]
    alone = replace(known, server_s=0.0, kinds=times(requests=requests).kinds)
    (request,) = run_closed(alone, list(alone.kinds), 1).requests
    assert request.latency == pytest.approx(0.010 + 0.0017 + 0.0001)
    # What would be negative is left out: bigger is never faster.
    odd = times(step={"join_ms": 0.0, "points": [
        {"rows": 1, "positions": 100, "ms": 2.0}, {"rows": 1, "positions": 200, "ms": 1.0},
    ]})  # fmt: skip
    assert odd.step_s(1, positions=300) >= odd.step_s(1, positions=100) > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"benchmark": "load"}, "holds no service times"),
        ({"version": 2}, "is of version 2"),
        ({"requests": []}, "has no requests"),
        ({"slots": 0}, "below 1"),
        ({"slots": "many"}, "cannot be used"),
        ({"server_ms": -1.0}, "negative"),
        ({"step": {"points": []}}, "no field 'join_ms'"),
        ({"encoder": {"workers": 1, "batch_pixels": 1, "points": [{"rows": 1}]}}, "cannot be used"),
    ],
)
def test_documents_that_are_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    path.write_text(json.dumps(document(**changes)), encoding="utf-8")
    with pytest.raises(BadParameter, match=said):
        read_times(path)


def test_files_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="There is no file"):
        read_times(tmp_path / "nothing.json")
    (tmp_path / "text.json").write_text("text", encoding="utf-8")
    with pytest.raises(BadParameter, match="is not a JSON file"):
        read_times(tmp_path / "text.json")
    inside = {"benchmark": "simulate", "service": document()}
    (tmp_path / "inside.json").write_text(json.dumps(inside), encoding="utf-8")
    assert read_times(tmp_path / "inside.json").slots == 8
