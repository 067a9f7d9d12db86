"""Service times for tests of the simulation: written by hand, round numbers."""

from __future__ import annotations

from typing import Any

from benchmarks.simulation_times import ServiceTimes


def document(**changes: Any) -> dict[str, Any]:
    """Two CPUs; an encoder of 10 ms for 64 x 64 on both, growing with the pixels; 3 sizes."""
    found: dict[str, Any] = {
        **{"benchmark": "service", "version": 1, "device": "a CPU", "cpus": 2, "ready_s": 3.0},
        **{"slots": 8, "max_queue": 64, "k": 4, "server_ms": 2.0},
        "encoder": {
            **{"workers": 2, "batch_pixels": 24_000},
            "points": [
                {
                    **{"threads": threads, "batch": batch, "height": 64, "width": width},
                    "ms": 10.0 * batch * width / 64 * {1: 1.8, 2: 1.0}[threads],
                }
                for threads in (1, 2)
                for batch in (1, 2)
                for width in (64, 256)
            ],
        },
        "step": {"join_ms": 0.1, "points": [{"rows": 1, "ms": 1.0}, {"rows": 8, "ms": 2.4}]},
        "requests": [
            {"height": 64, "width": width, "tokens": tokens, "front_ms": 1.0}
            for width, tokens in ((64, 3), (128, 9), (256, 21))
        ],
    }
    return found | changes


def times(**changes: Any) -> ServiceTimes:
    """``document``, read."""
    return ServiceTimes.from_dict(document(**changes))


def only_encoder(workers: int, ms: float, max_queue: int = 100_000) -> ServiceTimes:
    """Equal pictures that take ``ms`` each in one of ``workers``, and nothing else costs time."""
    point = {"threads": 1, "batch": 1, "height": 64, "width": 64, "ms": ms}
    return times(
        cpus=0,
        server_ms=0.0,
        slots=64,
        max_queue=max_queue,
        encoder={"workers": workers, "batch_pixels": 1, "points": [point]},
        step={"join_ms": 0.0, "points": [{"rows": 1, "ms": 0.0}]},
        requests=[{"height": 64, "width": 64, "tokens": 1, "front_ms": 0.0}],
    )
