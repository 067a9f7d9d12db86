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
    """At one moment. ``own_mb``: 10^6 bytes by process, named after its model if it runs one:
    what it wrote to and its part of what it shares, without pages of program files, whose part
    changes with who else runs the same programs. ``fds``, ``threads``: of all of them;
    ``shm_mb``: shared memory that they have mapped."""

    own_mb: dict[str, float]
    fds: int
    threads: int
    shm_mb: float
    pids: tuple[int, ...]

    @property
    def total_mb(self) -> float:
        """Memory of all processes."""
        return sum(self.own_mb.values())

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
            memory[name] = memory.get(name, 0.0) + own_bytes(process) / 1e6
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


def own_bytes(process: Any) -> int:
    """Anonymous memory and the process's part of shared memory; elsewhere than on Linux its PSS."""
    rollup = Path(f"/proc/{process.pid}/smaps_rollup")
    with contextlib.suppress(OSError):
        lines = rollup.read_text(encoding="ascii").splitlines()
        sizes = dict(line.split(":", 1) for line in lines[1:])
        if "Pss_Anon" in sizes:  # Linux 5.4
            return sum(int(sizes[key].split()[0]) * 1024 for key in ("Pss_Anon", "Pss_Shmem"))
    full = process.memory_full_info()
    return int(getattr(full, "pss", full.rss))


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
