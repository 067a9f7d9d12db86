"""What a report may not claim: percentiles of few answers, a busy client, a shared machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from benchmarks import latency, load, speed_plots
from benchmarks.accuracy_cli import unreadable
from benchmarks.cli import main
from benchmarks.compare_cli import spread_notes
from benchmarks.contenders import fixed
from benchmarks.crohme import Expression
from benchmarks.figures import percentiles, shown, withheld
from benchmarks.latency_cli import _as_served as as_served
from benchmarks.latency_cli import _split as split
from benchmarks.machine import ended, machine, remarks, stolen
from benchmarks.repositories import Chosen
from benchmarks.speed_report import section
from hmer.bundle import Bundle
from tests.bench_fixtures import Fake, run
from tests.test_bench_report import ABOUT, FILES


@pytest.mark.parametrize(("name", "least"), [("p50", 2), ("p90", 10), ("p95", 20), ("p99", 100)])
def test_a_percentile_needs_a_sample_above_it(name: str, least: int) -> None:
    found = percentiles([float(n) for n in range(least)])
    assert shown(found, name, least) != "-"
    assert shown(found, name, least - 1) == "-"
    assert shown(found, name, None) != "-"  # an older file does not tell how many
    assert shown(percentiles([]), name, 0) == "-"


def test_what_is_withheld_is_said() -> None:
    assert withheld([100, 200]) == withheld([]) == withheld([None]) == []
    (line,) = withheld([200, 40])
    assert "p99 needs 100" in line
    assert "p95" not in line
    assert "40" in line


def level(**changes: Any) -> dict[str, Any]:
    return {
        "kind": load.OPEN,
        "level": 10.0,
        "requests": 120,
        "answered": 120,
        "throughput": 9.5,
        "latency_ms": {"p50": 10.0, "p90": 20.0, "p95": 30.0, "p99": 77.7},
        "late_p99_ms": 1.0,
        "client_cpu": 0.2,
        "errors": {},
        "rejected": 0,
        "exprate": 0.5,
        "unstable": [],
        **changes,
    }


def test_a_level_of_few_answers_shows_no_p99() -> None:
    assert "77.7" in load.table([level()]).markdown()
    few = level(answered=60)
    assert "77.7" not in load.table([few]).markdown()
    assert "30.0" in load.table([few]).markdown()
    assert load.notes([level()]) == []
    assert any("p99 needs 100" in line for line in load.notes([few]))


def test_the_load_curve_leaves_out_what_the_table_does() -> None:
    def words(found: dict[str, Any]) -> list[str | None]:
        drawn = ElementTree.fromstring(speed_plots.load_curve([found], load.OPEN))
        return [node.text for node in drawn.iter("{http://www.w3.org/2000/svg}text")]

    assert "p99" in words(level())
    assert "p99" not in words(level(answered=60))
    assert "p95" in words(level(answered=60))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"client_cpu": 0.95}, "load generator itself used 0.95 of a CPU"),
        ({"late_p99_ms": 40.0}, "sent up to 40 ms late"),
        ({"unstable": ["a", "b"]}, "in more than one way: a, b"),
    ],
)
def test_a_client_that_limits_is_named(changes: dict[str, Any], said: str) -> None:
    (line,) = load.notes([level(**changes)])
    assert line.startswith("10 a second: ")
    assert said in line


def test_rows_a_step_are_shown_of_a_level_too_short_for_a_glance() -> None:
    metrics = {"slots_in_use": None, "rows_a_step": 3.46}
    assert "| 3.5 |" in load.table([level(metrics=metrics)]).markdown()


def test_time_that_the_host_took_is_said() -> None:
    assert stolen([10, 1000], [40, 2000]) == pytest.approx(0.03)
    assert stolen(None, [1, 2]) is stolen([1, 2], [1, 2]) is None
    quiet = {"cpus": 2, "load_before": [0.1, 0.1, 0.1], "stolen": 0.001}
    assert remarks(quiet) == []
    (line,) = remarks({**quiet, "stolen": 0.034})
    assert "3.4 %" in line
    (line,) = remarks({**quiet, "load_before": [1.5, 0.0, 0.0]})
    assert "not idle" in line
    begun = machine()
    about = ended(begun)
    assert "ticks" not in about
    assert about["stolen"] is None or 0.0 <= about["stolen"] <= 1.0
    assert ended(about)["stolen"] is None  # of a reading that is gone


def test_sections_say_what_is_missing() -> None:
    document = {**FILES["latency"], "missing": {"openvino in process": "it is not installed."}}
    assert "openvino in process: it is not installed." in section(document, plots=False).lines
    document = {**FILES["compare"], "missing": {"naive": "torch is not installed."}}
    assert "naive: torch is not installed." in section(document, plots=False).lines


def test_sections_say_that_the_machine_was_shared() -> None:
    document = {**FILES["limits"], "machine": {**ABOUT, "stolen": 0.2}}
    assert any("20.0 %" in line for line in section(document, plots=False).lines)


def test_failed_requests_of_a_path_are_said() -> None:
    paths = {"served, grpc": {"n": 100, "errors": 2}, "served, http": {"n": 100, "errors": 0}}
    (line,) = latency.notes(paths)
    assert line.startswith("served, grpc: 2 requests failed")


def test_few_rounds_have_no_spread() -> None:
    assert spread_notes({"rounds": 3}) == []
    assert "spread is not known" in spread_notes({"rounds": 2})[0]
    single = {**FILES["compare"], "rounds": 1}
    drawn = section(single, plots=True).plots[0].svg
    assert "one round" in drawn
    assert "quartiles" not in drawn


MIXED = Chosen("openvino", "onnxruntime", "bf16")


def test_other_k_run_what_ours_runs() -> None:
    wanted = ["--target", "openvino", "--precision", "bf16", "--step-target", "onnxruntime"]
    assert fixed(("--target", "auto"), MIXED) == fixed(("--target=auto",), MIXED) == wanted
    given = fixed(("--target", "auto", "--step-target", "onnxruntime"), MIXED)
    assert given.count("--step-target") == 1


def test_a_served_path_is_split_whatever_is_served() -> None:
    assert as_served(Chosen("openvino", "openvino", "fp32")) == "openvino in process"
    name = as_served(MIXED)
    assert name == "openvino in process, bf16, step onnxruntime"
    stages = {"decode image": 1.0, "preprocess": 2.0, "encoder": 3.0, "steps": 4.0}
    paths: dict[str, dict[str, Any]] = {
        name: {"stages_ms": stages, "mean_ms": 10.0},
        "served, grpc": {"stages_ms": {"transport": 0.5}, "mean_ms": 12.0},
    }
    split(paths, MIXED)
    assert paths["served, grpc"]["stages_ms"] == {**stages, "transport": 0.5, "server": 1.5}


def test_accuracy_names_the_machine(fake: Fake, pack: Path) -> None:
    result = run("--data", pack, "--url", fake.url)
    assert result.exit_code == 0, result.output
    assert f"Python {machine()['python']}" in result.stdout.splitlines()[-1]


def test_labels_that_the_bundle_cannot_write_are_said(tiny_graphs: Bundle) -> None:
    token = tiny_graphs.vocabulary.tokens[-1]
    fits = Expression("a", (token,), b"")
    assert unreadable(tiny_graphs, [fits]) == []
    (line,) = unreadable(tiny_graphs, [fits, Expression("b", (token, r"\nowhere"), b"")])
    assert line.startswith("1 of 2 labels")
    assert r"\nowhere" in line


def test_a_report_has_a_way_to_each_section(tmp_path: Path) -> None:
    paths = []
    for name in ("load", "limits"):
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps(FILES[name]), encoding="utf-8")
    target = tmp_path / "page.html"
    result = CliRunner().invoke(main, ["report", *map(str, paths), "--html", str(target)])
    assert result.exit_code == 0, result.output
    page = target.read_text(encoding="utf-8")
    for number in (1, 2):
        assert f'href="#s{number}"' in page
        assert f'id="s{number}"' in page
