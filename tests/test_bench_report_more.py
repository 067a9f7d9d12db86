"""``hmer-bench report``: the sections beyond speed, and figures written into other texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from benchmarks.cli import main
from benchmarks.quick import RATIOS
from benchmarks.report_into import BEGIN, END
from benchmarks.report_reliability import RELIABILITY
from benchmarks.report_sections import kind_of
from benchmarks.simulation_questions import capacity, validate
from benchmarks.simulation_scaling import Ramp, compare
from benchmarks.speed_report import SECTIONS, section
from benchmarks.tune_search import Duel, Score
from benchmarks.tune_space import RUNTIME, SLOTS, Goal, settings_of
from export.config import RepositoryOptions
from hmer.decode_types import SearchOptions
from hmer.errors import BadParameter
from hmer.evaluation import Answers, Conditions, figures
from hmer.score import compare as scored
from tests.simulation_fixtures import times
from tests.test_bench_report import ABOUT, FILES, SPREAD
from tests.test_bench_simulate import RUN, load_test

HEAD: dict[str, Any] = {"machine": ABOUT, "data": "samples", "input": "samples", "inputs": 3}


def accuracy() -> dict[str, Any]:
    answers = Answers(
        [scored(str(i), ("x", "+", "y"), ("x", "+", "y") if i % 2 else ("x",)) for i in range(8)]
    )
    head = Conditions("test.jsonl.gz", "norm", "png", SearchOptions()).to_dict(8)
    return {**head, "server": figures(answers)}


INVARIANCE: dict[str, Any] = {
    **{"data": "test.jsonl.gz", "n": 9, "seed": 1, "bundle": "b", "target": "onnxruntime"},
    "transformations": [
        {
            **{"transformation": name, "about": "x", "n": 9, "answers_unchanged": value},
            **{"interval": [value - 9, value], "tokens_unchanged": value, "aim": 95.0},
            **{"reached": value >= 95, "failed": 0, "changed": []},
        }
        for name, value in (("inverted", 100.0), ("photographed", 84.2))
    ],
}


def tune() -> dict[str, Any]:
    start = settings_of(RepositoryOptions(), 4, 2, 24_000)
    more = {**start, SLOTS: 32}
    vino = {**more, RUNTIME: ["openvino", "fp32", "onnxruntime"]}
    duels = [
        Duel(start, more, SLOTS, [(Score(10.0), Score(11.0))] * 6, kept=True),
        Duel(more, vino, RUNTIME, reason="openvino is not installed"),
        Duel(more, {**more, SLOTS: 16}, SLOTS, [(Score(10.0), Score(9.0))] * 2),
    ]
    return {
        "benchmark": "tune",
        **HEAD,
        "goal": {"name": Goal("p95", 200.0).name, "percentile": "p95", "bound_ms": 200.0},
        "start": start,
        "best": more,
        "space": {SLOTS: [16, 32], RUNTIME: [start[RUNTIME], vino[RUNTIME]]},
        "ended": "the time was up",
        "duels": [duel.to_dict() for duel in duels],
    }


def simulate() -> dict[str, Any]:
    known = times(**RUN)
    found = capacity(known, 500.0, requests=40)
    return {
        "benchmark": "simulate",
        **HEAD,
        **{"rate": 10_000.0, "bound_ms": 500.0},
        "validation": validate(known, load_test(known, (5.0, 10.0), 30), "load"),
        "replicas": [
            {"device": "a <CPU>", "found": found},
            {"device": "GPU", "found": None},
        ],
        "autoscaling": compare(known, 8.0, 500.0, start_s=1.0, ramp=Ramp(2.0, 6.0, 15, 15, 30, 15)),
        "service": dict(known.about),
    }


SHOWN = ("throughput", "p50_alone_ms", "p50_ms", "p95_ms")
GROWTH: dict[str, Any] = {
    "benchmark": "growth",
    **HEAD,
    **{"rounds": 3, "runtime": "onnxruntime", "missing": {}},
    "axes": {
        "slots": {
            **{"axis": "slots", "label": "slots of the decoder", "load": "16 at once"},
            "points": [
                {
                    "x": x,
                    **dict.fromkeys(("throughput", "p50_alone_ms", "p50_ms", "p95_ms"), SPREAD),
                }
                for x in (4, 16)
            ],
            "skipped": {},
        }
    },
}
RIVALS: dict[str, Any] = {
    "benchmark": "rivals",
    **HEAD,
    **{"rivals": {}, "missing": {"pmsh-ocr": "it is not installed"}, "notes": "Own symbols."},
}
QUICK: dict[str, Any] = {
    "benchmark": "quick",
    **HEAD,
    "ratios": dict.fromkeys(RATIOS, SPREAD),
    "missing": {},
    "baseline": {"ratios": dict.fromkeys(RATIOS, SPREAD)},
}


@pytest.fixture(scope="module")
def documents() -> dict[str, dict[str, Any]]:
    return {
        **{"accuracy": accuracy(), "invariance": INVARIANCE, "tune": tune()},
        **{"simulate": simulate(), "growth": GROWTH, "rivals": RIVALS, "quick": QUICK},
    }


@pytest.fixture
def files(documents: dict[str, dict[str, Any]], tmp_path: Path) -> list[Path]:
    paths = []
    for name, document in {**documents, "compare": FILES["compare"]}.items():
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps(document), encoding="utf-8")
    return paths


def report(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, arguments)])


def test_every_kind_is_known(documents: dict[str, dict[str, Any]]) -> None:
    for name, document in documents.items():
        assert kind_of(document) == name
    assert set(documents) | set(FILES) | set(RELIABILITY) == set(SECTIONS)
    assert kind_of({"data": "x"}) is None


def test_one_page_of_all(files: list[Path], tmp_path: Path) -> None:
    html, text = tmp_path / "all.html", tmp_path / "all.md"
    result = report(*files, "--html", html, "--markdown", text)
    assert result.exit_code == 0, result.output
    page = html.read_text(encoding="utf-8")
    for word in ("src=", "<script", 'href="http'):
        assert word not in page.replace('xlink:href="#', "")
    assert page.count("<svg") == 1 + 1 + 1 + 2 + 1 + 0 + 0 + 5
    assert "a &lt;CPU&gt;" in page
    lines = text.read_text(encoding="utf-8")
    for said in (
        "| slots | 16 | 32 | 6 of 6 | +10.0 | kept |",
        "| cannot run |",
        "| 84.2 (missed) | 84.2 (missed) | 95 |",
        "unmeasured: give its service times",
        "The search ended because the time was up.",
        "| pmsh-ocr | missing |",
        "| as before |",
        "slots of the decoder",
        "norm",
    ):
        assert said in lines, said


def test_plots_say_what_they_show(documents: dict[str, dict[str, Any]]) -> None:
    words = {
        "accuracy": ("ExpRate, %", "tokens of the truth", "server"),
        "invariance": ("answers unchanged, %", "photographed", "aim"),
        "tune": ("median gain", "slots: 16 to 32"),
        "simulate": ("latency, ms", "requests a second offered", "p95, measured", "replicas"),
        "growth": ("latency, ms",),
    }
    for name, expected in words.items():
        drawn = " ".join(plot.svg for plot in section(documents[name], plots=True).plots)
        for word in expected:
            assert word in drawn, (name, word)


@pytest.mark.parametrize("missing", ["duels", "goal", "best"])
def test_a_file_of_another_version(missing: str, tmp_path: Path) -> None:
    document = {key: value for key, value in tune().items() if key != missing}
    with pytest.raises(BadParameter, match="lacks what this version"):
        section(document, plots=False)
    path = tmp_path / "old.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    result = report(path)
    assert result.exit_code == 1
    assert f"error: {path} lacks what this version of the report needs" in result.stderr


def test_figures_in_a_readme(tmp_path: Path) -> None:
    source = tmp_path / "compare.json"
    source.write_text(json.dumps(FILES["compare"]), encoding="utf-8")
    readme, plot = tmp_path / "README.md", tmp_path / "figures" / "compare.svg"
    plot.parent.mkdir()
    readme.write_text(f"# Before\n\n{BEGIN}\nold\n{END}\n\nAfter ünd\n", encoding="utf-8")
    first = report(source, "--into", readme, "--plot", plot)
    assert first.exit_code == 0, first.output
    assert "was brought up to date" in first.stderr
    assert first.stdout == ""
    text = readme.read_text(encoding="utf-8")
    assert text.startswith(f"# Before\n\n{BEGIN}\n\n**16 requests at once")
    assert text.endswith(f"{END}\n\nAfter ünd\n")
    assert "old" not in text
    assert "](figures/compare.svg)" in text
    assert text.count("**") == 2  # the main table alone
    assert "Repeat: hmer-bench compare" in text
    drawn = plot.read_text(encoding="utf-8")
    assert drawn.startswith("<svg")
    again = report(source, "--into", readme, "--plot", plot)
    assert "is up to date" in again.stderr
    assert readme.read_text(encoding="utf-8") == text
    assert plot.read_text(encoding="utf-8") == drawn
    without = report(source, "--into", readme)
    assert without.exit_code == 0
    assert "![" not in readme.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "text", ["no marker", f"{BEGIN}\n", f"{END}\n{BEGIN}\n", f"{BEGIN}{END}{BEGIN}{END}"]
)
def test_markers_that_are_not_there(text: str, tmp_path: Path) -> None:
    source, readme = tmp_path / "compare.json", tmp_path / "README.md"
    source.write_text(json.dumps(FILES["compare"]), encoding="utf-8")
    readme.write_text(text, encoding="utf-8")
    result = report(source, "--into", readme)
    assert result.exit_code == 1
    assert "must hold these two lines once" in result.stderr
    assert readme.read_text(encoding="utf-8") == text
    nowhere = report(source, "--into", tmp_path / "none.md")
    assert "There is no file" in nowhere.stderr
    assert report(source, "--plot", tmp_path / "x.svg").exit_code == 2
