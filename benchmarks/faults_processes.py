"""The processes of a server that a fault is done to, and the ways to do it."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.process_tree import _psutil
from benchmarks.served import ServedProcess
from hmer.errors import InferenceFailed

# Runs what follows with a small /dev/shm, or another folder, of its own.
_MOUNT = 'mount -t tmpfs -o size="$1" tmpfs "$2" && shift 2 && exec "$@"'
_SEIZE, _INTERRUPT = 0x4206, 0x4207  # of ptrace


def server_pid(server: ServedProcess) -> int:
    """The process id of ``tritonserver`` below ``hmer-serve``, the present one."""
    psutil = _psutil()
    for child in psutil.Process(server.pid).children():
        if child.name() == "tritonserver":
            return int(child.pid)
    raise InferenceFailed("The server has no process: it ended before the fault.")


def worker_pid(server: ServedProcess, model: str) -> int:
    """The process id of the worker of ``model``."""
    psutil = _psutil()
    for child in psutil.Process(server_pid(server)).children():
        try:
            line = " ".join(child.cmdline())
        except psutil.Error:
            continue
        if re.search(rf"stub \S+/models/{model}/\d+/", line):
            return int(child.pid)
    raise InferenceFailed(f"The server has no worker of {model}.")


def send(server: ServedProcess, model: str, number: signal.Signals) -> None:
    """Send a signal to the worker of ``model``, or to the server where it is ``""``."""
    os.kill(worker_pid(server, model) if model else server_pid(server), number)


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Hold every thread of a process as a debugger does; it is not "stopped" for who looks.

    It stands for a worker that hangs in itself, which cannot be brought about from outside.
    """
    held, release = threading.Event(), threading.Event()
    failed: list[OSError] = []

    def hold() -> None:  # all by one thread: it is the tracer, and lets go when it ends
        libc = ctypes.CDLL(None, use_errno=True)
        for thread in map(int, os.listdir(f"/proc/{pid}/task")):
            for request in (_SEIZE, _INTERRUPT):
                if libc.ptrace(request, thread, None, None) != 0:
                    failed.append(OSError(ctypes.get_errno(), "ptrace"))
        held.set()
        release.wait()

    holder = threading.Thread(target=hold, name="hmer-tracer", daemon=True)
    holder.start()
    held.wait()
    try:
        if failed:
            raise InferenceFailed(f"A process cannot be held here ({failed[0]}).")
        yield
    finally:
        release.set()
        holder.join()


def small_mount(size: str, folder: str) -> list[str]:
    """A command that runs another one with a tmpfs of ``size`` at ``folder``, for it alone."""
    return ["unshare", "--mount", "sh", "-c", _MOUNT, "sh", size, folder]


def no_mounts() -> str:
    """Why mount namespaces cannot be had here; empty if they can."""
    if shutil.which("unshare") is None:
        return "there is no unshare"
    tried = subprocess.run(
        [*small_mount("1m", "/dev/shm"), "true"], capture_output=True, text=True, check=False
    )
    return "" if tried.returncode == 0 else "this user may not make mount namespaces"


def fill(folder: str) -> Path:
    """Fill the disk of ``folder`` with one file, which is returned."""
    path = Path(folder, "filler")
    with path.open("wb", buffering=0) as stream:
        for size in (2**16, 2**12, 1):
            try:
                while True:
                    stream.write(b"x" * size)
            except OSError:
                continue
    return path


def faketime() -> Path | None:
    """The library that shows a process another clock (``pip install libfaketime``)."""
    import importlib.util

    spec = importlib.util.find_spec("libfaketime")
    if spec is None or spec.origin is None:
        return None
    return next(Path(spec.origin).parent.rglob("libfaketime.so*"), None)
