"""``hmer-bench latency``: paths in turn, and where a request's time goes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import latency_cli
from benchmarks.cli import main
from benchmarks.crohme import Expression
from benchmarks.in_process import Spec, Worker
from benchmarks.latency import (
    DECODE_IMAGE,
    ENCODER,
    PREPROCESS,
    QUEUE,
    REST,
    SERVER,
    STEPS,
    TRANSPORT,
    Found,
    Pass,
    WorkerWay,
    decode_image_ms,
    run,
    tables,
)
from benchmarks.latency_cli import _split as split
from benchmarks.latency_served import ServedWay, round_trip_ms, server_stages, split_served
from benchmarks.repositories import Chosen
from hmer.bundle import Bundle
from hmer.errors import BlankImage, HmerError, ServerUnavailable
from model_repository.server import EmbeddedServer
from tests.bench_fixtures import Fake
from tests.fake_server import SERVERS, Script
from tests.test_recognizer import pictures

ORT = Chosen("onnxruntime", "onnxruntime", "fp32")


class FakeWay:
    """Notes its turns."""

    def __init__(self, name: str, turns: list[str]) -> None:
        self.name, self.turns = name, turns
        self.load_s: float | None = None
        self.first_ms = 9.0

    def take(self, order: Sequence[int]) -> Pass:
        self.turns.append(self.name)
        took = float(len(self.turns))
        return Pass([took] * len(order), [("x",)] * len(order), {PREPROCESS: 2.0, REST: 1.0})

    def close(self) -> None:
        pass


def test_paths_take_turns_and_the_first_pass_does_not_count() -> None:
    turns: list[str] = []
    found = run({name: FakeWay(name, turns) for name in "ab"}, [0], 2)
    assert "".join(turns) == "baabba"
    assert [p.ms for p in found["a"].passes] == [[3.0], [6.0]]
    assert [p.ms for p in found["b"].passes] == [[4.0], [5.0]]


def test_figures_of_a_path() -> None:
    expressions = [Expression("a", ("x",), b""), Expression("b", ("y", "z"), b"")]
    passes = [
        Pass([4.0, 8.0], [("y",), ("x",)], {PREPROCESS: 2.0, ENCODER: 4.0}),
        Pass([6.0, 10.0], [("y",), BlankImage("Blank.")], {PREPROCESS: 4.0, ENCODER: 6.0}),
    ]
    found = Found(FakeWay("a", []), passes).to_dict([1, 0], expressions, 0.5)
    assert found["mean_ms"] == 7.0
    assert found["n"] == 3  # a refusal is quick, and no answer: percentiles leave it out
    assert found["ms"]["p50"] == 6.0
    assert found["p50_ms"]["median"] == 7.0
    assert found["p50_ms"]["n"] == 2
    # Decoding the image is measured apart, and taken out of preprocessing.
    assert found["stages_ms"] == {DECODE_IMAGE: 0.5, PREPROCESS: 2.5, ENCODER: 5.0}
    assert found["errors"] == 1
    assert found["exprate"] == 0.5
    assert found["by_length_ms"]["1-5"]["n"] == 3
    shown = tables({"a path": found})[1].markdown()
    assert "| a path | 0.50 | 2.50 | 5.00 | - | - | - | - | - |" in shown


def test_a_served_path_is_split_by_the_same_work_in_process() -> None:
    bare = {DECODE_IMAGE: 1.0, PREPROCESS: 2.0, ENCODER: 5.0, STEPS: 4.0, QUEUE: 0.1}
    other = {DECODE_IMAGE: 1.0, PREPROCESS: 2.0, ENCODER: 9.0, STEPS: 3.0, QUEUE: 0.1}
    served = {"mean_ms": 20.0, "stages_ms": {TRANSPORT: 0.5}}
    split_served(served, {"stages_ms": bare}, {"stages_ms": other})
    assert served["stages_ms"] == {
        **{DECODE_IMAGE: 1.0, PREPROCESS: 2.0, ENCODER: 5.0, STEPS: 3.0},
        **{TRANSPORT: 0.5, SERVER: 8.5},
    }


def test_a_server_with_counters_keeps_its_own_steps_and_queue() -> None:
    bare = {DECODE_IMAGE: 1.0, PREPROCESS: 2.0, ENCODER: 5.0, STEPS: 4.0}
    seen = {STEPS: 6.0, QUEUE: 0.5, TRANSPORT: 0.7, SERVER: 12.8}
    served: dict[str, Any] = {"mean_ms": 20.0, "stages_ms": seen}
    split_served(served, {"stages_ms": bare}, {"stages_ms": bare})
    stages = served["stages_ms"]
    assert {name: stages[name] for name in (STEPS, QUEUE, TRANSPORT)} == {
        **{STEPS: 6.0, QUEUE: 0.5, TRANSPORT: 0.7}
    }
    assert stages[SERVER] == pytest.approx(20.0 - 6.0 - 0.5 - 0.7 - 8.0)


def test_stages_of_a_pass_by_the_servers_counters() -> None:
    """Two requests, one of which was refused before it reached the decoder."""
    grown = {
        "hmer_recognize_request_seconds_sum": 0.060,
        "hmer_recognize_request_seconds_count": 2.0,
        "hmer_recognize_queue_seconds_sum": 0.004,
        "hmer_recognize_queue_seconds_count": 2.0,
        "hmer_decode_queue_seconds_sum": 0.002,
        "hmer_decode_queue_seconds_count": 1.0,
        "hmer_decode_decode_seconds_sum": 0.020,
        "hmer_decode_decode_seconds_count": 1.0,
    }
    stages = server_stages(31.0, grown, 2)
    assert stages == pytest.approx({STEPS: 10.0, QUEUE: 3.0, TRANSPORT: 1.0, SERVER: 17.0})
    assert server_stages(31.0, grown, 3) == {}  # somebody else asked, too
    assert server_stages(31.0, {}, 2) == {}


@pytest.mark.parametrize("kind", SERVERS)
def test_an_empty_round_trip(kind: str) -> None:
    with SERVERS[kind](Script()) as url:
        assert round_trip_ms(url) > 0


def test_decoding_an_image_is_timed() -> None:
    assert decode_image_ms([*pictures(2), b"no picture"]) > 0


def test_a_runtime_in_process(tiny_graphs: Bundle) -> None:
    data = pictures(3)
    with Worker(Spec(tiny_graphs.folder, 1, ORT), data) as worker:
        way = WorkerWay(worker)
        seen = way.take([2, 1])
    assert way.load_s is not None
    assert way.load_s > 0
    assert len(seen.ms) == len(seen.replies) == 2
    assert all(not isinstance(reply, HmerError) for reply in seen.replies)
    assert sum(seen.stages.values()) == pytest.approx(sum(seen.ms) / 2)
    assert {PREPROCESS, ENCODER, STEPS, REST} <= set(seen.stages)


def test_a_fake_server(fake: Fake, pack: Path) -> None:
    from benchmarks.inputs import gather

    expressions = gather(pack, "strokes")
    way = ServedWay(fake.url, [e.data for e in expressions])
    try:
        seen = way.take([0, 3])
    finally:
        way.close()
    assert seen.replies[0] == ("x", "+", "y")
    assert isinstance(seen.replies[1], HmerError)
    assert set(seen.stages) == {TRANSPORT}
    with pytest.raises(ServerUnavailable):
        ServedWay("localhost:1", [b"x"])


@pytest.mark.e2e
def test_a_real_server(
    server: EmbeddedServer, tiny_graphs: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency_cli, "TARGETS", ("onnxruntime",))
    output = tmp_path / "latency.json"
    result = CliRunner().invoke(
        main,
        [
            *("latency", "--bundle", str(tiny_graphs.folder), "--checkpoint", "nowhere"),
            *("--url", server.endpoints.grpc, "--url", server.endpoints.http),
            *("--limit", "4", "--rounds", "1", "--output", str(output)),
        ],
    )
    assert result.exit_code == 0, result.output
    report = json.loads(output.read_text(encoding="utf-8"))
    assert list(report["paths"]) == ["onnxruntime in process", "served, grpc", "served, http"]
    assert "There is no bundle.json in nowhere" in report["missing"]["PyTorch eager"]
    bare, grpc, http = report["paths"].values()
    assert bare["errors"] == grpc["errors"] == http["errors"] == 0
    for path in (grpc, http):
        assert set(path["stages_ms"]) == {TRANSPORT}  # nobody knows what a given server runs
    assert "There are no metrics at" in report["missing"]["served, grpc: its own stages"]
    assert "TensorRT in process" in report["missing"]
    split(report["paths"], ORT)
    assert sum(grpc["stages_ms"].values()) == pytest.approx(grpc["mean_ms"])
    assert grpc["stages_ms"][ENCODER] == bare["stages_ms"][ENCODER]
    assert "Where it goes, mean ms" in result.output
    assert "PyTorch eager is missing" in result.output


@pytest.mark.e2e
def test_a_real_servers_own_counters(server: EmbeddedServer) -> None:
    data = pictures(3)
    way = ServedWay(server.endpoints.grpc, data, metrics=server.endpoints.metrics)
    try:
        seen = way.take([0, 2, 1])
    finally:
        way.close()
    assert set(seen.stages) == {STEPS, QUEUE, TRANSPORT, SERVER}
    assert sum(seen.stages.values()) == pytest.approx(sum(seen.ms) / 3)
    assert seen.stages[STEPS] > 0
    # The rest: on a busy machine the server's own figures, published once a second, are late.
    assert abs(seen.stages[TRANSPORT]) < sum(seen.ms) / 3


def test_sentences() -> None:
    result = CliRunner().invoke(main, ["latency", "--bundle", "nowhere"])
    assert result.exit_code == 1
    assert "There is no bundle.json in nowhere" in result.stderr
