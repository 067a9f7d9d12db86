"""What a server and its children take: CPU seconds and memory, without counting pages twice."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from hmer.errors import MissingDependency


def _psutil() -> Any:
    try:
        return import_module("psutil")
    except ImportError as error:
        raise MissingDependency(
            "CPU and memory of a server are read with psutil. Install it with: "
            "pip install 'hmer[bench]'"
        ) from error


@dataclass(frozen=True)
class Usage:
    """``cpu_s`` since the processes began; ``pss_mb`` by process name, 10^6 bytes.

    The proportional set size counts a page that n processes share as 1/n in each.
    """

    cpu_s: float
    pss_mb: dict[str, float]

    @property
    def total_mb(self) -> float:
        """Of all processes."""
        return sum(self.pss_mb.values())


def cpu_seconds(pid: int) -> float:
    """User and system time of ``pid`` and everything below it."""
    psutil, total = _psutil(), 0.0
    for process in processes(pid):
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


def usage(pid: int) -> Usage:
    """CPU and memory of ``pid`` and everything below it; processes that are gone count nothing."""
    psutil, memory = _psutil(), dict[str, float]()
    for process in processes(pid):
        try:
            name, full = process.name(), process.memory_full_info()
        except psutil.Error:
            continue
        pss = getattr(full, "pss", full.rss)
        memory[name] = memory.get(name, 0.0) + pss / 1e6
    return Usage(cpu_seconds(pid), memory)


def threads(pid: int) -> int:
    """How many threads ``pid`` and everything below it have."""
    psutil, total = _psutil(), 0
    for process in processes(pid):
        try:
            total += int(process.num_threads())
        except psutil.Error:
            continue
    return total


def available_mb() -> float:
    """Memory that programs can still take on this machine, in 10^6 bytes."""
    return float(_psutil().virtual_memory().available) / 1e6


def listener(host: str, port: int) -> int | None:
    """The process of this user that listens on ``port``; ``None`` for another machine's."""
    psutil = _psutil()
    try:
        address = socket.gethostbyname(host)
    except OSError:
        return None
    if not address.startswith("127."):
        return None
    for process in psutil.process_iter():
        try:
            connections = process.net_connections(kind="tcp")
        except psutil.Error:
            continue
        for found in connections:
            if found.status == psutil.CONN_LISTEN and found.laddr.port == port:
                return int(process.pid)
    return None


def processes(pid: int) -> list[Any]:
    """``pid`` and everything below it, as psutil's; none if it is gone."""
    psutil = _psutil()
    try:
        top = psutil.Process(pid)
        return [top, *top.children(recursive=True)]
    except psutil.Error:
        return []
