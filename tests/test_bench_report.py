"""``hmer-bench report``: tables and plots from the JSON files of the other commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result

from benchmarks.cli import main
from benchmarks.figures import percentiles, spread
from benchmarks.machine import describe, machine
from benchmarks.speed_report import section
from benchmarks.targets import Target, table

ABOUT: dict[str, Any] = {
    "cpu": "A <CPU>",
    "cpus": 2,
    "features": ["avx2"],
    "memory_gb": 8.0,
    "load_before": [0.1, 0.2, 0.3],
    "python": "3.11.7",
    "versions": {"hmer": "0.1.0"},
    "command": ["hmer-bench", "compare", "--data", "a b.jsonl"],
}
SPREAD = {"median": 20.0, "q1": 19.0, "q3": 22.0, "n": 3}
LENGTHS = {"1-5": {"n": 2, **percentiles([3.0, 4.0])}, "11-20": {"n": 1, **percentiles([9.0])}}
COST = {"total_flops": 1.5e9, "weight_read_bytes": 19_000_000, "in_out_bytes": 1_000_000}
LIMITS: dict[str, Any] = {
    "threads": {"encoder": 2, "step": 1},
    "peaks": [{"work": "conv3x3", "precision": "fp32", "threads": 2, "gflops": 200.0, "by": "ort"}],
    "bandwidth_gb_s": {"1": 9.5, "2": 12.5},
    "encoder": {
        **{"gflop": 1.5, "ms": 12.0, "limit_ms": 7.5, "gap": 1.6, "against": "200 GFLOP/s"},
        "images": [{"height": 64, "width": 256, "gflops_a_second": 125.0, **COST}],
    },
    "step": {
        "k": 4,
        "gap": 1.5,
        "against": "9.5 GB/s",
        "batches": [
            {
                "rows": 4,
                "positions": 99,
                "ms": 3.0,
                "weights_ms": 2.0,
                "gap": 1.5,
                **COST,
                "total_flops": 9.0e7,
                "gflops_a_second": 30.0,
            }
        ],
    },
}


def contender(title: str) -> dict[str, Any]:
    return {
        "title": title,
        **dict.fromkeys(("throughput", "p50_ms", "p95_ms", "p50_alone_ms"), SPREAD),
        "equal_tokens": 0.9987,
        "ready_s": [3.0, 2.5],
        "pss_mb": {"after": 321.0},
    }


TARGET = Target("throughput / eager", 6.5, False, 7.25, spread([7.0, 7.25, 7.5]))
FILES: dict[str, dict[str, Any]] = {
    "compare": {
        "benchmark": "compare",
        "machine": ABOUT,
        "data": "test.jsonl.gz",
        "input": "png",
        "inputs": 8,
        "rounds": 3,
        "concurrency": 16,
        "contenders": {"naive": contender("naive loop"), "ours": contender("ours, default")},
        "in_process": {"throughput": SPREAD, "p50_alone_ms": SPREAD},
        "ratios": {
            "naive": {"throughput": SPREAD, "p50_alone": None},
            "in process": {"throughput": SPREAD, "p50_alone": SPREAD},
        },
        "targets": [TARGET.to_dict(), Target("memory", 400, True, None, note="no").to_dict()],
        "identity": {
            "concurrency": 32,
            "alone_by_length_ms": LENGTHS,
            "loaded_by_length_ms": LENGTHS,
        },
        "limits": LIMITS,
    },
    "load": {
        "benchmark": "load",
        "machine": {**ABOUT, "load_before": [1.9, 1.0, 0.5]},
        "data": "samples",
        "input": "samples",
        "inputs": 24,
        "levels": [
            {
                "kind": kind,
                "level": level,
                "throughput": 30.0 + level,
                "latency_ms": percentiles([10.0, 20.0 * level]),
                "errors": {"overloaded": 3},
                "rejected": 3,
                "exprate": 0.5,
            }
            for kind, level in (("closed", 1.0), ("closed", 4.0), ("open", 10.0))
        ],
    },
    "latency": {
        "benchmark": "latency",
        "machine": ABOUT,
        "data": "samples",
        "input": "samples",
        "inputs": 24,
        "rounds": 2,
        "paths": {
            "served, grpc": {
                "load_s": 2.5,
                "first_ms": 40.0,
                "ms": percentiles([10.0, 12.0]),
                "mean_ms": 11.0,
                "stages_ms": {"preprocess": 2.0, "encoder": 5.0, "steps": 4.0},
                "by_length_ms": LENGTHS,
                "exprate": 0.25,
            },
            "served, http": {
                "load_s": None,
                "first_ms": 40.0,
                "ms": percentiles([10.0]),
                "mean_ms": 10.0,
                "stages_ms": {},
                "by_length_ms": LENGTHS,
                "exprate": 0.25,
            },
        },
    },
    "limits": {"benchmark": "limits", "machine": ABOUT, "data": "samples", **LIMITS},
}


def report(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, arguments)])


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = []
    for name, document in FILES.items():
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps(document), encoding="utf-8")
    return paths


def test_markdown(files: list[Path], tmp_path: Path) -> None:
    result = report(*files)
    assert result.exit_code == 0, result.output
    for line in (
        "| throughput / eager | >= 6.5 | 7.25 (7.12 to 7.38) | met |  |",
        "| memory | <= 400 | - | - | no |",
        "| 4 at once | 34.0 |",
        "| 10 a second | 40.0 |",
        "| encoder, a picture | 1.50 GFLOP | 12.00 | 7.50 | 1.60 |",
        "Repeat: hmer-bench compare --data 'a b.jsonl'",
    ):
        assert line in result.output
    assert result.output.count("was not idle") == 1  # before the load test
    target = tmp_path / "speed.md"
    assert report(*files, "--markdown", target).output == ""
    assert target.read_text(encoding="utf-8") == result.output


def test_the_page_holds_everything_itself(files: list[Path], tmp_path: Path) -> None:
    target = tmp_path / "speed.html"
    result = report(*files, "--html", target)
    assert result.exit_code == 0, result.output
    page = target.read_text(encoding="utf-8")
    assert page.count("<svg") == 3 + 2 + 2 + 2 + 2
    assert "A &lt;CPU&gt;" in page
    for word in ("src=", "<script", 'href="http'):
        assert word not in page.replace('xlink:href="#', "")
    assert report(*files, "--html", tmp_path / "again.html").exit_code == 0
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page


@pytest.mark.parametrize("name", FILES)
def test_plots_have_labels(name: str) -> None:
    for plot in section(FILES[name], plots=True).plots:
        drawn = ElementTree.fromstring(plot.svg)
        words = " ".join(node.text or "" for node in drawn.iter("{http://www.w3.org/2000/svg}text"))
        assert any(unit in words for unit in ("ms", "milliseconds", "a second")), words


def test_a_target_survives_the_file() -> None:
    again = Target.from_dict(json.loads(json.dumps(TARGET.to_dict())))
    assert again == TARGET
    assert "7.25" in table([again]).text()


def test_the_machine_is_described() -> None:
    found = machine()
    json.dumps(found)
    assert found["cpus"] >= 1
    assert found["versions"]["numpy"]
    assert f"{found['cpus']} CPUs" in describe(found)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "There is no file"),
        ("no json", "is not a JSON file"),
        ('{"benchmark": "juggling"}', "holds no figures of compare, latency, load, limits"),
        ("[]", "holds no figures of"),
    ],
)
def test_sentences(content: str | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    result = report(path)
    assert result.exit_code == 1
    assert said in result.stderr
    nowhere = report(path, "--html", "/nowhere/at/all.html")
    assert "there is no such folder" in nowhere.stderr
