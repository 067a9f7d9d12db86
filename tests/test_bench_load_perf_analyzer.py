"""``perf_analyzer`` beside ``hmer-bench load``: a stand-in that speaks its command line."""

from __future__ import annotations

import base64
import json
import stat
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import perf_analyzer
from benchmarks.cli import main
from benchmarks.crohme import Expression
from benchmarks.load import CLOSED, OPEN, Level
from benchmarks.perf_analyzer import find, input_data, measure, table
from hmer.errors import InferenceFailed, MissingDependency
from tests.bench_fixtures import Fake

EXPRESSIONS = [Expression("a", ("x",), b"picture"), Expression("b", ("y",), b"\xff\x00")]
# Writes what the real one (2.51.0) wrote, the pictures among it as if they were text.
STAND_IN = """\
import json, sys
if "--version" in sys.argv:
    print("Perf Analyzer Version 2.51.0 (commit unknown)")
    sys.exit()
given = dict(zip(sys.argv[1:], sys.argv[2:]))
if "--concurrency-range" in given and given["--concurrency-range"] == "99":
    sys.exit("error: Failed to maintain requested inference load")
asked = json.load(open(given["--input-data"]))["data"]
assert len(asked) in (2, 4) and given["-m"] == "recognize" and "--async" in sys.argv
head = "Concurrency,Inferences/Second,Client Send,p50 latency,p90 latency,p95 latency,p99 latency"
open(given["-f"], "w").write(head + "\\n4,21.3,10,122693,222536,310562,357234\\n")
requests = [
    {"timestamp": 10**18 + i * 10**9, "response_timestamps": [10**18 + i * 10**9 + 5 * 10**8]}
    for i in range(int(given["--request-count"]))
]
text = json.dumps({"experiments": [{"requests": requests}], "input": "PICTURE"})
text = text.encode().replace(b"PICTURE", b"\\x89\\n\\xff")
open(given["--profile-export-file"], "wb").write(text)
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    path = tmp_path / "perf_analyzer"
    path.write_text(f"#!{sys.executable}\n{STAND_IN}", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_it_is_found_and_says_its_version(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert find(stand_in).version == "Perf Analyzer Version 2.51.0 (commit unknown)"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find().path == stand_in
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingDependency, match=r"in PATH. To have it: pip install .*2.51.0"):
        find()
    with pytest.raises(MissingDependency, match="no perf_analyzer at"):
        find(tmp_path / "nothing")


def test_one_that_does_not_start(tmp_path: Path) -> None:
    broken = tmp_path / "perf_analyzer"
    broken.write_text("#!/bin/sh\necho libb64.so.0d: cannot open >&2\nexit 127\n", "utf-8")
    broken.chmod(0o755)
    with pytest.raises(MissingDependency, match="does not start here: libb64"):
        find(broken)
    broken.chmod(0o644)
    with pytest.raises(MissingDependency, match="cannot be started"):
        find(broken)


def test_the_libraries_that_it_needs_are_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundled = tmp_path / "wheel"
    bundled.mkdir()
    for name in ("libb64-98cb6333.so.0d", "libcudart-09529672.so.12.6.77"):
        (bundled / name).touch()
    monkeypatch.setattr(perf_analyzer, "_bundled", lambda: bundled)
    folder = perf_analyzer._libraries(tmp_path)
    assert {p.name: p.resolve().name for p in folder.iterdir()} == {
        "libb64.so.0d": "libb64-98cb6333.so.0d",
        "libcudart.so.12": "libcudart-09529672.so.12.6.77",
    }


def test_its_input_is_the_pictures() -> None:
    """A string tensor's bytes with their length before them, as Triton has them."""
    (first, second) = input_data(EXPRESSIONS)["data"]
    assert base64.b64decode(first["input"]["b64"]) == b"\x07\0\0\0picture"
    assert base64.b64decode(second["input"]["b64"]) == b"\x02\0\0\0\xff\x00"
    assert first["input"]["shape"] == [1]


def test_figures_of_a_level(stand_in: Path) -> None:
    binary = find(stand_in)
    found = measure(binary, "localhost:1", EXPRESSIONS, Level(CLOSED, 4), requests=4, timeout=1.0)
    # Four requests from 0 to 3.5 s, not its own count in whole seconds.
    assert found["throughput"] == pytest.approx(4 / 3.5)
    assert found["latency_ms"]["p95"] == pytest.approx(310.562)
    assert (found["kind"], found["level"], found["requests"]) == (CLOSED, 4, 4)
    with pytest.raises(InferenceFailed, match="failed at 99 at once: error: Failed to maintain"):
        measure(binary, "x:1", EXPRESSIONS, Level(CLOSED, 99), requests=4, timeout=1.0)


def test_loads() -> None:
    assert perf_analyzer._load(Level(CLOSED, 8.0)) == ["--concurrency-range", "8"]
    assert perf_analyzer._load(Level(OPEN, 2.5)) == [
        *("--request-rate-range", "2.5:2.5", "--request-distribution", "poisson")
    ]


def test_both_side_by_side(stand_in: Path, fake: Fake, pack: Path) -> None:
    arguments = ("--url", fake.url, "--data", str(pack), "--input", "strokes", "--requests", "4")
    more = ("--concurrency", "2,99", "--perf-analyzer", str(stand_in))
    result = CliRunner().invoke(main, ["load", *arguments, *more, "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [level["level"] for level in report["perf_analyzer"]["levels"]] == [2.0]
    assert "Failed to maintain" in report["missing"]["perf_analyzer, 99 at once"]
    shown = table(report["levels"], report["perf_analyzer"]["levels"]).text()
    assert "perf_analyzer" in shown
    assert "hmer-bench" in shown
    printed = CliRunner().invoke(main, ["load", *arguments, *more])
    assert "The same server, by two programs" in printed.output
