"""The processes of a running server: which of its workers died, or stand still.

Every Python model runs in a worker (the Python backend's stub), a child of the server. Triton 2.51
does not start one again that ended: requests to it fail from then on, those that it had are never
answered, and ``/v2/health/ready`` goes on saying that all is well. So somebody has to look.
"""

from __future__ import annotations

import http.client
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from model_repository.server import EmbeddedServer

_MODEL = re.compile(rb"/models/(\w+)/(\d+)/")
_STUB = b"triton_python_backend_stub"
_STOPPED, _ENDED = "T", "ZX"
# Seconds for which a worker must be missing (one may be a replacement's moment), or stopped.
GONE_S, STOPPED_S = 0.5, 3.0
_LIST_EVERY_S = 5.0  # new versions bring workers
_INDEX_TIMEOUT_S = 0.5


@dataclass(frozen=True)
class Fault:
    """What is wrong: ``kind`` for programs, ``sentence`` for people."""

    kind: str  # such as worker_gone
    sentence: str
    model: str = ""
    pid: int | None = None


@dataclass(frozen=True)
class Worker:
    """One instance of a Python model."""

    pid: int
    model: str
    version: str
    instance: str  # Triton's name of it, such as decode_0_0


class Workers:
    """Looks at the processes of ``server``; ``look`` is cheap enough for several times a second."""

    def __init__(self, server: EmbeddedServer, clock: Callable[[], float] = time.monotonic) -> None:
        self._server, self._clock = server, clock
        self._known: dict[int, Worker] = {}
        self._pid: int | None = None
        self._listed = 0.0
        self._suspected: tuple[Fault | None, float] = None, 0.0

    def look(self) -> Fault | None:
        """What died or was stopped, once it is certain."""
        code = self._server.returncode()
        if code is not None:
            return Fault("server_ended", f"The server ended by itself ({_ending(code)}).")
        pid = self._server.pid
        if pid is None:
            return None
        if pid != self._pid:
            self._pid, self._known, self._suspected = pid, {}, (None, 0.0)
        fault = self._doubt(pid)
        before, since = self._suspected
        if fault is None or fault != before:
            since = self._clock()
        self._suspected = fault, since
        if fault is None:
            return None
        needed = GONE_S if fault.kind == "worker_gone" else STOPPED_S
        return fault if self._clock() - since >= needed else None

    def _doubt(self, pid: int) -> Fault | None:
        states = {pid: _stat(pid)[0]} | {known: _state(known, pid) for known in self._known}
        for known, state in states.items():
            if state == _STOPPED:
                worker = self._known.get(known)
                name = f"worker of {worker.model}" if worker else "server"
                return Fault(
                    "worker_stopped" if worker else "server_stopped",
                    f"The {name} (process {known}) was stopped and does not go on.",
                    worker.model if worker else "",
                    known,
                )
        gone = [w for w in self._known.values() if states[w.pid] in _ENDED]
        if gone or not self._known or self._clock() - self._listed > _LIST_EVERY_S:
            self._listed = self._clock()
            self._known = {worker.pid: worker for worker in workers(pid)}
        kept = {(w.model, w.version, w.instance) for w in self._known.values()}
        # Those of a version that was unloaded, or is being replaced, are not missed.
        missed = [w for w in gone if (w.model, w.version, w.instance) not in kept]
        serving = self._serving() if missed else None
        for worker in missed:
            if serving is None or (worker.model, worker.version) in serving:
                self._known[worker.pid] = worker  # looked at again
                return Fault(
                    "worker_gone",
                    f"The worker of {worker.model} (process {worker.pid}) died.",
                    worker.model,
                    worker.pid,
                )
        return None

    def _serving(self) -> set[tuple[str, str]] | None:
        """Models and versions that the server says it serves; ``None`` if it says nothing."""
        endpoints = self._server.endpoints
        connection = http.client.HTTPConnection(
            endpoints.client_host, endpoints.http_port, timeout=_INDEX_TIMEOUT_S
        )
        try:
            connection.request("POST", "/v2/repository/index", "{}")
            entries = json.loads(connection.getresponse().read())
            return {
                (str(entry["name"]), str(entry.get("version", "1")))
                for entry in entries
                if entry.get("state") == "READY"
            }
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
            return None
        finally:
            connection.close()


def workers(server: int) -> Iterator[Worker]:
    """The workers of the server with this process id."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or _stat(int(folder.name))[1] != server:
            continue
        try:
            parts = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        match = _MODEL.search(b" ".join(parts)) if _STUB in parts[0] else None
        if match is not None:
            model, version = match[1].decode(), match[2].decode()
            instance = next((p.decode() for p in parts if p.startswith(match[1] + b"_")), model)
            yield Worker(int(folder.name), model, version, instance)


def _state(pid: int, parent: int) -> str:
    """The state of a child; X if it is gone, whoever has its number now."""
    state, found = _stat(pid)
    return state if found == parent else "X"


def _stat(pid: int) -> tuple[str, int]:
    """The state, X for no process, and the parent."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "X", 0
    state, parent = text.rpartition(")")[2].split()[:2]
    return state, int(parent)


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"ended by signal {-code}"
