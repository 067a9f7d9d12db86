"""What a server holds on to, process by process: memory, files, threads, shared memory."""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.process_tree import processes

_SHARED = "/dev/shm/"


@dataclass(frozen=True)
class Held:
    """At one moment. ``pss_mb``: 10^6 bytes by process, named after its model if it runs one;
    ``fds``, ``threads``: of all of them; ``shm_mb``: shared memory that they have mapped."""

    pss_mb: dict[str, float]
    fds: int
    threads: int
    shm_mb: float
    pids: tuple[int, ...]

    @property
    def total_mb(self) -> float:
        """Memory of all processes."""
        return sum(self.pss_mb.values())

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without the process ids."""
        found = asdict(self)
        del found["pids"]
        return found


def held(pid: int) -> Held:
    """By ``pid`` and everything below it. Processes that end meanwhile count nothing."""
    memory: dict[str, float] = {}
    regions: dict[str, int] = {}
    fds = threads = 0
    pids = []
    for process in processes(pid):
        with contextlib.suppress(OSError, RuntimeError, _gone()):
            name = named(process.name(), process.cmdline())
            full = process.memory_full_info()
            memory[name] = memory.get(name, 0.0) + getattr(full, "pss", full.rss) / 1e6
            fds += process.num_fds()
            threads += process.num_threads()
            regions |= mapped(Path(f"/proc/{process.pid}/maps"))
            pids.append(int(process.pid))
    return Held(memory, fds, threads, sum(regions.values()) / 1e6, tuple(pids))


def named(name: str, command: list[str]) -> str:
    """A process's name; that of its model for one of the Python backend's."""
    for part in command:
        path = Path(part)
        if path.name == "model.py":
            return path.parent.parent.name  # models/NAME/VERSION/model.py
    return "hmer-serve" if any("model_repository.serve" in p for p in command) else name


def mapped(maps: Path) -> dict[str, int]:
    """The shared memory that a process has mapped: bytes that are allocated, by path."""
    found = {}
    for line in maps.read_text(encoding="utf-8", errors="replace").splitlines():
        path = line.partition(_SHARED)[2]
        if path and not path.endswith("(deleted)"):
            with contextlib.suppress(OSError):
                found[path] = os.stat(_SHARED + path).st_blocks * 512
    return found


def _gone() -> type[Exception]:
    error: type[Exception] = import_module("psutil").Error
    return error
