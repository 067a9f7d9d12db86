"""What an overload test asks of a server, and whether it was so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.overload_loop import Fate
from benchmarks.overload_watch import series, thirds
from hmer.serving import BATCH, INTERACTIVE
from hmer.tables import Table

RATIO = 2.0  # of the accepted requests' p99, at twice the capacity to that at 80 % of it
GROWTH = 1.1  # of memory and threads from the second third of a phase to the last
_QUEUE = ("waiting_for_a_worker", "workers_in_use")
_FEW = 4.0  # requests: below it a longer queue is chance
_LATE = 0.1  # of the usual p99, by which the generator may miss its times


@dataclass(frozen=True)
class Verdict:
    """A bound and what was found; ``met`` is ``None`` where it could not be looked at."""

    name: str
    found: str
    bound: str
    met: bool | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"name": self.name, "found": self.found, "bound": self.bound, "met": self.met}


def lost(report: Mapping[str, Any]) -> int:
    """Requests of all phases that were accepted and failed."""
    return sum(int(report[name][Fate.LOST.value]) for name in _phases(report))


def verdicts(report: Mapping[str, Any]) -> list[Verdict]:
    """All of them, for the phases of a ``report``."""
    twice, usual = report["twice"], report["usual"]
    p99 = (usual["latency_ms"]["p99"], twice["latency_ms"]["p99"])
    alone = report["alone_before"]["p50"]
    found = [
        _ratio("p99 of accepted requests, twice the capacity to 80 %", p99[1], p99[0], RATIO),
        Verdict("accepted and lost", str(lost(report)), "0", lost(report) == 0),
        _hints(report),
        _at_most("a refusal comes in, p99 ms", _most_refusal(report), usual["latency_ms"]["p50"]),
        _growth("requests in the server", twice, *_QUEUE, slack=_FEW),
        _growth("memory, PSS in MB", twice, "pss_mb"),
        _growth("threads", twice, "threads", slack=_FEW),
        *_priorities(report, p99[0]),
        _ratio("the next request, one at a time, to before", report["next"]["p50"], alone, RATIO),
        _at_rest(report),
    ]
    late = max(report[name]["late_p99_ms"] or 0.0 for name in _phases(report))
    bound = None if p99[0] is None else _LATE * p99[0]
    return [*found, _at_most("the generator's own lateness, p99 ms", late, bound)]


def table(found: list[Verdict]) -> Table:
    """One row a verdict."""
    words = {True: "met", False: "NOT met", None: "not looked at"}
    rows = tuple((v.name, v.found, v.bound, words[v.met]) for v in found)
    return Table("Verdicts", ("what", "found", "bound", ""), rows)


def _phases(report: Mapping[str, Any]) -> list[str]:
    return [name for name in ("usual", "twice", "mixed") if name in report]


def _ratio(name: str, above: float | None, below: float | None, bound: float) -> Verdict:
    ratio = above / below if above is not None and below else None
    found = "-" if ratio is None else f"{ratio:.2f} ({above:.0f} / {below:.0f} ms)"
    return Verdict(name, found, f"<= {bound:g}", None if ratio is None else ratio <= bound)


def _at_most(name: str, value: float | None, bound: float | None) -> Verdict:
    if value is None or bound is None:
        return Verdict(name, "-", "-", None)
    return Verdict(name, f"{value:.1f}", f"<= {bound:.1f}", value <= bound)


def _most_refusal(report: Mapping[str, Any]) -> float | None:
    values = [report[name]["refusal_ms"]["p99"] for name in _phases(report)]
    return max((value for value in values if value is not None), default=None)


def _hints(report: Mapping[str, Any]) -> Verdict:
    refused, hints = (
        sum(int(report[name][key]) for name in _phases(report)) for key in ("refused", "hints")
    )
    met = hints == refused if refused else None
    return Verdict("refusals that say when to try again", f"{hints} of {refused}", "all", met)


def _growth(name: str, phase: Mapping[str, Any], *keys: str, slack: float = 0.0) -> Verdict:
    """Whether the last third of ``phase`` is like the one before it."""
    values = thirds(series(phase["glances"], *keys))
    bound = f"<= {GROWTH:g} times" + f" + {slack:g}" * bool(slack)
    title = f"{name}, from the middle third of the overload to the last"
    if values is None:
        return Verdict(title, "-", bound, None)
    middle, last = values
    met = last <= GROWTH * middle + slack
    return Verdict(title, f"{middle:.1f} -> {last:.1f}", bound, met)


def _priorities(report: Mapping[str, Any], usual: float | None) -> list[Verdict]:
    parts = report.get("mixed", {}).get("priorities", {})
    if not {INTERACTIVE, BATCH} <= set(parts):
        return []
    first, second = (parts[name] for name in (INTERACTIVE, BATCH))
    shares = [100 * part["refused_share"] for part in (first, second)]
    return [
        Verdict(
            "mixed: share refused, interactive against batch",
            f"{shares[0]:.1f} % / {shares[1]:.1f} %",
            "less",
            shares[0] < shares[1],
        ),
        _ratio("mixed: p99 of interactive requests to 80 %", first["latency_ms"]["p99"], usual,
               RATIO),
    ]  # fmt: skip


def _at_rest(report: Mapping[str, Any]) -> Verdict:
    names = (*_QUEUE, "slots_in_use", "waiting_for_a_slot")
    left = [report["at_the_end"].get(name) for name in names]
    if None in left:
        return Verdict("slots and queues after it", "-", "0", None)
    total = sum(float(value) for value in left if value is not None)
    return Verdict("slots and queues after it", f"{total:g}", "0", total == 0)
