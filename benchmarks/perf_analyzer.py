"""NVIDIA's own load generator, ``perf_analyzer``, on the same server with the same pictures.

A second opinion: a program that this project didn't write asks the same requests and counts for
itself. The binary lies in the ``tritonclient`` 2.51 wheel; the two libraries that it needs beside
the C++ ones, ``libb64`` and the CUDA runtime, travel with ``nvidia-pytriton``, so on a machine that
serves nothing else has to be installed. It must not be started beside another load.
"""

from __future__ import annotations

import base64
import csv
import importlib.util
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.crohme import Expression
from benchmarks.load import CLOSED, Level
from client.transport import parse_url
from hmer.contract import INPUT, RECOGNIZE
from hmer.errors import InferenceFailed, MissingDependency
from hmer.tables import Table

NAME = "perf_analyzer"
HOW = (
    "pip install --no-deps --target perf tritonclient==2.51.0, then give "
    "--perf-analyzer perf/bin/perf_analyzer (later wheels carry none)"
)
# The file name that the loader looks for -> how auditwheel renamed it in the serving wheel.
_LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}
_PERCENTILES = ("p50", "p90", "p95", "p99")
_LEAST_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class PerfAnalyzer:
    """The binary, and what it says of itself."""

    path: Path
    version: str


def find(path: Path | None = None) -> PerfAnalyzer:
    """The binary at ``path``, or else the one in ``PATH``.

    Raises ``MissingDependency`` where there is none, or one that cannot be started.
    """
    found = path or (Path(there) if (there := shutil.which(NAME)) else None)
    if found is None or not found.is_file():
        where = f"at {path}" if path else "in PATH"
        raise MissingDependency(f"There is no {NAME} {where}. To have it: {HOW}.")
    with tempfile.TemporaryDirectory() as folder:
        done = _run([str(found.resolve()), "--version"], Path(folder), 30.0)
    said = (done.stdout or done.stderr).strip().splitlines()
    if done.returncode:
        reason = said[-1] if said else f"it ended with {done.returncode}"
        raise MissingDependency(f"{found} does not start here: {reason}")
    return PerfAnalyzer(found.resolve(), said[0] if said else NAME)


def measure(
    binary: PerfAnalyzer,
    url: str,
    expressions: Sequence[Expression],
    level: Level,
    *,
    requests: int,
    timeout: float,
    model: str = RECOGNIZE,
) -> dict[str, Any]:
    """``requests`` requests at ``level``: throughput and percentiles (ms), for JSON.

    The pictures go in their order, round and round. Raises ``InferenceFailed`` with what the
    program said, for example that a request failed: it stops at the first error.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        pictures, report, export = (work / n for n in ("in.json", "report.csv", "export.json"))
        pictures.write_text(json.dumps(input_data(expressions)), encoding="utf-8")
        command = [
            *(str(binary.path), "-m", model, "-i", "grpc", "-u", parse_url(url).authority),
            *("--input-data", str(pictures), "--request-count", str(requests), "--async"),
            *("-f", str(report), "--profile-export-file", str(export), *_load(level)),
        ]
        # Each level is to last no longer than all its requests one after another.
        done = _run(command, work, max(_LEAST_TIMEOUT_S, requests * timeout))
        if done.returncode or not (report.is_file() and export.is_file()):
            said = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
            raise InferenceFailed(f"{NAME} failed at {level.name}: {said[-1][:300]}")
        return {"kind": level.kind, "level": level.value, **figures(report, export)}


def input_data(expressions: Sequence[Expression]) -> dict[str, Any]:
    """The pictures as the program's input data: of a string tensor, its length before the bytes."""
    return {
        "data": [
            {
                INPUT.name: {
                    "b64": base64.b64encode(len(e.data).to_bytes(4, "little") + e.data).decode(
                        "ascii"
                    ),
                    "shape": [1],
                }
            }
            for e in expressions
        ]
    }


def figures(report: Path, export: Path) -> dict[str, Any]:
    """Throughput (requests a second) and latency (ms), of the program's CSV and its ``export``.

    Its percentiles are taken as they are. Its own throughput counts in whole seconds, so it is
    computed from the times that it noted for every request (nanoseconds).
    """
    with report.open(encoding="utf-8", newline="") as stream:
        row = next(csv.DictReader(stream))
    # The export repeats the pictures as if they were text.
    text = export.read_text(encoding="utf-8", errors="replace")
    noted = json.loads(text, strict=False)["experiments"][0]["requests"]
    began = min(request["timestamp"] for request in noted)
    ended = max(request["response_timestamps"][-1] for request in noted)
    return {
        "requests": len(noted),
        "throughput": len(noted) / (ended - began) * 1e9,
        "latency_ms": {p: float(row[f"{p} latency"]) / 1e3 for p in _PERCENTILES},
    }


def table(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> Table:
    """The same levels of the same server, as both programs saw them."""
    rows = []
    for level in theirs:
        key = (level["kind"], level["level"])
        own = next(o for o in ours if (o["kind"], o["level"]) == key)
        for name, found in (("hmer-bench", own), (NAME, level)):
            latency = found["latency_ms"]
            shown = ["-" if latency[p] is None else f"{latency[p]:.1f}" for p in _PERCENTILES]
            rows.append((Level(*key).name, name, f"{found['throughput']:.1f}", *shown))
    header = ("load", "seen by", "requests/s", *(f"{p} ms" for p in _PERCENTILES))
    return Table("The same server, by two programs", header, tuple(rows), figures=2)


def _load(level: Level) -> list[str]:
    if level.kind == CLOSED:
        return ["--concurrency-range", str(int(level.value))]
    rate = f"{level.value:g}"
    return ["--request-rate-range", f"{rate}:{rate}", "--request-distribution", "poisson"]


def _run(command: list[str], work: Path, timeout: float) -> subprocess.CompletedProcess[str]:
    folders = [str(_libraries(work)), str(_bundled() or ""), os.environ.get("LD_LIBRARY_PATH", "")]
    environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(f for f in folders if f)}
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InferenceFailed(f"{NAME} was not done after {timeout:.0f} s.") from None
    except OSError as error:
        raise MissingDependency(f"{command[0]} cannot be started: {error.strerror}.") from error


def _libraries(work: Path) -> Path:
    """A folder with links to the serving wheel's libraries by the names that are looked for."""
    folder, bundled = work / "lib", _bundled()
    folder.mkdir()
    if bundled is not None:
        for name, pattern in _LIBRARIES.items():
            for there in bundled.glob(pattern):
                (folder / name).symlink_to(there)
                break
    return folder


def _bundled() -> Path | None:
    """Where ``nvidia-pytriton`` keeps the libraries of its server."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent.parent / "nvidia_pytriton.libs"
    return folder if folder.is_dir() else None
