"""The results of ``verify`` for a person."""

from __future__ import annotations

from collections.abc import Sequence

from export.verify_types import Parity
from hmer.tables import render_table

SHOWN = 10  # mismatches that are listed; --json has them all
_TITLES = (
    *("runner", "precision", "check", "images", "tokens"),
    *("differing", "ties", "share %", "allowed %", "score by", ""),
)


def parity_table(results: Sequence[Parity]) -> str:
    """A line a runner and check, then the mismatches."""
    rows = [
        (
            *(result.runtime, result.precision, result.check),
            *(str(result.images), str(result.tokens), str(len(result.mismatches))),
            *(str(result.ties), f"{result.share:.2%}"[:-1], f"{result.allowed:.0%}"[:-1]),
            f"{result.score_difference:.1e}",
            "FAILED" if result.refused else "ok",
        )
        for result in results
    ]
    lines = [render_table(_TITLES, rows, right=set(range(3, 10)))]
    for result in results:
        lines += [
            f"{result.runtime} {result.check}: {mismatch}" for mismatch in result.mismatches[:SHOWN]
        ]
        if len(result.mismatches) > SHOWN:
            lines.append(f"and {len(result.mismatches) - SHOWN} more: see --json.")
    return "\n".join(lines)
