"""``hmer-bench growth``: axes, points, lines, and what is kept of a run that was stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from benchmarks import growth, growth_cli, growth_plots
from benchmarks.asking import GrpcAsker
from benchmarks.cli import main
from benchmarks.crohme import Expression, read_pack
from benchmarks.growth import Settings, along, line, of_pictures
from benchmarks.growth_axes import AXES, BEAM, INSTANCES, THREADS, K, not_here, options_of
from benchmarks.growth_tables import tables
from hmer.bundle import Bundle
from hmer.errors import ExportError
from tests.bench_fixtures import Fake
from tests.fake_server import Refusal
from tests.test_recognizer import pictures


@pytest.fixture
def settings(tiny_graphs: Bundle, pack: Path, tmp_path: Path) -> Settings:
    expressions = [e for e in read_pack(pack) if e.id in "abc"]
    return Settings(tiny_graphs, Path("no"), "onnxruntime", expressions, 2, 4, tmp_path)


@pytest.fixture
def started(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Options of the repositories that were assembled; all are served by the fake."""
    made: list[list[str]] = []

    def assemble(bundle: Path, output: Path, *options: str) -> Path:
        made.append([str(bundle.name), *options])
        return output

    @contextmanager
    def served(repository: Path) -> Iterator[Any]:
        class Running:
            grpc = fake.url

        yield Running()

    monkeypatch.setattr(growth, "assemble", assemble)
    monkeypatch.setattr(growth, "ServedProcess", served)
    monkeypatch.setattr(growth, "_TURN_S", 0.01)
    return made


def test_what_a_machine_is_too_small_for(
    tiny_graphs: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.growth_axes.thread_count", lambda n: 2)
    ort = "onnxruntime"
    assert not_here(AXES[THREADS], 2, tiny_graphs, ort) == ""
    assert not_here(AXES[THREADS], 4, tiny_graphs, ort) == "skipped: the machine has only 2 CPUs"
    assert "only 2 CPUs" in not_here(AXES[INSTANCES], 4, tiny_graphs, ort)
    assert "take turns" in not_here(AXES[INSTANCES], 2, tiny_graphs, "openvino")
    assert not_here(AXES[BEAM], 6, tiny_graphs, ort) == ""
    assert "gives 6 candidates" in not_here(AXES[BEAM], 8, tiny_graphs, ort)
    assert "no graph for beams" in not_here(AXES[BEAM], 2, replace(tiny_graphs, beam=0), ort)
    assert not_here(AXES[BEAM], 1, replace(tiny_graphs, beam=0), ort) == ""


def test_every_servers_axis_is_an_option_of_the_repository() -> None:
    """The real command takes each of them."""
    from export.cli import main as export

    shown = CliRunner().invoke(export, ["repository", "--help"]).stdout
    for axis in AXES.values():
        for option in options_of(axis, 2)[::2]:
            assert option in shown
    assert options_of(AXES["slots"], 8) == ["--slots", "8"]
    assert options_of(AXES[THREADS], 2) == ["--encoder-workers", "1", "--threads", "2"]


def test_a_servers_axis(settings: Settings, started: list[list[str]]) -> None:
    points, skipped = along(AXES["slots"], [1, 4], settings, lambda line: None)
    assert [options[1:] for options in started] == [
        ["--target", "onnxruntime", "--max-wait", "0", "--slots", "1"],
        ["--target", "onnxruntime", "--max-wait", "0", "--slots", "4"],
    ]
    assert [point["x"] for point in points] == [1, 4]
    for point in points:
        for key in ("throughput", "p50_ms", "p95_ms", "p50_alone_ms"):
            assert point[key]["n"] == 2
            assert point[key]["median"] > 0
    assert skipped == {}


def test_a_requests_axis_has_one_server(settings: Settings, started: list[list[str]]) -> None:
    points, skipped = along(AXES["concurrency"], [1, 2, 8], settings, lambda line: None)
    assert len(started) == 1
    assert [point["x"] for point in points] == [1, 2, 8]
    assert points[0]["p50_alone_ms"] is None  # the level is the load
    assert skipped == {}


def test_beams_are_asked_for(
    settings: Settings, started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Asker(GrpcAsker):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            asked.append(options["parameters"])
            super().__init__(*arguments, **options)

    monkeypatch.setattr(growth, "GrpcAsker", Asker)
    along(AXES[BEAM], [1, 3, 8], settings, lambda line: None)
    assert asked == [{"beam": 1}, {"beam": 3}]


def test_other_ks_are_exported(
    settings: Settings, started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_k(checkpoint: Path, k: int, work: Path) -> Path:
        if k == 8:
            raise ExportError("No torch.")
        return Path(f"exported-{k}")

    monkeypatch.setattr(growth, "with_k", with_k)
    own = settings.bundle.k
    _, skipped = along(AXES[K], [own, own + 1, 8], settings, lambda line: None)
    assert [options[0] for options in started] == [
        settings.bundle.folder.name,
        f"exported-{own + 1}",
    ]
    assert skipped == {"8": "skipped: No torch."}


def test_no_room_for_another_server(
    settings: Settings, started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter([5000.0, 10.0])
    monkeypatch.setattr(growth, "available_mb", lambda: next(free))
    points, skipped = along(AXES["slots"], [1, 2], settings, lambda line: None)
    assert [point["x"] for point in points] == [1]
    assert skipped == {"2": "skipped: only 10 MB of memory are left"}


def test_a_load_that_is_refused_is_no_point(
    settings: Settings, started: list[list[str]], fake: Fake
) -> None:
    fake.script.busy = [Refusal("UNAVAILABLE", "[overloaded] Too many requests.")] * 4
    points, skipped = along(AXES["concurrency"], [1, 2], settings, lambda line: None)
    assert [point["x"] for point in points] == [2]
    assert "Too many requests" in skipped["1"]


def test_a_line() -> None:
    found = line([{"x": x, "ms": 3.0 + 2.0 * x} for x in (0.0, 1.0, 4.0)], "ms")
    assert found == pytest.approx({"at_0_ms": 3.0, "a_unit_ms": 2.0, "r2": 1.0})
    assert line([{"x": 1.0, "ms": 3.0}, {"x": 1.0, "ms": 4.0}], "ms") is None
    flat = line([{"x": 1.0, "ms": 3.0}, {"x": 2.0, "ms": 3.0}], "ms")
    assert flat is not None
    assert flat["a_unit_ms"] == pytest.approx(0.0)


def test_pictures(settings: Settings) -> None:
    data = [*pictures(4), b"no picture"]
    made = replace(settings, expressions=[Expression(str(i), (), d) for i, d in enumerate(data)])
    found = of_pictures(["area", "length"], made, lambda line: None)
    points, lines = found["area"]
    assert len(points) == 4  # one is at fault
    assert [p["x"] for p in points] == sorted(p["x"] for p in points)
    assert all(p["encoder_ms"] > 0 and p["preprocess_ms"] > 0 for p in points)
    assert set(lines) == {"encoder", "preprocess"}
    points, lines = found["length"]
    assert all(p["steps_ms"] > 0 and p["x"] == int(p["x"]) for p in points)
    assert set(lines) == {"steps"}


def run(*arguments: str | int | Path) -> Result:
    return CliRunner().invoke(main, ["growth", *map(str, arguments)])


@pytest.fixture
def usual(
    settings: Settings, pack: Path, tmp_path: Path, started: list[list[str]]
) -> list[str | int | Path]:
    return [
        *("--bundle", settings.bundle.folder, "--data", pack, "--input", "strokes"),
        *("--rounds", 1, "--concurrency", 2, "--work", tmp_path / "work"),
    ]


def test_a_run_goes_on_where_it_was(
    usual: list[str | int | Path],
    started: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slots = ("--axis", "slots", "--values", "1,2")
    assert run(*usual, *slots).exit_code == 0
    assert len(started) == 2
    output = tmp_path / "growth.json"
    result = run(*usual, *slots, "--output", output, "--json")
    assert result.exit_code == 0, result.output
    assert len(started) == 2  # nothing was measured again
    report = json.loads(output.read_text("utf-8"))
    assert json.loads(result.stdout) == report
    assert [p["x"] for p in report["axes"]["slots"]["points"]] == [1, 2]
    assert report["axes"]["slots"]["machine"]["cpus"] > 0
    run(*usual, *slots, "--again")
    assert len(started) == 4
    run(*usual, "--axis", "slots", "--values", "1,4")  # other values
    assert len(started) == 6
    run(*usual, *slots, "--concurrency", 3)  # another load
    assert len(started) == 8
    (tmp_path / "work" / "growth-slots.json").write_text("{", encoding="utf-8")
    assert run(*usual, *slots).exit_code == 0  # a file that was cut off
    assert len(started) == 10
    monkeypatch.setattr(growth_cli, "code_hash", lambda: "of other code")
    assert run(*usual, *slots).exit_code == 0
    assert len(started) == 12


def test_both_axes_of_pictures_are_one_measurement(
    usual: list[str | int | Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def measured(names: list[str], *rest: Any) -> dict[str, Any]:
        calls.append(names)
        points = [{"x": 1.0, "steps_ms": 2.0}, {"x": 2.0, "steps_ms": 3.0}]
        return {name: (points, {"steps": line(points, "steps_ms")}) for name in names}

    monkeypatch.setattr(growth_cli, "of_pictures", measured)
    result = run(*usual, "--axis", "area", "--axis", "length", "--again")
    assert result.exit_code == 0, result.output
    assert calls == [["area", "length"]]
    assert "steps, by answer, tokens" in result.output


def test_tables_and_plots(
    usual: list[str | int | Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("benchmarks.growth_axes.thread_count", lambda n: 2)
    result = run(*usual, "--axis", "threads", "--plots", tmp_path / "plots")
    assert result.exit_code == 0, result.output
    assert "skipped: the machine has only 2 CPUs" in result.output
    assert "x 1.00" in result.output
    svg = (tmp_path / "plots" / "growth-threads.svg").read_text(encoding="utf-8")
    for text in ("threads of the encoder", "latency, ms", "requests/s, 2 at once", "p95 under"):
        assert text in svg


def test_a_plot_of_pictures() -> None:
    pytest.importorskip("matplotlib")
    points = [{"x": 1.0, "steps_ms": 2.0}, {"x": 2.0, "steps_ms": 4.0}]
    found = {"axis": "length", "label": "answer, tokens", "points": points}
    svg = growth_plots.plot({**found, "lines": {"steps": line(points, "steps_ms")}})
    assert "answer, tokens" in svg
    assert "+ 2.000 x ms" in svg
    assert growth_plots.plot({**found, "lines": {"steps": None}})


def test_a_table_orders_by_value() -> None:
    spread: Any = {"median": 2.0, "q1": 1.0, "q3": 3.0, "n": 3}
    point = dict.fromkeys(("throughput", "p50_ms", "p95_ms", "p50_alone_ms"), spread)
    entry: dict[str, Any] = {
        "axis": "k",
        "label": "k",
        "load": "16 at once",
        "skipped": {"4": "skipped: no"},
    }
    entry["points"] = [{"x": 2, **point}, {"x": 16, **point}]
    rows = tables({"axes": {"k": entry}})[0].rows
    assert [row[0] for row in rows] == ["2", "4", "16"]
    assert "skipped: no" in rows[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--bundle", "nowhere"), "There is no bundle.json in nowhere"),
        (("--values", "1,2"), "--values are of one --axis"),
        (("--axis", "area", "--values", "1"), "--values are of one --axis"),
        (("--axis", "slots", "--values", "0"), "--values is '0'"),
        (("--data", "nowhere.jsonl.gz"), "There is no file nowhere.jsonl.gz"),
    ],
)
def test_sentences(arguments: tuple[str, ...], said: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 1
    assert said in result.stderr
    assert "Traceback" not in result.output


def test_an_axis_that_fails_is_said(
    usual: list[str | int | Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> Path:
        raise ExportError("A repository could not be assembled.")

    monkeypatch.setattr(growth, "assemble", broken)
    result = run(*usual, "--axis", "slots", "--values", "1")
    assert result.exit_code == 1
    assert "No axis could be measured: A repository could not" in result.stderr
