"""``--target auto``: the fastest by measurement, the simplest of equals, figures kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from export import repository as repository_module
from export.config import (
    AUTO,
    CONTAINER,
    MANY,
    ONNXRUNTIME,
    OPENVINO,
    RepositoryOptions,
    model_configs,
)
from export.repository import assemble
from export.repository_cli import repository
from export.targets import Candidate, Choice, Timing, candidates, choose, resolve, table
from export.timing import SIZES, side_by_side, workload
from hmer.bundle import ENCODER_FILE, STEP_FILE, Bundle
from hmer.errors import BadParameter, BundleError, CorruptBundle, ExportError
from hmer.serving import DecodeParameters, GraphParameters, from_strings

ORT, OV, OV_BF16 = (
    Candidate(ONNXRUNTIME, "fp32"),
    Candidate(OPENVINO, "fp32"),
    Candidate(OPENVINO, "bf16"),
)
Costs = Mapping[tuple[str, str, str], float]  # target, precision, file -> milliseconds a call


class Clock:
    """Seconds that pass only where a fake runner says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class FakeRunner:
    """Takes the time that it is told to."""

    inputs = outputs = ()

    def __init__(self, clock: Clock, cost: float) -> None:
        self.clock, self.cost = clock, cost

    def infer(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.clock.now += self.cost / 1e3
        return {}

    def close(self) -> None:
        pass

    def __enter__(self) -> FakeRunner:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def measured(bundle: Bundle, costs: Costs, among: list[Candidate]) -> Choice:
    clock = Clock()

    def open_graph(target: str, file: str, precision: str, threads: int) -> FakeRunner:
        if (target, precision, file) not in costs:
            raise CorruptBundle(f"{target} cannot load {file}.")
        assert threads == (2 if file == ENCODER_FILE else 1)
        return FakeRunner(clock, costs[target, precision, file])

    return choose(bundle, threads=2, clock=clock, among=among, open_graph=open_graph)


def costs(ort: tuple[float, float], ov: tuple[float, float], bf16: float) -> Costs:
    return {
        (ONNXRUNTIME, "fp32", ENCODER_FILE): ort[0],
        (ONNXRUNTIME, "fp32", STEP_FILE): ort[1],
        (OPENVINO, "fp32", ENCODER_FILE): ov[0],
        (OPENVINO, "fp32", STEP_FILE): ov[1],
        (OPENVINO, "bf16", ENCODER_FILE): bf16,
    }


@pytest.mark.parametrize(
    ("given", "encoder", "step"),
    [
        (costs((10, 2), (20, 3), 4), OV_BF16, ORT),  # matrix units that are there
        (costs((10, 2), (20, 3), 30), ORT, ORT),  # and units that are only emulated
        (costs((10, 2), (8, 1), 8), OV, OV),
        (costs((10, 2), (9.8, 1.99), 9.9), ORT, ORT),  # as good as equal: the simplest
    ],
)
def test_what_is_fastest_is_chosen(
    tiny_graphs: Bundle, given: Costs, encoder: Candidate, step: Candidate
) -> None:
    choice = measured(tiny_graphs, given, [ORT, OV, OV_BF16])
    assert (choice.encoder, choice.step) == (encoder, step)
    first = choice.timings[0]
    assert first.encoder_ms == pytest.approx(10)
    assert first.step_ms == pytest.approx(2)
    assert choice.timings[2].step_ms is None  # a step gains nothing from bf16
    document = choice.to_dict()
    assert document["encoder"] == {"target": encoder.target, "precision": encoder.precision}
    assert len(document["measured"]) == 3
    assert encoder.name in table(choice)


def test_a_runtime_that_cannot_load_is_left_out_with_its_reason(tiny_graphs: Bundle) -> None:
    given = costs((10, 2), (1, 1), 1)
    only = {key: value for key, value in given.items() if key[0] == ONNXRUNTIME}
    choice = measured(tiny_graphs, only, [ORT, OV])
    assert (choice.encoder, choice.step) == (ORT, ORT)
    assert choice.timings[1].encoder_ms is None
    assert "openvino cannot load encoder.onnx" in table(choice)
    with pytest.raises(BundleError, match="No runtime here can run"):
        measured(tiny_graphs, {}, [ORT, OV])
    with pytest.raises(ExportError, match="No CPU runtime is installed"):
        choose(tiny_graphs, among=[])


def test_candidates_fit_bundle_and_cpu(tiny_graphs: Bundle) -> None:
    pytest.importorskip(OPENVINO)
    assert candidates(tiny_graphs, has_bf16=lambda: True) == [ORT, OV, OV_BF16]
    assert candidates(tiny_graphs, has_bf16=lambda: False) == [ORT, OV]
    int8 = replace(tiny_graphs, precision="int8")
    assert [c.name for c in candidates(int8, has_bf16=lambda: False)] == [
        "onnxruntime int8",
        "openvino int8",
    ]
    bf16 = replace(tiny_graphs, precision="bf16")
    assert candidates(bf16, has_bf16=lambda: True) == [OV_BF16]


def test_turns_are_taken_and_the_median_counts() -> None:
    clock, calls = Clock(), []
    slow = iter([9.0, 1.0, 50.0, 2.0])  # the first prepares, the 50 is a disturbance

    def run(name: str, seconds: float) -> None:
        calls.append(name)
        clock.now += seconds

    medians = side_by_side(
        {"a": lambda: run("a", next(slow)), "b": lambda: run("b", 3.0)}, rounds=3, clock=clock
    )
    assert calls == ["a", "b"] * 4
    assert medians == {"a": 2.0, "b": 3.0}


def test_the_work_fits_the_graphs(tiny_graphs: Bundle) -> None:
    choice = choose(tiny_graphs, threads=1, among=[ORT])
    assert choice.encoder == ORT
    assert len(workload(tiny_graphs).encoder) == len(SIZES)
    feeds = workload(tiny_graphs).step[0]
    assert feeds["values"].shape[1] * tiny_graphs.sizes.stride == SIZES[0][0]
    assert np.isfinite(feeds["state"]).all()


# In a repository

MIXED = Choice(OV_BF16, ORT, (Timing(ORT, 9.0, 1.0), Timing(OV_BF16, 3.0, None)), 2)


def test_encoder_and_decoder_may_run_in_two_runtimes(tiny_graphs: Bundle) -> None:
    options = resolve(RepositoryOptions(target=AUTO, processes=MANY), MIXED)
    assert options.runtimes == (OPENVINO, ONNXRUNTIME)
    configs = model_configs(tiny_graphs.sizes, options)

    def parameters(name: str) -> dict[str, str]:
        return {key: p.string_value for key, p in configs[name].parameters.items()}

    encoder = from_strings(GraphParameters, parameters("encoder"))
    assert (encoder.target, encoder.precision) == (OPENVINO, "bf16")
    step = from_strings(DecodeParameters, parameters("decode"))
    assert (step.target, step.precision) == (ONNXRUNTIME, "fp32")


def test_the_choice_is_written_down_and_shown(
    tiny_graphs: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository_module, "choose", lambda *_, **__: MIXED)
    call = [str(tiny_graphs.folder), "--target", AUTO, "-o"]
    result = CliRunner().invoke(repository, [*call, str(tmp_path / "r")])
    assert result.exit_code == 0, result.output
    assert "Chosen: openvino bf16 for the encoder, onnxruntime for the decoder." in result.stdout
    document = json.loads((tmp_path / "r" / "repository.json").read_text(encoding="utf-8"))
    assert document["target"] == OPENVINO
    assert document["auto"]["measured"][0]["encoder_ms"] == 9.0
    requirements = (tmp_path / "r" / "requirements.txt").read_text(encoding="utf-8").split()
    assert {OPENVINO, ONNXRUNTIME} <= set(requirements)
    result = CliRunner().invoke(repository, [*call, str(tmp_path / "j"), "--json"])
    assert json.loads(result.stdout)["auto"]["encoder"]["precision"] == "bf16"


def test_what_auto_and_a_precision_do_not_go_with(tiny_graphs: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BadParameter, match="measures this machine's CPU"):
        RepositoryOptions(host=CONTAINER, target=AUTO)
    with pytest.raises(BadParameter, match="decoder's target"):
        RepositoryOptions(host=CONTAINER, target=ONNXRUNTIME, step_target=OPENVINO)
    with pytest.raises(BadParameter, match="decoder's target"):
        RepositoryOptions(step_target="tensorrt")
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for path in tiny_graphs.folder.iterdir():
        (bundle / path.name).write_bytes(path.read_bytes())
    document = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    text = json.dumps(document | {"precision": "bf16"})
    (bundle / "bundle.json").write_text(text, encoding="utf-8")
    with pytest.raises(BadParameter, match=r"computes in bf16.*--target openvino"):
        assemble(bundle, tmp_path / "r", RepositoryOptions())
    assert not (tmp_path / "r").exists()
