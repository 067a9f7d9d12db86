"""Numbers of a model on Triton's own metrics page, brought up to date once a second.

Every change of a metric is a trip to the server's process (0.1 ms), so nothing is published where
it happens: counts and buckets are kept here, and the differences are sent now and then.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from types import TracebackType
from typing import Any

import triton_python_backend_utils as pb_utils

_log = logging.getLogger(__name__)

PERIOD_S = 1.0
COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds


class Histogram:
    """Durations in seconds, counted in buckets; usable by several threads."""

    def __init__(self, bounds: tuple[float, ...] = BOUNDS) -> None:
        self.bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._lock = threading.Lock()

    def observe(self, seconds: float) -> None:
        """Count one."""
        with self._lock:
            self._counts[bisect_left(self.bounds, seconds)] += 1
            self._sum += seconds

    def totals(self) -> tuple[list[int], float]:
        """How many were at most each bound, all at the end, and their sum."""
        with self._lock:
            return list(accumulate(self._counts)), self._sum


@dataclass(frozen=True)
class MetricSpec:
    """One metric: ``name`` without the prefix, what it tells, and its kind."""

    name: str
    text: str
    kind: str = COUNTER


Value = float | Histogram


class Publisher:
    """Publishes ``values()`` while entered as a context. ``specs`` say what they are.

    A histogram becomes counters ``_bucket`` with the label ``le``, ``_sum`` and ``_count``, which
    is what Prometheus' ``histogram_quantile`` wants: Triton's own kind, where it has one, takes
    every observation by a trip of its own.
    """

    def __init__(
        self,
        prefix: str,
        labels: Mapping[str, str],
        specs: tuple[MetricSpec, ...],
        values: Callable[[], Mapping[str, Value]],
        period: float = PERIOD_S,
    ) -> None:
        self._prefix, self._labels, self._specs = prefix, dict(labels), specs
        self._values, self._period = values, period
        self._metrics: dict[str, Any] = {}
        self._families: list[Any] = []  # a family must outlive its metrics
        self._seen: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="hmer-metrics", daemon=True)

    def __enter__(self) -> Publisher:
        try:
            for spec in self._specs:
                self._add(spec)
        except Exception:  # a server without metrics serves all the same
            _log.warning("This server publishes no custom metrics.", exc_info=True)
            self._metrics.clear()
            return self
        self._thread.start()
        return self

    def _add(self, spec: MetricSpec) -> None:
        name, kinds = f"{self._prefix}_{spec.name}", pb_utils.MetricFamily
        if spec.kind == HISTOGRAM:
            bucket = self._family(f"{name}_bucket", spec.text, kinds.COUNTER)
            for bound in (*map(str, BOUNDS), "+Inf"):
                labels = {**self._labels, "le": bound}
                self._metrics[f"{spec.name}_{bound}"] = bucket.Metric(labels=labels)
            for part in ("sum", "count"):
                family = self._family(f"{name}_{part}", spec.text, kinds.COUNTER)
                self._metrics[f"{spec.name}_{part}"] = family.Metric(labels=self._labels)
            return
        kind = kinds.GAUGE if spec.kind == GAUGE else kinds.COUNTER
        family = self._family(name, spec.text, kind)
        self._metrics[spec.name] = family.Metric(labels=self._labels)

    def _family(self, name: str, text: str, kind: Any) -> Any:
        family = pb_utils.MetricFamily(name=name, description=text, kind=kind)
        self._families.append(family)
        return family

    def publish(self) -> None:
        """Bring every metric up to date."""
        values = self._values()
        for spec in self._specs:
            value = values[spec.name]
            if isinstance(value, Histogram):
                counts, total = value.totals()
                for bound, count in zip((*value.bounds, "+Inf"), counts, strict=True):
                    self._set(f"{spec.name}_{bound}", count, spec.kind == GAUGE)
                self._set(f"{spec.name}_sum", total, False)
                self._set(f"{spec.name}_count", counts[-1], False)
            else:
                self._set(spec.name, value, spec.kind == GAUGE)

    def _set(self, key: str, value: float, gauge: bool) -> None:
        seen = self._seen.get(key, 0.0)
        if gauge and value != seen:
            self._metrics[key].set(value)
        elif not gauge and value > seen:
            self._metrics[key].increment(value - seen)
        self._seen[key] = value

    def _loop(self) -> None:
        while not self._stop.wait(self._period):
            try:
                self.publish()
            except Exception:
                _log.exception("The metrics are no longer published.")
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
