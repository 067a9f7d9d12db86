"""What clients notice of a fault: light load on a real server, before, while and after it.

Two kinds of clients ask side by side: *bare* ones, which send every request once, and *patient*
ones with the client's own retries. A request is lost if its client got an error. Of the bare ones
those are told apart that were under way when the fault came (``cut_bare``), and those that were
sent later, while the server was away (``refused_bare``). ``recovery_s`` is the time from the fault
until the bare clients had answers again, and errors no more.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.crohme import Expression
from benchmarks.inputs import shuffled
from client import Recognizer, Retry
from hmer.errors import HmerError, InputError
from hmer.tables import Table

BARE = Retry(attempts=1)
ANSWERED = "answered"
_KINDS = [(False, False), (False, True), (True, False), (True, True)]  # patient, with streams
SHM = Path("/dev/shm")


@dataclass(frozen=True)
class Asked:
    """One request: when it was sent and ended, and the error's code or ``ANSWERED``."""

    sent: float
    done: float
    patient: bool
    stream: bool
    code: str
    sentence: str = ""

    @property
    def lost(self) -> bool:
        """Whether its client got an error."""
        return self.code != ANSWERED


@dataclass(frozen=True)
class Load:
    """How many clients of each kind ask at a time, for how long they wait, and pause after it.

    There are four kinds: bare and patient, each with whole answers and with streams.
    """

    each: int = 1
    timeout: float = 30.0
    pause: float = 0.1


@dataclass
class Crowd:
    """Clients that ask ``url`` from entering to leaving this context."""

    url: str
    expressions: Sequence[Expression]
    load: Load = field(default_factory=Load)
    asked: list[Asked] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Crowd:
        for number, (patient, streams) in enumerate(_KINDS * self.load.each):
            thread = threading.Thread(target=self._ask, args=(number, patient, streams))
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int, patient: bool, streams: bool) -> None:
        order = itertools.cycle(shuffled(len(self.expressions)))
        turns = itertools.islice(order, number, None)
        retry = Retry() if patient else BARE
        with Recognizer(self.url, retry=retry, timeout=self.load.timeout) as recognizer:
            while not self._stop.is_set():
                data = self.expressions[next(turns)].data
                sent, code, sentence = time.monotonic(), ANSWERED, ""
                try:
                    if streams:
                        for _ in recognizer.stream(data):
                            pass
                    else:
                        recognizer.recognize(data)
                except InputError:
                    pass  # the server works, and says so
                except HmerError as error:
                    code, sentence = error.code, str(error)
                self.asked.append(Asked(sent, time.monotonic(), patient, streams, code, sentence))
                self._stop.wait(self.load.pause)

    def wait(self, after: float, *, at_least: float, at_most: float, needed: int = 2) -> None:
        """Until the clients of all kinds were answered again after ``after``.

        At least so many seconds, so that an error may show; ``needed`` answers in a row.
        """
        end = time.monotonic() + at_most
        self._stop.wait(at_least)
        while time.monotonic() < end and not all(
            self._works(after, kind, needed) for kind in _KINDS
        ):
            self._stop.wait(0.1)

    def _works(self, after: float, kind: tuple[bool, bool], needed: int) -> bool:
        found = [a for a in list(self.asked) if (a.patient, a.stream) == kind and a.sent >= after]
        return len(found) >= needed and not any(a.lost for a in found[-needed:])


@dataclass
class Finding:
    """One fault's row. ``extra`` are further figures, ``note`` is a sentence."""

    fault: str
    seconds: float = 0.0
    recovery_s: float | None = None  # None: it did not recover
    asked: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    sentences: dict[str, str] = field(default_factory=dict)  # the first of each code
    cut_bare: int = 0
    refused_bare: int = 0
    lost_patient: int = 0
    longest_s: float = 0.0
    shm_left: int | None = None
    restarts: int = 0
    died: list[str] = field(default_factory=list)  # in the supervisor's words
    missing: str = ""  # why it was not tried
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dict(vars(self))


def seen(fault: str, asked: Sequence[Asked], began: float, ended: float) -> Finding:
    """What the requests that ended after ``began`` tell of a fault at that time."""
    after = [a for a in asked if a.done >= began]
    bare = [a for a in after if not a.patient]
    return Finding(
        fault,
        seconds=ended - began,
        recovery_s=recovery(bare, began),
        asked=len(after),
        codes=dict(Counter(a.code for a in after if a.lost)),
        sentences={a.code: a.sentence for a in reversed(after) if a.lost},
        cut_bare=sum(a.lost and a.sent < began for a in bare),
        refused_bare=sum(a.lost and a.sent >= began for a in bare),
        lost_patient=sum(a.lost for a in after if a.patient),
        longest_s=max((a.done - max(a.sent, began) for a in after), default=0.0),
    )


def recovery(asked: Sequence[Asked], began: float) -> float | None:
    """Seconds from ``began`` to the first answer after the last error; 0 without errors."""
    errors = [a.done for a in asked if a.lost]
    if not errors:
        return 0.0
    answers = [a.done for a in asked if not a.lost and a.done > max(errors)]
    return min(answers) - began if answers else None


def regions(name: str, folder: Path = SHM) -> int:
    """How many regions of shared memory of the server whose folder has this ``name`` there are."""
    return sum(1 for _ in folder.glob(f"{name}-*"))


def table(findings: Sequence[Finding]) -> Table:
    """One row a fault."""
    header = (
        *("fault", "what clients saw", "recovery s", "requests", "cut off, bare", "later, bare"),
        *("lost, with retries", "longest s", "restarts", "regions left"),
    )
    return Table("", header, tuple(_row(finding) for finding in findings), figures=2)


def _row(finding: Finding) -> tuple[str, ...]:
    if finding.missing:
        return (finding.fault, f"not tried: {finding.missing}", *("-",) * 8)
    shown = ", ".join(f"{count} {code}" for code, count in sorted(finding.codes.items()))
    recovered = finding.recovery_s
    return (
        finding.fault,
        "; ".join(part for part in (shown or "no error", finding.note) if part),
        "never" if recovered is None else f"{recovered:.1f}",
        str(finding.asked),
        str(finding.cut_bare),
        str(finding.refused_bare),
        str(finding.lost_patient),
        f"{finding.longest_s:.1f}",
        str(finding.restarts),
        "-" if finding.shm_left is None else str(finding.shm_left),
    )
