"""The served model ``decode`` on a fake of Triton's Python API: its answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hmer.bundle import BUNDLE_FILE, Bundle, load_bundle, save_bundle
from hmer.calibration import Calibration
from hmer.contract import UNKNOWN_CONFIDENCE
from hmer.errors import (
    BadParameter,
    InferenceFailed,
    ServerUnavailable,
)
from hmer.preprocess import load, to_batch
from hmer.recognizer import LocalRecognizer
from tests import fake_triton as fake
from tests.model_fixtures import (
    Tensors,
    alternatives,
    ask,
    error_of,
    load_model,
    png,
    same,
    text,
)


@pytest.fixture
def decode(tiny_graphs: Bundle) -> Iterator[Any]:
    model = load_model(tiny_graphs, "decode", slots="4", max_tokens="40")
    yield model
    model.finalize()


@pytest.fixture
def decoder_graphs(tiny_graphs: Bundle) -> Iterator[None]:
    """``decoder_step`` and ``decoder_beam`` for BLS calls."""
    for name in ("decoder_step", "decoder_beam"):
        model = load_model(tiny_graphs, name)
        fake.MODELS[name] = lambda feeds, model=model: model.execute(  # type: ignore[misc]
            [fake.request(feeds)]
        )[0].arrays()
    yield
    fake.MODELS.clear()


def test_decode_together_and_alone(decode: Any, features: list[Tensors]) -> None:
    alone = [text(ask(decode, f).result()) for f in features]
    assert len({row[0][1] for row in alone}) > 3
    together = [sender.result() for sender in [ask(decode, f) for f in features * 4]]
    for one, other in zip(alone * 4, together, strict=True):
        assert same(one, text(other))


def test_bls_and_in_process_agree(
    tiny_graphs: Bundle, decode: Any, decoder_graphs: None, features: list[Tensors]
) -> None:
    bls = load_model(tiny_graphs, "decode", slots="3", max_tokens="40", step="bls")
    senders = [ask(bls, f) for f in features]
    for sender, f in zip(senders, features, strict=True):
        assert same(text(sender.result()), text(ask(decode, f).result()))
    beam = {"beam": 3, "n_best": 3, "length_penalty": "0.8"}
    for f in features[:4]:
        one, other = (ask(model, f, parameters=beam).result() for model in (bls, decode))
        assert same(text(one), text(other))
        assert [tokens for tokens, _ in alternatives(one)] == [t for t, _ in alternatives(other)]
    bls.finalize()


def test_beams(tiny_graphs: Bundle, decode: Any, features: list[Tensors]) -> None:
    """As in process; beside greedy requests; with one slot too few; refused if out of range."""
    senders, wanted = [], []
    with LocalRecognizer(
        tiny_graphs.folder, threads=1, slots=4, max_tokens=40, beam=3, n_best=2
    ) as local:
        for seed, f in enumerate(features):
            wanted.append(local.recognize(png(seed)))
            senders.append(ask(decode, f, parameters={"beam": 3, "n_best": 2}))
            senders.append(ask(decode, f))
    for f, expected, beam, greedy in zip(
        features, wanted, senders[::2], senders[1::2], strict=True
    ):
        assert same(
            text(beam.result()), [(expected.latex, " ".join(expected.tokens), expected.score)]
        )
        found = alternatives(beam.result())
        assert [tuple(tokens) for tokens, _ in found] == [o.tokens for o in expected.alternatives]
        assert same(text(greedy.result()), text(ask(decode, f).result()))
        assert alternatives(greedy.result()) == []
    for parameters, words in (
        ({"beam": 5}, "4 slots"),
        ({"beam": 0}, "beam is 0"),
        ({"beam": "3"}, "beam is '3'"),
        ({"beam": 2, "n_best": 3}, "n_best is 3"),
        ({"n_best": 2}, "n_best is 2"),
        ({"beam": 2, "length_penalty": "long"}, "length_penalty is 'long'"),
        ({"beam": 2, "length_penalty": -1.0}, "length_penalty is -1"),
    ):
        response = ask(decode, features[0], parameters=parameters).result()
        assert isinstance(error_of(response), BadParameter)
        assert words in str(error_of(response))
        assert response.failure().code() == fake.TritonError.INVALID_ARG


def test_beams_without_their_graph_are_refused(
    beamless_graphs: Bundle, features: list[Tensors]
) -> None:
    model = load_model(beamless_graphs, "decode")
    error = error_of(ask(model, features[0], parameters={"beam": 2}).result())
    assert isinstance(error, BadParameter)
    assert "hmer-export onnx --beam" in str(error)
    assert text(ask(model, features[0], parameters={"beam": 1}).result())
    model.finalize()


def test_guards_are_a_parameter(tiny_graphs: Bundle, features: list[Tensors]) -> None:
    free = load_model(tiny_graphs, "decode", guards="False")
    assert free.scheduler._greedy._guards is None
    free.finalize()
    with pytest.raises(fake.TritonModelException, match="True or False"):
        load_model(tiny_graphs, "decode", guards="perhaps")


def test_openvino_agrees(tiny_graphs: Bundle, decode: Any, features: list[Tensors]) -> None:
    pytest.importorskip("openvino")
    encoder = load_model(tiny_graphs, "encoder", target="openvino", threads="1", max_queue="0")
    other = load_model(tiny_graphs, "decode", target="openvino", max_tokens="40")
    for seed, f in enumerate(features[:3]):
        image, size = to_batch([load(png(seed), tiny_graphs.preprocess)])
        encoded = encoder.execute([fake.request({"image": image, "size": size})])[0].arrays()
        assert same(text(ask(other, encoded).result()), text(ask(decode, f).result()))
    # Last in, first out: OpenVINO's cores put back each other's signal stacks.
    other.finalize()
    encoder.finalize()


def test_a_failing_bls_call_fails_its_requests(
    tiny_graphs: Bundle, features: list[Tensors]
) -> None:
    bls = load_model(tiny_graphs, "decode", step="bls")
    fake.MODELS["decoder_step"] = lambda feeds: {"tokens": feeds["token"]}  # and no others
    error = error_of(ask(bls, features[0]).result())
    assert isinstance(error, InferenceFailed)
    assert "decoder_step" in str(error)

    def not_ready(feeds: Tensors) -> Tensors:
        raise RuntimeError("Model decoder_step - Error when running inference: Server not ready")

    fake.MODELS["decoder_step"] = not_ready
    response = ask(bls, features[0]).result()
    assert isinstance(error_of(response), ServerUnavailable)
    assert response.failure().code() == fake.TritonError.UNAVAILABLE
    del fake.MODELS["decoder_step"]
    bls.finalize()


def test_rows_of_one_request(decode: Any, features: list[Tensors]) -> None:
    height = max(f["values"].shape[1] for f in features)
    width = max(f["values"].shape[2] for f in features)

    def padded(values: NDArray[Any]) -> NDArray[Any]:
        fill = [(0, 0), (0, height - values.shape[1]), (0, width - values.shape[2]), (0, 0)]
        return np.pad(values, fill, constant_values=7.0)  # what lies outside must not matter

    joined = {
        name: np.concatenate(
            [padded(f[name]) if name in ("values", "keys") else f[name] for f in features]
        )
        for name in features[0]
    }
    rows = text(ask(decode, joined).result())
    for row, f in zip(rows, features, strict=True):
        assert same([row], text(ask(decode, f).result()))


def test_max_tokens(decode: Any, features: list[Tensors]) -> None:
    full = text(ask(decode, features[0]).result())[0][1].split()
    short = text(ask(decode, features[0], parameters={"max_tokens": 3}).result())[0][1].split()
    assert short == full[:3]
    for wrong in (0, 41, "3", 2.5, True):
        error = error_of(ask(decode, features[0], parameters={"max_tokens": wrong}).result())
        assert isinstance(error, BadParameter)
        assert "1 to 40" in str(error)


def test_features_that_do_not_fit(decode: Any, features: list[Tensors]) -> None:
    too_large = {**features[0], "feature_size": np.array([[900, 1]], np.int32)}
    assert isinstance(error_of(ask(decode, too_large).result()), BadParameter)
    other_network = {**features[0], "state": np.zeros((1, 3), np.float32)}
    assert isinstance(error_of(ask(decode, other_network).result()), InferenceFailed)
    assert text(ask(decode, features[0]).result())


def test_decode_refuses_an_unknown_step(tiny_graphs: Bundle) -> None:
    with pytest.raises(fake.TritonModelException, match="bad_parameter"):
        load_model(tiny_graphs, "decode", step="elsewhere")


def calibrated(graphs: Bundle, folder: Path, calibration: Calibration) -> None:
    """A copy of ``graphs`` with this calibration."""
    shutil.copytree(graphs.folder, folder)
    bundle = load_bundle(folder)
    bundle.details["calibration"] = calibration.to_dict()
    names = json.loads((folder / BUNDLE_FILE).read_text(encoding="utf-8"))["files"]
    save_bundle(bundle, names)


def test_confidence_where_the_bundle_is_calibrated(
    tiny_graphs: Bundle, features: list[Tensors], tmp_path: Path
) -> None:
    folder = tmp_path / "calibrated"
    known = Calibration(0.5, 0.25, 0.0, {"decoding": "greedy"})
    calibrated(tiny_graphs, folder, known)
    model = load_model(load_bundle(folder), "decode", slots="3", max_tokens="40")
    for wanted in ({}, {"beam": 3}):  # it was fitted on greedy answers, and holds for beams
        found = ask(model, features[0], parameters=wanted).result().arrays()
        score, length = float(found["score"][0, 0]), len(found["tokens"][0, 0].split())
        assert found["confidence"][0, 0] == pytest.approx(known.of_score(score, length), rel=1e-4)
    model.finalize()


def test_no_confidence_by_a_calibration_of_another_search(
    tiny_graphs: Bundle, features: list[Tensors], tmp_path: Path
) -> None:
    folder = tmp_path / "calibrated"
    calibrated(
        tiny_graphs, folder, Calibration(0.5, 0.25, 0.0, {"decoding": "beam 4, length penalty 0.6"})
    )
    model = load_model(load_bundle(folder), "decode", slots="3", max_tokens="40")
    found = ask(model, features[0], parameters={"beam": 3}).result().arrays()
    model.finalize()
    assert found["confidence"][0, 0] == UNKNOWN_CONFIDENCE
