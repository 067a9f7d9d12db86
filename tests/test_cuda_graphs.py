"""CUDA graphs of the decoder's step: captured for the very shapes that decode sends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from export.config import (
    CONTAINER,
    TENSORRT,
    ModelConfig,
    RepositoryOptions,
    from_text,
    model_configs,
)
from export.repository import assemble
from export.repository_engines import use_cuda_graphs
from hmer import contract
from hmer.bundle import Bundle
from hmer.decode import decode_all
from hmer.engine import EngineInfo, read_sidecar
from hmer.slots import LADDER, SlotStep, batches_for, ladder_for
from tests.decode_fixtures import SIZES, NumpyDecoder, random_images
from tests.engine_fixtures import make_bundle, make_engines


def configs(bundle: Bundle, folder: Path, slots: int) -> dict[str, ModelConfig]:
    """The parsed configurations of a repository with engines."""
    engines = make_engines(folder / "engines", bundle)
    options = RepositoryOptions(CONTAINER, TENSORRT, slots=slots)
    done = assemble(bundle.folder, folder / "repository", options, engines=engines)
    models = done.folder / "models"
    return {
        name: from_text((models / name / "config.pbtxt").read_text(encoding="utf-8"))
        for name in done.models
    }


def test_the_steps_have_a_graph_for_every_rung(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", beam=4)
    found = configs(bundle, tmp_path, slots=6)
    for name in (contract.DECODER_STEP, contract.DECODER_BEAM):
        cuda = found[name].optimization.cuda
        assert cuda.graphs
        assert [spec.batch_size for spec in cuda.graph_spec] == [1, 2, 4, 6]
        assert not any(spec.HasField("graph_lower_bound") for spec in cuda.graph_spec)
        inputs = {tensor.name for tensor in found[name].input}
        for spec in cuda.graph_spec:
            assert set(spec.input) == inputs, "a graph needs the dims of all inputs"
            features = bundle.sizes.features
            assert list(spec.input["values"].dim) == [8, 32, 2 * features]
            assert list(spec.input["coverage"].dim) == [8, 32]
            assert list(spec.input["token"].dim) == [1]
    assert not found[contract.ENCODER].optimization.cuda.graphs


def test_an_engine_that_cannot_take_their_shape_has_none(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    plan = make_engines(tmp_path / "engines", bundle) / "decoder_step.plan"
    info = read_sidecar(plan)
    options = RepositoryOptions(CONTAINER, TENSORRT)

    def graphs(info: EngineInfo) -> bool:
        config = model_configs(bundle.sizes, options)[contract.DECODER_STEP]
        use_cuda_graphs(config, info, bundle)
        return bool(config.optimization.cuda.graphs)

    line = next(profile for profile in info.profiles if profile.name == "line")
    narrow = replace(line, axes={**line.axes, "feature_width": (1, 20, 28)})
    assert graphs(info)
    assert not graphs(replace(info, profiles=(info.profiles[0], narrow)))
    assert not graphs(replace(info, profiles=info.profiles[:1]))


@pytest.mark.parametrize(("slots", "rungs"), [(1, (1,)), (6, (1, 2, 4, 6)), (32, LADDER)])
def test_the_ladder_ends_with_the_slots(slots: int, rungs: tuple[int, ...]) -> None:
    assert ladder_for(slots) == rungs


def test_decode_sends_the_shapes_of_the_graphs() -> None:
    sent = []
    decoder = NumpyDecoder()

    def run(feeds):  # type: ignore[no-untyped-def]
        sent.append(feeds["coverage"].shape)
        return decoder(feeds)

    step = SlotStep(run, SIZES, 6, **batches_for(TENSORRT, 6, calls_are_dear=True))
    images = random_images(20, 2)
    outcomes = decode_all(step, images, 24)
    assert {shape[0] for shape in sent} <= {1, 2, 4, 6}
    assert {shape[1:] for shape in sent} == {(8, 32)}
    plain = decode_all(SlotStep(NumpyDecoder(), SIZES, 6), images, 24)
    assert [outcome.ids for outcome in outcomes] == [outcome.ids for outcome in plain]


def test_a_cpu_gets_little_padding() -> None:
    assert batches_for("onnxruntime", 16, calls_are_dear=False)["lanes"]
    assert not batches_for("onnxruntime", 16, calls_are_dear=True)["lanes"]
