"""Who asks when: requests drawn from the measured ones, and arrivals in bursts.

Arrivals without bursts are ``benchmarks.loops.poisson``'s, as those of a load test are.
"""

from __future__ import annotations

import numpy as np

from benchmarks.simulation_times import Kind, ServiceTimes


def draw(times: ServiceTimes, count: int, seed: int) -> list[Kind]:
    """``count`` of the measured requests, at random with replacement."""
    chosen = np.random.default_rng([seed, 1]).integers(0, len(times.kinds), count)
    return [times.kinds[i] for i in chosen]


def bursty(
    rate: float, count: int, seed: int, factor: float = 4.0, period: float = 10.0
) -> list[float]:
    """Arrivals that come in bursts, ``rate`` a second over a long time.

    A Poisson process whose rate is ``factor`` times as high in bursts as between them; both
    last ``period`` seconds on average, exponentially distributed (a Markov-modulated Poisson
    process; Fischer, Meier-Hellstern, "The Markov-modulated Poisson process cookbook", 1993).
    """
    rng = np.random.default_rng([seed, 3])
    low = 2 * rate / (1 + factor)
    found: list[float] = []
    begin, high = 0.0, bool(rng.integers(2))
    while len(found) < count:
        lasts = rng.exponential(period)
        of_it = rng.poisson(lasts * low * (factor if high else 1.0))
        found += sorted((begin + rng.random(of_it) * lasts).tolist())
        begin, high = begin + lasts, not high
    return found[:count]
