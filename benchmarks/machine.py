"""What a measurement was made on: without it a figure cannot be compared with another."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from hmer import __version__
from hmer.runtime import thread_count

PACKAGES = (
    *("numpy", "opencv-python-headless", "onnxruntime", "openvino", "torch"),
    *("nvidia-pytriton", "tritonclient", "grpcio"),
)
_STOLEN = 0.01  # of the CPUs' time: from here on it is said
# What decides how fast a CPU computes convolutions, in the kernel's words.
_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def machine() -> dict[str, Any]:
    """CPU, memory, load and versions, for JSON."""
    info = _cpu_info()
    flags = set(info.get("flags", info.get("Features", "")).split())
    return {
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "cpus": thread_count(0),
        "features": [feature for feature in _FEATURES if feature in flags],
        "memory_gb": _memory_gb(),
        "load_before": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {"hmer": __version__, **versions()},
        "command": [_program(), *sys.argv[1:]],
        "ticks": _ticks(),
    }


def ended(about: dict[str, Any]) -> dict[str, Any]:
    """``about``, the ``machine`` of the start, once all is measured.

    ``stolen``: the share of the CPUs' time since then that the host gave to others, ``None`` where
    the system does not tell.
    """
    found = dict(about)
    before = found.pop("ticks", None)
    found["stolen"] = stolen(before, _ticks())
    return found


def stolen(before: list[int] | None, after: list[int] | None) -> float | None:
    """The share of the time between two readings that was stolen, for a virtual machine."""
    if before is None or after is None or after[1] <= before[1]:
        return None
    return (after[0] - before[0]) / (after[1] - before[1])


def remarks(found: Mapping[str, Any]) -> list[str]:
    """What of ``machine`` and ``ended`` makes the figures leads rather than facts."""
    lines = []
    before, taken = found.get("load_before"), found.get("stolen")
    if before and before[0] > 0.5 * found["cpus"]:
        lines.append(
            f"The machine was not idle before it (load {before[0]:.1f} on {found['cpus']} CPUs): "
            "take the figures as leads."
        )
    if taken is not None and taken > _STOLEN:
        lines.append(
            f"The host gave {taken * 100:.1f} % of the CPUs' time to others meanwhile: take the "
            "figures as leads."
        )
    return lines


def _ticks() -> list[int] | None:
    """Stolen time and all time of the CPUs since the start, in the kernel's ticks."""
    try:
        first = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0]
        # User, nice, system, idle, waiting, two kinds of interrupts, stolen; guests are in user.
        times = [int(value) for value in first.split()[1:9]]
    except (OSError, ValueError):
        return None
    return [times[7], sum(times)] if len(times) == 8 else None


def _program() -> str:
    """What was run, as it is called once installed: ``python -m benchmarks.cli`` is hmer-bench."""
    name = Path(sys.argv[0]).name
    return "hmer-bench" if name == "cli.py" else name


def versions() -> dict[str, str]:
    """The installed ones of ``PACKAGES``."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def describe(found: dict[str, Any]) -> str:
    """``machine`` in one line."""
    with_ = f" ({', '.join(found['features'])})" if found["features"] else ""
    shown = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return (
        f"{found['cpu']}, {found['cpus']} CPUs{with_}, {found['memory_gb']:.0f} GB; "
        f"Python {found['python']}, {shown}"
    )


def _cpu_info() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    first = path.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _memory_gb() -> float:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (ValueError, OSError):
        return 0.0
