"""``hmer-bench report``: what a server stands: soak, overload, faults and hostile input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.cli import main
from benchmarks.faults import Finding
from benchmarks.hostile_send import ANSWERED, CLOSED, LEFT, LOST, TIMEOUT
from benchmarks.overload import figures_of
from benchmarks.overload_loop import Fate, Sent
from benchmarks.report_reliability import RELIABILITY
from benchmarks.speed_report import section
from tests.test_bench_report import ABOUT

HEAD: dict[str, Any] = {"machine": ABOUT, "data": "samples", "input": "samples", "inputs": 3}
ALONE = {"p50": 40.0, "p90": 45.0, "p95": 46.0, "p99": 50.0}


def soak() -> dict[str, Any]:
    series = [
        {
            **{"t": 60.0 * n, "own_mb": {"tritonserver": 90.0, "stub": 200.0 + n}, "fds": 300},
            **{"shm_mb": 12.5, "p50_ms": 40.0, "p95_ms": 90.0, "rate": 8.0 if n else None},
        }
        for n in range(8)
    ]
    return {"benchmark": "soak", **HEAD, "series": series}


def phase(rate: float, refused: int) -> dict[str, Any]:
    names = ("interactive", "batch")
    sent = [
        Sent(t / 10, t / 10, t / 10 + 0.2, names[t % 2], Fate.ANSWERED, False, "")
        for t in range(100)
    ]
    sent += [
        Sent(t / 9, t / 9, t / 9 + 0.01, names[t % 2], Fate.REFUSED, True, "")
        for t in range(refused)
    ]
    glances = [
        {
            **{"t": float(t), "pss_mb": 300.0, "threads": 90, "slots_in_use": 8.0},
            **{"workers_in_use": 9.0, "waiting_for_a_worker": 1.0, "waiting_for_a_slot": 0.0},
        }
        for t in range(9)
    ]
    return {**figures_of(sent, rate, 10.0), "client_cpu": 0.1, "glances": glances}


def overload() -> dict[str, Any]:
    return {
        **{"benchmark": "overload", **HEAD, "capacity": 12.5, "missing": {}},
        **{"usual": phase(10.0, 0), "twice": phase(25.0, 90), "mixed": phase(25.0, 80)},
        **{"alone_before": ALONE, "next": ALONE, "at_the_end": {}},
    }


def faults() -> dict[str, Any]:
    found = [
        Finding("kill-server", 9.0, 4.2, 50, {"server_unavailable": 3}, cut_bare=3, restarts=1),
        Finding("full-shm", missing="not on this system"),
    ]
    return {"benchmark": "faults", **HEAD, "faults": [one.to_dict() for one in found]}


def hostile() -> dict[str, Any]:
    told = {
        **{"cases": 500, "refused": {"bad_ink": 400, "too_large": 90}},
        **dict.fromkeys((CLOSED, LEFT, TIMEOUT, LOST), 0),
        **{"slowest_s": 0.25, "slowest": "x", ANSWERED: 10},
    }
    memory = {
        **{"first_mb": 300.0, "last_mb": 301.0, "most_mb": 310.0, "mb_per_1000_cases": 0.1},
        **{"first_fds": 90.0, "last_fds": 91.0, "first_shm_mb": 1.0, "last_shm_mb": 1.0},
        **{"first_threads": 80.0, "last_threads": 80.0, "samples": 4},
        **{"own_mb": {"stub": [200.0, 201.0]}, "all_mb": [300.0, 310.0, 305.0, 301.0]},
    }
    return {
        **{"benchmark": "hostile", "machine": ABOUT, "cases": 500, "seed": 1, "seconds": 9.0},
        **{
            "kinds": {"ink": told},
            "memory": memory,
            "failures": [],
            "outcomes": {},
            "sent_again": 0,
        },
    }


DOCUMENTS = {"soak": soak, "overload": overload, "faults": faults, "hostile": hostile}
SHOWN = {
    "soak": ("| memory without files, MB | 290.0 | 297.0 | 297.0 | 1.024 |", "p95_ms"),
    "overload": ("twice the capacity", "NOT met", "Capacity 12.5 requests a second"),
    "faults": ("kill-server", "3 server_unavailable", "not tried: not on this system"),
    "hostile": ("bad_ink, too_large", "| 490 |", "301 MB at the end"),
}
DRAWN = {
    "soak": ("memory, MB", "tritonserver", "shared memory", "latency, ms", "minutes"),
    "overload": ("accepted: latency, ms", "refused, %", "bound of p99", "slots in use", "threads"),
    "hostile": ("cases", "memory of all processes"),
}


def test_every_kind_is_here() -> None:
    assert set(DOCUMENTS) == set(RELIABILITY)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_section(name: str, tmp_path: Path) -> None:
    path, html, text = tmp_path / f"{name}.json", tmp_path / "page.html", tmp_path / "page.md"
    path.write_text(json.dumps(DOCUMENTS[name]()), encoding="utf-8")
    result = CliRunner().invoke(
        main, ["report", str(path), "--html", str(html), "--markdown", str(text)]
    )
    assert result.exit_code == 0, result.output
    for said in SHOWN[name]:
        assert said in text.read_text(encoding="utf-8"), said
    page = html.read_text(encoding="utf-8")
    for word in DRAWN.get(name, ()):
        assert word in page, word
    assert ("<svg" in page) == (name in DRAWN)


def test_without_a_series_there_is_no_plot() -> None:
    assert section({**soak(), "series": []}, plots=True).plots == []
    found = hostile()
    found["memory"] = None
    assert section(found, plots=True).plots == []
