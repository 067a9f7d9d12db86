"""Where a fault is shown: a real server under load of its own, and what is looked at."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.crohme import Expression
from benchmarks.faults import Crowd, Finding, Load, regions, seen
from benchmarks.faults_processes import fill, small_mount
from benchmarks.served import ServedProcess

SUPERVISED = ("--supervise", "--log-format", "json")
# A killed worker is noticed within a second; what shows later than this is not the fault's.
_SHOWS_S = 3.0

# Does the fault; what it returns is the row's note.
Act = Callable[[ServedProcess], str | None]


@dataclass(frozen=True)
class Stage:
    """What every fault is tried with. ``work``: a folder for copies. ``at_most``: seconds a fault
    may take until all is well."""

    repository: Path
    expressions: Sequence[Expression]
    work: Path
    load: Load = field(default_factory=Load)
    at_most: float = 90.0
    shows: float = _SHOWS_S

    def observe(
        self,
        fault: str,
        act: Act,
        *,
        repository: Path | None = None,
        options: Sequence[str] = SUPERVISED,
        environment: Mapping[str, str] | None = None,
        after: Act | None = None,
    ) -> Finding:
        """Start a server, ask it, do the fault, and wait until all clients are answered again.

        ``after`` is called when nobody asks any more; the server still runs.
        """
        served = ServedProcess(
            repository or self.repository, options, environment=environment or {}
        )
        with served as server:
            finding = self._ask(server, fault, act, after)
        finding.shm_left = regions(_name(server))
        return finding

    def _ask(
        self, server: ServedProcess, fault: str, act: Act, after: Act | None = None
    ) -> Finding:
        with Crowd(server.grpc, self.expressions, self.load) as crowd:
            crowd.wait(0.0, at_least=0.2, at_most=self.at_most)
            began = time.monotonic()
            notes = [act(server)]
            crowd.wait(began, at_least=self.shows, at_most=self.at_most)
        finding = seen(fault, crowd.asked, began, time.monotonic())
        if after is not None:
            notes.append(after(server))
        finding.note = "; ".join(note for note in notes if note)
        finding.restarts = server.said().count('"event": "restarted"')
        finding.died = died(server.said())
        return finding

    def observe_with_little_memory(self, fault: str, size: str, seconds: float) -> Finding:
        """A server with a /dev/shm of its own, which is full for so many ``seconds``."""
        prefix = small_mount(size, "/dev/shm")
        with ServedProcess(self.repository, SUPERVISED, prefix=prefix) as server:
            # Its folder by a descriptor, which outlives the processes that see it.
            folder = os.open(f"/proc/{server.pid}/root/dev/shm", os.O_RDONLY | os.O_DIRECTORY)
            with contextlib.ExitStack() as stack:
                stack.callback(os.close, folder)
                place = f"/proc/self/fd/{folder}"

                def act(_: ServedProcess) -> None:
                    filler = fill(place)
                    time.sleep(seconds)
                    filler.unlink()

                finding = self._ask(server, fault, act)
                name = _name(server)
                server.__exit__(None, None, None)
                finding.shm_left = sum(1 for n in os.listdir(folder) if n.startswith(name))
        return finding


def died(said: str) -> list[str]:
    """What the supervisor said of what died."""
    found = []
    for line in said.splitlines():
        if '"event": "died"' in line:
            found.append(str(json.loads(line)["message"]).partition(" Restart ")[0])
    return found


def _name(server: ServedProcess) -> str:
    """The name of the server's temporary folder, with which its shared memory begins."""
    return Path(str(server.about["log"])).parent.name
