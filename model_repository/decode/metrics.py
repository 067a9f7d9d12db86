"""What the scheduler counts, on Triton's own metrics page.

``execute`` takes requests off Triton's queue at once, so its queue metrics say nothing about
this model; these do.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

import triton_python_backend_utils as pb_utils

from hmer.decode import Stats

_log = logging.getLogger(__name__)

PERIOD_S = 1.0

# Field of `Stats` -> what it tells. Counters end in _total, as Prometheus wants it.
COUNTERS = {
    "accepted": "Formulas taken into the decoder's queue",
    "rejected": "Formulas refused because the queue was full",
    "completed": "Formulas decoded",
    "cancelled": "Formulas whose client went away",
    "deadline": "Formulas whose time was up",
    "failed": "Formulas that failed in the decoder",
    "steps": "Calls of the step function",
    "rows": "Occupied slots, summed over the steps",
    "tokens": "Tokens decoded for answers",
    "wasted": "Tokens computed after their formula had ended",
}
GAUGES = {
    "slots": "Formulas that can be decoded at the same time",
    "slots_in_use": "Formulas being decoded",
    "queue_length": "Formulas waiting for a slot",
}


class DecodeMetrics:
    """Publishes a scheduler's ``stats`` once a second while entered as a context."""

    def __init__(self, stats: Callable[[], Stats], period: float = PERIOD_S) -> None:
        self._stats = stats
        self._period = period
        self._metrics: dict[str, Any] = {}
        self._families: list[Any] = []  # a family must outlive its metrics
        self._seen = Stats()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="hmer-metrics", daemon=True)

    def __enter__(self) -> DecodeMetrics:
        try:
            for name, text in COUNTERS.items():
                self._add(name, f"hmer_decode_{name}_total", text, pb_utils.MetricFamily.COUNTER)
            for name, text in GAUGES.items():
                self._add(name, f"hmer_decode_{name}", text, pb_utils.MetricFamily.GAUGE)
        except Exception:  # a server without metrics serves all the same
            _log.warning("This server publishes no custom metrics.", exc_info=True)
            self._metrics.clear()
            return self
        self._thread.start()
        return self

    def _add(self, field: str, name: str, text: str, kind: Any) -> None:
        family = pb_utils.MetricFamily(name=name, description=text, kind=kind)
        self._families.append(family)
        self._metrics[field] = family.Metric(labels={"model": "decode"})

    def publish(self) -> None:
        """Bring every metric up to date."""
        stats = self._stats()
        for name, metric in self._metrics.items():
            value, seen = getattr(stats, name), getattr(self._seen, name)
            if name in GAUGES:
                if value != seen:
                    metric.set(value)
            elif value > seen:
                metric.increment(value - seen)
        self._seen = stats

    def _loop(self) -> None:
        while not self._stop.wait(self._period):
            try:
                self.publish()
            except Exception:
                _log.exception("The decoder's metrics are no longer published.")
                return

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._metrics.clear()
        self._families.clear()
