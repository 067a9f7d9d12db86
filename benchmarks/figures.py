"""Numbers from samples: percentiles, medians with their spread, and how they are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

PERCENTILES = (50, 90, 95, 99)
# How many samples a percentile needs before a table shows it: so many that one lies above it.
NEEDED = {f"p{p}": 100 // (100 - p) for p in PERCENTILES}


def percentiles(values: Sequence[float]) -> dict[str, float | None]:
    """``p50`` to ``p99``, interpolated linearly; ``None`` without values."""
    if not values:
        return {f"p{p}": None for p in PERCENTILES}
    found = np.percentile(np.asarray(values, np.float64), PERCENTILES)
    return {f"p{p}": float(value) for p, value in zip(PERCENTILES, found, strict=True)}


def shown(found: Mapping[str, float | None], name: str, n: int | None, digits: int = 1) -> str:
    """The percentile ``name`` of ``n`` samples, for tables: ``-`` where they are too few for it.

    ``n``: ``None`` where it was not written down.
    """
    value = found[name]
    if value is None or (n is not None and n < NEEDED[name]):
        return "-"
    return f"{value:.{digits}f}"


def withheld(counts: Sequence[int | None]) -> list[str]:
    """A line about the percentiles that ``shown`` leaves out of samples so many."""
    least = min((n for n in counts if n), default=None)
    names = [name for name, needed in NEEDED.items() if least is not None and least < needed]
    if not names:
        return []
    needed = " and ".join(f"{name} needs {NEEDED[name]}" for name in names)
    return [f"A percentile of too few answers is left out (-): {needed}; the fewest were {least}."]


@dataclass(frozen=True)
class Spread:
    """The median of some rounds, and the quartiles that half of them lie between."""

    median: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict[str, float]:
        """For JSON."""
        return {"median": self.median, "q1": self.low, "q3": self.high, "n": self.n}

    def text(self, digits: int = 2) -> str:
        """``1.52 (1.49 to 1.58)``, for tables."""
        low, middle, high = (f"{v:.{digits}f}" for v in (self.low, self.median, self.high))
        return middle if self.n == 1 else f"{middle} ({low} to {high})"


def spread(values: Sequence[float | None]) -> Spread | None:
    """Median and quartiles of the rounds that have a value; ``None`` if none has."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    low, middle, high = np.percentile(np.asarray(there, np.float64), (25, 50, 75))
    return Spread(float(middle), float(low), float(high), len(there))


def ratios(upper: Sequence[float | None], lower: Sequence[float | None]) -> list[float | None]:
    """``upper`` by ``lower``, round by round: what slows a whole round cancels."""
    return [a / b if a is not None and b else None for a, b in zip(upper, lower, strict=True)]
