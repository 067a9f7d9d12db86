"""``hmer-bench quick``: ratios, their baseline, and what is said about both."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import CliRunner, Result

from benchmarks import quick as quick_module
from benchmarks import quick_cli
from benchmarks.cli import main
from benchmarks.compare import Bare
from benchmarks.compare import Result as Compared
from benchmarks.contenders import OURS, Contender
from benchmarks.quick import (
    RATIOS,
    encoders,
    of_result,
    read_baseline,
    report,
    side_by_side,
    steps,
    table,
    verdict,
)
from benchmarks.repositories import NAIVE, Chosen
from hmer.bundle import Bundle
from hmer.errors import BadParameter, ServerSetupError
from tests.test_recognizer import pictures

NAMES = list(RATIOS)
FOUND: dict[str, list[float | None]] = {name: [1.0, 1.1, 1.2, 1.3] for name in NAMES}


def quick(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["quick", *map(str, arguments)])


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[float | None]]:
    """What the command finds, to be changed."""
    found = {name: list(values) for name, values in FOUND.items()}
    monkeypatch.setattr(quick_cli, "measure", lambda *a: (found, {}))
    return found


def contender(throughput: list[float], p50: list[float]) -> Contender:
    made = Contender("x", "x", cast(Any, None))
    made.throughput, made.alone = throughput, [{"p50": value} for value in p50]
    return made


def test_ratios_are_made_within_a_round() -> None:
    compared = Compared(
        {
            OURS: contender([20.0, 40.0], [12.0, 24.0]),
            NAIVE: contender([10.0, 16.0], [30.0, 60.0]),
        },
        Bare(alone=[{"p50": 10.0}, {"p50": 16.0}]),
        {},
    )
    assert of_result(compared) == {
        "served / in process, p50": [1.2, 1.5],
        "served / naive, throughput": [2.0, 2.5],
    }


def test_both_sides_take_turns() -> None:
    asked: list[str] = []
    found = side_by_side([lambda: asked.append("a")], [lambda: asked.append("b")], 4)
    assert len(found) == 4
    turns = [asked[2 + i * 5] for i in range(8)]
    assert turns == ["a", "b", "b", "a", "a", "b", "b", "a"]


def test_bare_ratios_of_the_tiny_network(tiny_graphs: Bundle, checkpoint: Path) -> None:
    pytest.importorskip("openvino")
    data = pictures(4)
    chosen = Chosen("onnxruntime", "onnxruntime", "fp32")
    for found in (
        encoders(tiny_graphs, data[:2], 3),
        steps(tiny_graphs, checkpoint, data, chosen, 3),
    ):
        assert len(found) == 3
        assert all(value is not None and value > 0 for value in found)


BEFORE = {"median": 2.0, "q1": 1.9, "q3": 2.1}


@pytest.mark.parametrize(
    ("median", "of_throughput", "of_time"),
    [
        (2.0, "as before", "as before"),
        (2.29, "as before", "as before"),  # as far out as the quartiles lie apart
        (2.35, "better", "worse"),
        (1.65, "worse", "better"),
    ],
)
def test_verdicts(median: float, of_throughput: str, of_time: str) -> None:
    now = {"median": median, "q1": median, "q3": median}
    assert verdict("served / naive, throughput", now, BEFORE) == of_throughput
    assert verdict("step / eager step", now, BEFORE) == of_time
    assert verdict("step / eager step", now, None) == "new"


def test_a_narrow_baseline_leaves_a_margin() -> None:
    narrow = {"median": 2.0, "q1": 2.0, "q3": 2.0}
    name = "step / eager step"
    assert verdict(name, {"median": 2.09, "q1": 2.0, "q3": 2.1}, narrow) == "as before"
    assert verdict(name, {"median": 2.11, "q1": 2.0, "q3": 2.2}, narrow) == "worse"


def test_the_table_says_what_is_missing() -> None:
    shown = table(report({NAMES[0]: [1.0, 2.0]}), {NAMES[1]: "torch is not installed"}, None)
    assert shown.rows[0][2:] == ("1.50 (1.25 to 1.75)", "-", "-")
    assert shown.rows[1][-1] == "not measured: torch is not installed"


def test_a_run_against_its_baseline(
    measured: dict[str, list[float | None]], tmp_path: Path
) -> None:
    path, output = tmp_path / "baseline.json", tmp_path / "quick.json"
    first = quick("--baseline", path)
    assert first.exit_code == 0, first.output
    assert "There is no baseline" in first.output
    assert not path.exists()
    assert quick("--baseline", path, "--update").exit_code == 0
    same = quick("--baseline", path, "--output", output, "--json")
    document = json.loads(same.stdout)
    assert json.loads(output.read_text(encoding="utf-8")) == document
    assert set(document["verdicts"].values()) == {"as before"}
    assert "ms" not in json.dumps(document["ratios"])
    measured["served / naive, throughput"] = [0.5, 0.5, 0.5]
    measured["step / eager step"] = [0.5, 0.5, 0.5]
    changed = quick("--baseline", path)
    assert changed.exit_code == 0  # it informs
    assert "served / naive, throughput: worse than in the baseline." in changed.output
    assert "step / eager step: better than in the baseline." in changed.output
    document = json.loads(path.read_text(encoding="utf-8"))
    document["machine"]["cpu"] = "another"
    path.write_text(json.dumps(document), encoding="utf-8")
    assert "of another machine (another" in quick("--baseline", path).output


def test_it_fails_only_if_it_cannot_measure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(*_: object) -> None:
        raise ServerSetupError("The server did not start.")

    monkeypatch.setattr(quick_cli, "measure", fails)
    result = quick("--baseline", tmp_path / "none.json")
    assert result.exit_code == 1
    assert result.stderr.strip().endswith("error: The server did not start.")


def test_what_cannot_be_measured_is_left_out_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_graphs: Bundle
) -> None:
    chosen = Chosen("onnxruntime", "onnxruntime", "fp32")
    monkeypatch.setattr(
        quick_module, "served", lambda *a: ({NAMES[0]: [1.0]}, {NAIVE: "no room"}, chosen)
    )
    monkeypatch.setattr(quick_module, "find_spec", lambda name: None)
    plan = SimpleNamespace(checkpoint=tmp_path)
    settings = SimpleNamespace(rounds=3)
    found, missing = quick_module.measure(
        tiny_graphs, cast(Any, plan), [], cast(Any, settings), lambda line: None
    )
    assert list(found) == [NAMES[0]]
    assert missing == {
        "served / naive, throughput": "no room",
        "k / k=1, throughput": "it was not asked for",
        "encoder, openvino / onnxruntime": "openvino is not installed",
        "step / eager step": "torch is not installed",
    }


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("no json", "is not a JSON file"),
        ("[]", "is no baseline"),
        ('{"benchmark": "load"}', "is no baseline"),
        ('{"benchmark": "quick", "version": 0}', "is of version 0"),
        ('{"benchmark": "quick", "version": 1, "ratios": {"x": {"median": 1}}}', "lacks the quar"),
    ],
)
def test_baselines_that_are_refused(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(BadParameter, match=said):
        read_baseline(path)
    result = quick("--baseline", path)
    assert result.exit_code == 1
    assert said in result.stderr
