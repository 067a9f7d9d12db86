"""What hostile cases did to a server, for people and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.hostile import ENDS, Attack, Tally
from benchmarks.hostile_send import ANSWERED, CLOSED, LEFT, LOST, TIMEOUT
from benchmarks.soak_watch import Held
from hmer.tables import Table

# What memory may have grown by from the first samples to the last: the larger of the two.
MAY_GROW, MAY_GROW_MB = 0.10, 40.0
MAY_GROW_FDS = 16
_SHOWN = 20  # failures


def memory(samples: Sequence[tuple[int, Held]]) -> dict[str, Any] | None:
    """First and last figures (medians of a few samples) and the slope; ``None`` of too few."""
    if len(samples) < 2:
        return None
    ends = min(ENDS, len(samples) // 2)
    first, last = [h for _, h in samples[:ends]], [h for _, h in samples[-ends:]]
    done = [float(count) for count, _ in samples]
    slope = float(np.polyfit(done, [h.total_mb for _, h in samples], 1)[0])
    names = sorted(last[-1].own_mb)
    return {
        "samples": len(samples),
        "first_mb": _median(first, lambda h: h.total_mb),
        "last_mb": _median(last, lambda h: h.total_mb),
        "most_mb": max(h.total_mb for _, h in samples),
        "mb_per_1000_cases": slope * 1000,
        "first_fds": _median(first, lambda h: h.fds),
        "last_fds": _median(last, lambda h: h.fds),
        "first_shm_mb": _median(first, lambda h: h.shm_mb),
        "last_shm_mb": _median(last, lambda h: h.shm_mb),
        "first_threads": _median(first, lambda h: h.threads),
        "last_threads": _median(last, lambda h: h.threads),
        "own_mb": {
            name: [_median(part, lambda h, n=name: h.own_mb.get(n, 0.0)) for part in (first, last)]
            for name in names
        },
        "all_mb": [round(h.total_mb, 1) for _, h in samples],
    }


def _median(part: Sequence[Held], of: Any) -> float:
    return float(statistics.median(of(one) for one in part))


def memory_failures(found: Mapping[str, Any] | None) -> list[str]:
    """What has grown for good."""
    if found is None or found["samples"] < 2 * ENDS:
        return []
    failures = []
    first, last = found["first_mb"], found["last_mb"]
    if last - first > max(MAY_GROW * first, MAY_GROW_MB):
        failures.append(f"Memory grew for good: from {first:.0f} to {last:.0f} MB.")
    if found["last_fds"] - found["first_fds"] > MAY_GROW_FDS:
        failures.append(
            f"File descriptors grew from {found['first_fds']:.0f} to {found['last_fds']:.0f}."
        )
    return failures


def report_of(attack: Attack, cases: int, seed: int, seconds: float) -> dict[str, Any]:
    """The run, for JSON."""
    found = memory(attack.samples)
    total: dict[str, int] = {}
    for tally in attack.tallies.values():
        for label, count in tally.outcomes.items():
            total[label] = total.get(label, 0) + count
    return {
        "cases": cases,
        "seed": seed,
        "seconds": round(seconds, 1),
        "sent_again": attack.sent_again,
        "outcomes": dict(sorted(total.items(), key=lambda item: -item[1])),
        "kinds": {kind: tally.to_dict() for kind, tally in attack.tallies.items()},
        "memory": found,
        "failures": attack.failures + memory_failures(found),
    }


def table(attack: Attack) -> Table:
    """A row for each kind."""
    rows = [_row(kind, tally) for kind, tally in attack.tallies.items() if tally.outcomes]
    total = Tally()
    for tally in attack.tallies.values():
        total.outcomes += tally.outcomes
        if tally.slowest_s > total.slowest_s:
            total.slowest_s, total.slowest = tally.slowest_s, tally.slowest
    rows.append(_row("all", total))
    header = ("kind", "refused with", "cases", "refused", "answered", "closed or cut", "hung",
              "connection lost", "slowest, s")  # fmt: skip
    return Table("", header, tuple(rows), figures=2)


def _row(kind: str, tally: Tally) -> tuple[str, ...]:
    found = tally.to_dict()
    refused: Mapping[str, int] = found["refused"]
    codes = sorted(refused, key=lambda code: -refused[code])
    shown = ", ".join(codes[:3]) + (f", {len(codes) - 3} more" if len(codes) > 3 else "")
    return (
        kind,
        shown,
        str(found["cases"]),
        str(sum(refused.values())),
        str(found[ANSWERED]),
        str(found[CLOSED] + found[LEFT]),
        str(found[TIMEOUT]),
        str(found[LOST]),
        f"{tally.slowest_s:.2f}",
    )


def lines(report: Mapping[str, Any]) -> list[str]:
    """What the table does not say."""
    found, failures = report["memory"], report["failures"]
    said = [f"{report['sent_again']} times there was no room, and a case was sent again."]
    if found is not None:
        said.append(
            f"Memory (of all processes, without program files) {found['first_mb']:.0f} MB after "
            "the warm-up, "
            f"{found['last_mb']:.0f} MB at the end, {found['most_mb']:.0f} MB at most between "
            f"cases, {found['mb_per_1000_cases']:+.2f} MB a thousand cases; "
            f"{found['first_fds']:.0f} and {found['last_fds']:.0f} open files, "
            f"{found['first_threads']:.0f} and {found['last_threads']:.0f} threads, "
            f"{found['first_shm_mb']:.0f} and {found['last_shm_mb']:.0f} MB of shared memory."
        )
        parts = [f"{n} {a:.0f} and {b:.0f}" for n, (a, b) in found["own_mb"].items()]
        said.append(f"By process, MB: {', '.join(parts)}.")
    if failures:
        said.append(f"{len(failures)} FAILURES (repeat one with --only, and the same --seed):")
        said += [f"  {text}" for text in failures[:_SHOWN]]
    else:
        said.append(
            "Nothing crashed, nothing hung, every good request in between got its usual answer."
        )
    return said
