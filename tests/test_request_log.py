"""The line that every request leaves in the server's log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field

import pytest

from hmer.decode import SearchOptions
from hmer.errors import BlankImage, HmerError, InferenceFailed, Overloaded
from hmer.serving import JSON, LOG_VARIABLE, TEXT, RequestParameters
from model_repository.recognize.request_log import MAX_ID, RequestLog, open_request_log

HOSTILE = 'a"\n{"event": "request", "id": "forged"}\r\x1b[2J\x00\u2028\u0085\x7f\ud800\U0001f600'


@dataclass
class Ended:
    """A request that was answered."""

    arrived: float = 0.0
    request_id: str = "mine"
    rows: list[bytes] = field(default_factory=lambda: [b"12345", b"678"])
    parameters: RequestParameters = field(
        default_factory=lambda: RequestParameters(9, SearchOptions())
    )
    stages: dict[str, float] = field(default_factory=dict)
    pictures: list[tuple[int, int]] = field(default_factory=lambda: [(40, 20), (60, 30)])
    length: int | None = 7
    cached: bool = False
    first_token_s: float | None = None


def lines_of(job: Ended, error: HmerError | None = None, form: str = JSON) -> bytes:
    written: list[bytes] = []
    RequestLog("recognize", 2, form, written.append).ended(job, error)
    (line,) = written
    return line


def test_an_answer() -> None:
    began = time.monotonic()
    stages = {"preprocess": began - 1.5, "encoder": began - 1.25, "decode": began - 0.5}
    line = json.loads(lines_of(Ended(began - 2.0, stages=stages, first_token_s=0.25)))
    expected = {
        "level": "info", "event": "request", "id": "mine", "model": "recognize", "version": 2,
        "result": "ok", "rows": 2, "bytes": 8, "pictures": [[40, 20], [60, 30]], "tokens": 7,
        "looks": 1, "beam": 1, "cached": False, "queue_ms": 500.0, "preprocess_ms": 250.0,
        "encoder_ms": 750.0, "first_token_ms": 250.0,
    }  # fmt: skip
    assert {name: line[name] for name in expected} == expected
    assert line["ms"] == pytest.approx(2000 - 500 + line["decode_ms"], abs=0.01)
    assert line["decode_ms"] >= 500
    assert line["time"].endswith("Z")
    assert set(line) == {*expected, "ms", "decode_ms", "time"}


@pytest.mark.parametrize(
    ("error", "level"),
    [(BlankImage("No ink."), "warning"), (InferenceFailed("It broke."), "error")],
)
def test_a_failure(error: HmerError, level: str) -> None:
    line = json.loads(lines_of(Ended(), error))
    assert (line["result"], line["level"], line["message"]) == (error.code, level, str(error))
    assert "tokens" not in line


@pytest.mark.parametrize("form", [JSON, TEXT])
def test_nobody_can_write_into_the_log(form: str) -> None:
    line = lines_of(Ended(request_id=HOSTILE), BlankImage(HOSTILE), form)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert all(32 <= byte < 127 for byte in line[:-1])
    if form == JSON:
        found = json.loads(line)
        assert (found["id"], found["message"]) == (HOSTILE, HOSTILE)


def test_a_huge_id_and_a_huge_message_are_cut() -> None:
    line = json.loads(lines_of(Ended(request_id="x" * 10**6), BlankImage("y" * 10**6)))
    assert line["id"] == "x" * MAX_ID
    assert line["id_length"] == 10**6
    assert len(line["message"]) < 1000


def test_many_pictures_make_no_endless_line() -> None:
    assert len(lines_of(Ended(pictures=[(1000, 1000)] * 500))) < 1000


def test_a_request_without_an_id_gets_one() -> None:
    ids = {json.loads(lines_of(Ended(request_id="")))["id"] for _ in range(5)}
    assert len(ids) == 5
    assert all(len(name) == 32 for name in ids)


def test_what_never_set_out_leaves_a_line_too() -> None:
    written: list[bytes] = []
    RequestLog("recognize", 1, TEXT, written.append).refused("r1", Overloaded("Full."))
    (line,) = written
    assert b' warning event="request" id="r1" model="recognize" version=1 ' in line
    assert b'result="overloaded" message="Full."' in line


def test_lines_go_to_the_models_own_stderr() -> None:
    code = (
        "from model_repository.recognize.request_log import open_request_log\n"
        "from hmer.errors import Overloaded\n"
        "open_request_log('recognize', 1).refused('r1', Overloaded('Full.'))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=dict(os.environ, **{LOG_VARIABLE: JSON}), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(run.stderr)["id"] == "r1"
    for off in ({}, {LOG_VARIABLE: ""}):
        assert open_request_log("recognize", 1, off) is None
