"""Freed memory goes back to the system."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from model_repository import memory

# In a process of its own: what others have allocated here would lie between.
_PROGRAM = """
import time
from model_repository import memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6

kept = []
for _ in range(4000):  # what is freed lies between what stays
    large = bytearray(30_000)
    kept.append(bytearray(2_000))
    kept.append(large)
kept = kept[::2]
before = resident()
{act}
print(before - resident())
"""


def freed(act: str) -> float:
    """Megabytes that ``act`` gives back."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(act=act)], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def test_free_pages_between_what_stays_are_given_back() -> None:
    if not memory.trim():
        pytest.skip("this C library has no malloc_trim")
    assert freed("pass") < 10
    assert freed("memory.trim()") > 50


def test_it_is_done_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = threading.Semaphore(0)
    left = [True, True, False]

    def trim() -> bool:
        calls.release()
        return left.pop(0)

    monkeypatch.setattr(memory, "trim", trim)
    memory.keep_small(0.001)
    for _ in range(3):
        assert calls.acquire(timeout=10)
    time.sleep(0.02)
    assert not calls.acquire(blocking=False), "it goes on where it cannot"
