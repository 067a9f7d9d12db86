"""Gives memory that was freed back to the system, once a minute.

Pictures of all sizes come and go in many threads, and between what stays glibc keeps free pages by
the hundred megabytes, which it gives back only from the end of a heap. ``malloc_trim`` gives back
all of them. It takes some milliseconds, in which who allocates waits.
"""

from __future__ import annotations

import ctypes
import threading
import time

PERIOD_S = 60.0


def trim() -> bool:
    """Give back what is free now; false where the C library cannot (musl, macOS)."""
    found = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if found is None:
        return False
    found(0)
    return True


def keep_small(period: float = PERIOD_S) -> None:
    """Do so every ``period`` seconds, in a thread of its own, as long as the process lives."""

    def work() -> None:
        while trim():
            time.sleep(period)

    threading.Thread(target=work, name="hmer-memory", daemon=True).start()
