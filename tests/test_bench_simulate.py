"""``hmer-bench simulate``: what the model is asked, and the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from benchmarks import simulate_cli
from benchmarks.cli import main
from benchmarks.loops import poisson
from benchmarks.simulate_cli import median_of
from benchmarks.simulation import run_closed, run_open
from benchmarks.simulation_questions import (
    at_pace,
    capacity,
    fit,
    replicas_for,
    replicas_table,
    validate,
    validation_table,
)
from benchmarks.simulation_report import notes, scaling_plot, validation_plot
from benchmarks.simulation_scaling import (
    SIGNALS,
    Ramp,
    compare,
    scaling_table,
    targets,
    wish,
)
from benchmarks.simulation_times import ServiceTimes
from hmer.errors import BadParameter
from tests.simulation_fixtures import document, only_encoder, times

RUN: dict[str, Any] = {"data": "samples", "input": "samples", "inputs": 3}


def simulate(*arguments: str | int | Path) -> Result:
    return CliRunner().invoke(main, ["simulate", *map(str, arguments)])


def load_test(known: ServiceTimes, rates: tuple[float, ...], count: int = 200) -> dict[str, Any]:
    """A load test of a server that behaves as the model does."""
    kinds = [known.kinds[i % 3] for i in range(count)]
    levels = []
    for rate in rates:
        figures = run_open(known, kinds, poisson(rate, count)).figures()
        levels.append({"kind": "open", "level": rate, **figures})
    full = run_closed(known, kinds, 8).figures()
    return {
        "benchmark": "load",
        **RUN,
        "levels": [{"kind": "closed", "level": 8, **full}, *levels],
    }


def test_a_load_test_is_held_beside_its_simulation() -> None:
    known = times(**RUN)
    levels = validate(known, load_test(known, (10.0, 20.0), 90), "load.json")
    assert [level["same_trace"] for level in levels] == [True] * 3
    assert [level["level"] for level in levels] == [8.0, 10.0, 20.0]
    for level in levels:  # the same kinds in another order
        assert abs(level["error_percent"]["throughput"]) < 5
        assert abs(level["error_percent"]["p50"]) < 35
    table = validation_table(levels)
    assert table.rows[1][0] == "10 a second"
    slower = times(**RUN, server_ms=30.0)
    _, level = validate(slower, load_test(known, (10.0,), 60), "x")
    assert level["error_percent"]["p50"] > 30


def test_the_same_trace_is_predicted_exactly() -> None:
    from benchmarks.inputs import shuffled

    known = times(**RUN)
    order = shuffled(3)
    kinds = [known.kinds[order[i % 3]] for i in range(100)]
    figures = run_open(known, kinds, poisson(15.0, 100)).figures()
    measured = {
        "benchmark": "load", **RUN, "levels": [{"kind": "open", "level": 15.0, **figures}],
    }  # fmt: skip
    (level,) = validate(known, measured, "load.json")
    assert level["error_percent"] == {"throughput": 0.0, "p50": 0.0, "p95": 0.0}


def test_an_unsteady_machine_is_named() -> None:
    known = times(**RUN)
    steady = load_test(known, (15.0,), 100)
    level = steady["levels"][1]

    def report(*p95: float) -> dict[str, Any]:
        level["rounds"] = [{"throughput": 1.0, "latency_ms": {"p95": value}} for value in p95]
        return {
            "validation": validate(known, steady, "x"), "service": {}, "replicas": [],
        }  # fmt: skip

    usual = level["latency_ms"]["p95"]
    quiet = report(usual, 1.1 * usual)
    assert validation_table(quiet["validation"]).rows[1][-1] == f"{usual:.0f} to {1.1 * usual:.0f}"
    assert not any("not steady" in line for line in notes(quiet))
    (line,) = (line for line in notes(report(3 * usual, usual)) if "not steady" in line)
    assert "15 a second" in line
    assert "3.0 times" in line


def test_all_parts_take_as_long_as_a_request_alone_shows() -> None:
    before = document()
    usual = run_closed(times(), times().kinds, 1).figures()["latency_ms"]
    slow = at_pace(before, 2 * usual["p50"])
    found = run_closed(slow, slow.kinds, 1).figures()["latency_ms"]
    for name, value in usual.items():
        assert found[name] == pytest.approx(2 * value)
    assert slow.about["pace"] == pytest.approx(2.0)
    assert at_pace(slow.about, usual["p50"]).about["pace"] == pytest.approx(1.0)
    assert before == document()


def test_the_shared_speed_is_fitted_to_a_full_server() -> None:
    known = times(**RUN)
    slow = replace(known, shared_speed=0.6)
    kinds = [known.kinds[i % 3] for i in range(64)]
    throughput = run_closed(slow, kinds, 16).figures()["throughput"]
    fitted = fit(known, throughput, 16)
    assert fitted.shared_speed == pytest.approx(0.6, rel=0.05)
    assert fitted.about["shared_speed"] == fitted.shared_speed
    again = ServiceTimes.from_dict(json.loads(json.dumps(dict(fitted.about))))
    assert again.shared_speed == fitted.shared_speed


@pytest.mark.parametrize(
    "measured",
    [
        {"benchmark": "latency"},
        {"benchmark": "load", "levels": []},
        {"benchmark": "load", "levels": [{"kind": "open", "level": 5}]},
        {
            "benchmark": "load",
            "levels": [
                {
                    **{"kind": "spiral", "level": 5, "requests": 9, "throughput": 5.0},
                    "latency_ms": {"p50": 1.0, "p95": 2.0},
                }
            ],
        },
    ],
)
def test_load_tests_that_are_refused(measured: dict[str, Any]) -> None:
    with pytest.raises(BadParameter, match=r"load\.json|spiral"):
        validate(times(), measured, "load.json")


def test_the_rate_within_a_bound() -> None:
    known = only_encoder(1, 10.0)
    found = capacity(known, 60.0, "p99", requests=300)
    # M/D/1: far below the 100 a second at which it is full, above half of it.
    assert 50 < found["rate"] < 95
    assert found["idle_ms"] == pytest.approx(10.0)
    assert found["at"]["latency_ms"]["p99"] < 60
    assert replicas_for(found, 1000.0) == -(-1000 // found["rate"])
    bursts = capacity(known, 60.0, "p99", requests=300, burst=4.0)
    assert bursts["rate"] is None or bursts["rate"] < found["rate"]


def test_a_balancer_that_knows_serves_more_than_chance() -> None:
    known = only_encoder(1, 10.0)
    chance = capacity(known, 30.0, "p95", requests=250)
    knows = capacity(known, 30.0, "p95", requests=250, balanced=4)
    assert knows["rate"] > chance["rate"]


def test_a_bound_that_nobody_meets() -> None:
    found = capacity(only_encoder(1, 10.0), 5.0, requests=100)
    assert found["rate"] is None
    assert replicas_for(found, 10.0) is None
    rows = [{"device": "a CPU", "found": found}, {"device": "GPU", "found": None}]
    table = replicas_table(rows, 10_000)
    assert "over the bound" in table.rows[0][-1]
    assert "unmeasured" in table.rows[1][-1]
    report = {"validation": [], "replicas": rows, "bound_ms": 5.0, "service": {}}
    assert any("No number of replicas holds 5 ms" in line for line in notes(report))


def test_what_an_autoscaler_wants() -> None:
    assert wish(4, 100, 100) == 4
    assert wish(4, 109, 100) == 4  # within its tolerance
    assert wish(4, 150, 100) == 6
    assert wish(4, 1000, 100) == 8  # it at most doubles
    assert wish(1, 1000, 100) == 5  # or adds four
    assert wish(4, 10, 100) == 1
    assert wish(4, 0, 100) == 1


RAMP = Ramp(10.0, 60.0, quiet_s=15, up_s=30, hold_s=60, down_s=15)


def test_the_ramp() -> None:
    assert RAMP.seconds == 135
    assert [RAMP.rate(t) for t in (0, 15, 30, 45, 100, 120, 135)] == [10, 10, 35, 60, 60, 10, 10]
    arrivals = RAMP.arrivals(1)
    assert arrivals == sorted(arrivals) == RAMP.arrivals(1)
    expected = 2 * 15 * 10 + 30 * 35 + 60 * 60 + 15 * 35
    assert len(arrivals) == pytest.approx(expected, rel=0.05)


def test_signals_under_a_ramp() -> None:
    known = only_encoder(1, 100.0)
    found = compare(known, 8.0, 900.0, start_s=2.0, ramp=Ramp(4.0, 16.0, 15, 20, 45, 15))
    assert [one["signal"] for one in found["signals"]] == list(SIGNALS)
    for one in found["signals"]:
        assert one["requests"] > 700
        assert one["needed"] == 3
        assert one["most"] == max(h["replicas"] for h in one["history"])
        assert 0 <= one["late"] <= 1
        assert one["replica_minutes"] > 0
    in_flight = found["signals"][-1]
    assert in_flight["most"] > 1
    json.dumps(found)
    assert "requests in flight" in scaling_table(found).text()
    report = {"autoscaling": found}
    assert "needed for the requests" in scaling_plot(report)


def test_signals_aim_at_the_same_load() -> None:
    aims = targets(only_encoder(1, 10.0), 50.0, seconds=60.0)
    assert aims["requests in flight"] == pytest.approx(0.75, rel=0.15)  # M/D/1 at one half
    assert aims["queue wait"] == pytest.approx(5.0, rel=0.3)


# The command


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    known = times(**RUN)
    service, load = tmp_path / "service.json", tmp_path / "load.json"
    service.write_text(json.dumps(document(**RUN)), encoding="utf-8")
    load.write_text(json.dumps(load_test(known, (10.0,), 30)), encoding="utf-8")
    return service, load


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer requests a question."""
    monkeypatch.setattr(capacity, "__kwdefaults__", {**capacity.__kwdefaults__, "requests": 40})


@pytest.mark.usefixtures("brief")
def test_from_given_times(files: tuple[Path, Path], tmp_path: Path) -> None:
    service, load = files
    output = tmp_path / "simulate.json"
    common = ("--times", service, "--validate", load, "--no-autoscaling", "--bound", 400)
    result = simulate(*common, "--output", output, "--gpu", service, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert json.loads(output.read_text(encoding="utf-8")) == report
    assert report["benchmark"] == "simulate"
    assert [row["device"] for row in report["replicas"]] == ["a CPU"] * 6
    assert [level["kind"] for level in report["validation"]] == ["closed", "open"]
    assert "<svg" in validation_plot(report)
    text = simulate("--times", output, "--no-autoscaling", "--bound", 400)
    assert text.exit_code == 0, text.output
    assert "Replicas for 10,000 requests a second at p99 < 400 ms" in text.output
    assert "unmeasured" in text.output
    assert "was not held against a load test" in text.output
    again = simulate(*common, "--gpu", service, "--json")
    assert json.loads(again.stdout)["replicas"] == report["replicas"]


@pytest.mark.usefixtures("brief")
def test_autoscaling_needs_a_rate(
    monkeypatch: pytest.MonkeyPatch, files: tuple[Path, Path]
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(simulate_cli, "compare", lambda *a, **k: asked.append(k))
    assert simulate("--times", files[0], "--bound", 400, "--start-s", 9, "--json").exit_code == 0
    assert asked[0]["start_s"] == 9
    one = simulate("--times", files[0], "--bound", 1, "--json")  # nobody holds a millisecond
    report = json.loads(one.stdout)
    assert report["replicas"][0]["found"]["rate"] is None
    instead = report["instead"][0]["found"]
    assert instead["bound_ms"] >= 2 * instead["idle_ms"]
    assert instead["rate"] > 0
    assert asked[1]["start_s"] == 3.0  # as measured
    monkeypatch.setattr(simulate_cli, "attainable", lambda idle_ms: 2.0)
    assert simulate("--times", files[0], "--bound", 1, "--json").exit_code == 0
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--times", "nowhere.json"), "There is no file nowhere.json"),
        (("--times", "{load}"), "holds no service times"),
        (("--times", "{service}", "--validate", "{service}"), "holds no load test"),
        (("--times", "{service}", "--gpu", "{load}"), "holds no service times"),
        (("--loads", "much"), "--loads is 'much'"),
        (("--output", "/nowhere/at/all.json"), "there is no such folder"),
    ],
)
def test_sentences(arguments: tuple[str, ...], said: str, files: tuple[Path, Path]) -> None:
    service, load = files
    result = simulate(*(a.format(service=service, load=load) for a in arguments))
    assert result.exit_code == 1
    assert said in result.stderr
    assert "Traceback" not in result.output


def test_a_round_that_was_disturbed_does_not_count() -> None:
    def seen(p95: float | None, throughput: float) -> dict[str, Any]:
        return {
            **{"kind": "open", "level": 5.0, "requests": 50, "rejected": 1},
            **{"throughput": throughput, "latency_ms": {"p50": 10.0, "p95": p95}},
        }

    found = median_of([seen(900.0, 1.0), seen(80.0, 5.0), seen(90.0, 4.9)])
    assert found["latency_ms"] == {"p50": 10.0, "p95": 90.0}
    assert found["throughput"] == 4.9
    assert found["rejected"] == 3
    assert [one["latency_ms"]["p95"] for one in found["rounds"]] == [900.0, 80.0, 90.0]
    assert median_of([seen(None, 1.0), seen(80.0, 5.0)])["latency_ms"]["p95"] is None
