"""The served models on a fake of Triton's Python API."""

from __future__ import annotations

import importlib
import json
import shutil
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from export.config import RepositoryOptions, model_configs
from hmer import contract
from hmer.bundle import BUNDLE_FILE, Bundle, load_bundle, save_bundle
from hmer.calibration import Calibration
from hmer.decode import Stats
from hmer.errors import (
    BadParameter,
    Cancelled,
    CorruptBundle,
    DeadlineExceeded,
    HmerError,
    InferenceFailed,
    Overloaded,
    ServerUnavailable,
    UnreadableImage,
    VocabularyMismatch,
    from_wire,
)
from hmer.preprocess import load, to_batch
from hmer.recognizer import LocalRecognizer
from tests import fake_triton as fake

Tensors = dict[str, NDArray[Any]]


@pytest.fixture(scope="module", autouse=True)
def _fake_api() -> None:
    fake.install()


def args_of(bundle: Bundle, name: str, **parameters: str) -> dict[str, str]:
    """What Triton hands to ``initialize``, with the bundle wherever it is."""
    options = RepositoryOptions(step="bls" if name == "decoder_beam" else None)
    config = model_configs(bundle.sizes, options)[name]
    entries = {
        key: {"string_value": value.string_value} for key, value in config.parameters.items()
    }
    for key, value in {"bundle": str(bundle.folder.resolve()), **parameters}.items():
        entries[key] = {"string_value": value}
    return {
        "model_config": json.dumps({"name": name, "parameters": entries}),
        "model_repository": str(bundle.folder),
    }


def load_model(bundle: Bundle, name: str, **parameters: str) -> Any:
    model = importlib.import_module(f"model_repository.{name}.model").TritonPythonModel()
    model.initialize(args_of(bundle, name, **parameters))
    return model


def error_of(response: fake.InferenceResponse) -> HmerError:
    return from_wire(response.failure().message())


def png(seed: int = 0) -> bytes:
    """Some strokes, different for every seed."""
    rng = np.random.default_rng(seed)
    page = np.full((120, 60 + 40 * (seed % 5)), 255, np.uint8)
    for _ in range(4):
        points = rng.integers(15, np.array(page.shape[::-1]) - 15, (6, 2)).tolist()
        for start, end in pairwise(points):
            cv2.line(page, start, end, (0,), 3)
    return cv2.imencode(".png", page)[1].tobytes()


@pytest.fixture(scope="module")
def features(tiny_graphs: Bundle) -> list[Tensors]:
    """The encoder's outputs for eight pictures, each alone."""
    model = load_model(tiny_graphs, "encoder")
    result = []
    for seed in range(8):
        image, size = to_batch([load(png(seed), tiny_graphs.preprocess)])
        result.append(model.execute([fake.request({"image": image, "size": size})])[0].arrays())
    model.finalize()
    return result


# -- preprocess


def test_preprocess_equals_the_library(tiny_graphs: Bundle) -> None:
    model = load_model(tiny_graphs, "preprocess")
    pictures = [png(seed) for seed in range(3)]
    request = fake.request({"input": fake.bytes_rows(pictures)})
    outputs = model.execute([request])[0].arrays()
    image, size = to_batch([load(data, tiny_graphs.preprocess) for data in pictures])
    assert np.array_equal(outputs["image"], image)
    assert np.array_equal(outputs["size"], size)
    spec = contract.models(tiny_graphs.sizes)["preprocess"]
    assert {name: str(a.dtype) for name, a in outputs.items()} == {
        tensor.name: tensor.dtype for tensor in spec.outputs
    }


def test_a_bad_picture_fails_alone(tiny_graphs: Bundle) -> None:
    model = load_model(tiny_graphs, "preprocess")
    rows = [png(0), b"this is text", png(1), b""]
    responses = model.execute([fake.request({"input": fake.bytes_rows([row])}) for row in rows])
    assert [response.has_error() for response in responses] == [False, True, False, True]
    assert isinstance(error_of(responses[1]), UnreadableImage)
    assert responses[1].failure().code() == fake.TritonError.INVALID_ARG
    assert error_of(responses[3]).code == "empty_input"


def test_a_fault_of_ours_is_an_answer_too(
    tiny_graphs: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(tiny_graphs, "preprocess")

    def fail(*_: Any) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("model_repository.preprocess.model.load", fail)
    response = model.execute([fake.request({"input": fake.bytes_rows([png()])})])[0]
    assert isinstance(error_of(response), InferenceFailed)
    assert response.failure().code() == fake.TritonError.INTERNAL


# -- encoder, decoder_step


def test_encoder_batches_equal_shapes_only(tiny_graphs: Bundle) -> None:
    model = load_model(tiny_graphs, "encoder")
    spec = contract.models(tiny_graphs.sizes)["encoder"]
    batches = [to_batch([load(png(seed), tiny_graphs.preprocess)]) for seed in (0, 1, 0, 2, 5)]
    requests = [fake.request({"image": image, "size": size}) for image, size in batches]
    calls: list[int] = []
    run = model.runner.infer

    def counted(feeds: Tensors) -> Tensors:
        calls.append(len(feeds["image"]))
        return run(feeds)  # type: ignore[no-any-return]

    model.runner.infer = counted
    together = [response.arrays() for response in model.execute(requests)]
    shapes = {image.shape[2:] for image, _ in batches}
    assert len(calls) == len(shapes)
    assert max(calls) > 1
    for request, joint in zip(requests, together, strict=True):
        alone = model.execute([request])[0].arrays()
        for tensor in spec.outputs:
            assert joint[tensor.name].dtype == tensor.dtype
            np.testing.assert_allclose(joint[tensor.name], alone[tensor.name], atol=1e-4)


def test_a_failing_graph_is_an_answer(tiny_graphs: Bundle) -> None:
    model = load_model(tiny_graphs, "encoder")
    image, size = to_batch([load(png(), tiny_graphs.preprocess)])
    requests = [
        fake.request({"image": image, "size": size}),
        fake.request({"image": image.astype(np.float64), "size": size[:, :1]}),
    ]
    good, bad = model.execute(requests)
    assert not good.has_error()
    assert isinstance(error_of(bad), InferenceFailed)


# -- decode


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


def ask(model: Any, inputs: Tensors, **options: Any) -> fake.ResponseSender:
    """Send a request; ``execute`` must not wait for its answer."""
    request = fake.request(inputs, **options)
    assert model.execute([request]) is None
    return request.sender


def text(response: fake.InferenceResponse) -> list[tuple[str, str, float]]:
    outputs = response.arrays()
    assert outputs["latex"].shape == outputs["score"].shape
    return [
        (latex.decode(), tokens.decode(), float(score))
        for latex, tokens, score in zip(
            outputs["latex"][:, 0], outputs["tokens"][:, 0], outputs["score"][:, 0], strict=True
        )
    ]


def same(a: list[tuple[str, str, float]], b: list[tuple[str, str, float]]) -> bool:
    return [row[:2] for row in a] == [row[:2] for row in b] and np.allclose(
        [row[2] for row in a], [row[2] for row in b], rtol=1e-3
    )


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


def alternatives(response: fake.InferenceResponse) -> list[tuple[list[str], float]]:
    (rows,) = response.arrays()["alternatives"]
    return [(entry["tokens"], entry["score"]) for entry in json.loads(rows[0])]


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
    encoder = load_model(tiny_graphs, "encoder", target="openvino", threads="1")
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


class Gate:
    """Holds a decode model's steps until it is opened."""

    def __init__(self, model: Any) -> None:
        self.entered, self._open = threading.Event(), threading.Event()
        step = model.scheduler._greedy._step_fn.step

        def held(slots: Any) -> Any:
            self.entered.set()
            assert self._open.wait(10)
            return step(slots)

        model.scheduler._greedy._step_fn.step = held

    def open(self) -> None:
        self._open.set()


def test_timeout_and_cancellation(decode: Any, features: list[Tensors]) -> None:
    gate = Gate(decode)
    late = ask(decode, features[0], timeout=1000)
    gone = ask(decode, features[1])
    stays = ask(decode, features[2])
    assert gate.entered.wait(10)
    gone.cancel()
    time.sleep(0.06)  # the millisecond is over, and so is the pause between two questions
    gate.open()
    assert isinstance(error_of(late.result()), DeadlineExceeded)
    assert late.result().failure().code() == fake.TritonError.UNAVAILABLE
    assert isinstance(error_of(gone.result()), Cancelled)
    assert gone.result().failure().code() == fake.TritonError.CANCELLED
    assert text(stays.result())
    assert decode.scheduler.stats().slots_in_use == 0


def test_overload(tiny_graphs: Bundle, features: list[Tensors]) -> None:
    model = load_model(tiny_graphs, "decode", slots="1", max_queue="2")
    gate = Gate(model)
    first = ask(model, features[0])
    assert gate.entered.wait(10)
    waiting = [ask(model, features[1]), ask(model, features[2])]
    refused = ask(model, features[3]).result(1)  # while the step is still held
    assert isinstance(error_of(refused), Overloaded)
    assert refused.failure().code() == fake.TritonError.UNAVAILABLE
    # A request of many rows is refused whole, and leaves no row behind.
    rows = {name: np.concatenate([values, values]) for name, values in features[0].items()}
    assert isinstance(error_of(ask(model, rows).result(1)), Overloaded)
    gate.open()
    assert all(text(sender.result()) for sender in [first, *waiting])
    model.finalize()


def test_finalize_answers_what_is_left(tiny_graphs: Bundle, features: list[Tensors]) -> None:
    model = load_model(tiny_graphs, "decode", slots="1")
    gate = Gate(model)
    senders = [ask(model, f) for f in features[:3]]
    assert gate.entered.wait(10)
    threading.Timer(0.1, gate.open).start()
    model.finalize()
    assert all(isinstance(error_of(sender.result(0)), Cancelled) for sender in senders)
    assert not [t for t in threading.enumerate() if t.name.startswith("hmer-")]


def test_metrics(decode: Any, features: list[Tensors]) -> None:
    for f in features:
        ask(decode, f).result()
    deadline = time.monotonic() + 5
    family = fake.MetricFamily.ALL["hmer_decode_completed_total"]
    while family.metrics[-1].value() < len(features) and time.monotonic() < deadline:
        time.sleep(0.05)
    stats: Stats = decode.scheduler.stats()
    assert family.metrics[-1].value() == stats.completed == len(features)
    assert fake.MetricFamily.ALL["hmer_decode_slots"].metrics[-1].value() == 4
    assert fake.MetricFamily.ALL["hmer_decode_tokens_total"].kind == "counter"


# -- loading


@pytest.mark.parametrize(
    "name", ["preprocess", "encoder", "decoder_step", "decoder_beam", "decode"]
)
def test_a_model_refuses_a_changed_bundle(tiny_graphs: Bundle, tmp_path: Path, name: str) -> None:
    for path in tiny_graphs.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    copy = Bundle(tmp_path, "graphs", tiny_graphs.vocabulary, tiny_graphs.preprocess,
                  tiny_graphs.network, tiny_graphs.k, tiny_graphs.beam)  # fmt: skip
    document = json.loads((tmp_path / "bundle.json").read_text(encoding="utf-8"))
    document["vocabulary"]["tokens"].reverse()
    (tmp_path / "bundle.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(fake.TritonModelException) as caught:
        load_model(copy, name)
    assert isinstance(from_wire(str(caught.value)), VocabularyMismatch)
    (tmp_path / "bundle.json").write_bytes((tiny_graphs.folder / "bundle.json").read_bytes())
    (tmp_path / "encoder.onnx").write_bytes(b"")
    with pytest.raises(fake.TritonModelException) as caught:
        load_model(copy, name)
    assert isinstance(from_wire(str(caught.value)), CorruptBundle)


def test_decode_refuses_an_unknown_step(tiny_graphs: Bundle) -> None:
    with pytest.raises(fake.TritonModelException, match="bad_parameter"):
        load_model(tiny_graphs, "decode", step="elsewhere")


def test_confidence_where_the_bundle_is_calibrated(
    tiny_graphs: Bundle, features: list[Tensors], tmp_path: Path
) -> None:
    folder = tmp_path / "calibrated"
    shutil.copytree(tiny_graphs.folder, folder)
    bundle = load_bundle(folder)
    known = Calibration(0.5, 0.25, 0.0, {"decoding": "greedy"})
    bundle.details["calibration"] = known.to_dict()
    names = json.loads((folder / BUNDLE_FILE).read_text(encoding="utf-8"))["files"]
    save_bundle(bundle, names)
    model = load_model(load_bundle(folder), "decode", slots="3", max_tokens="40")
    greedy = ask(model, features[0]).result().arrays()
    beam = ask(model, features[0], parameters={"beam": 3}).result().arrays()
    model.finalize()
    score, length = float(greedy["score"][0, 0]), len(greedy["tokens"][0, 0].split())
    assert greedy["confidence"][0, 0] == pytest.approx(known.of_score(score, length), rel=1e-4)
    assert np.isnan(beam["confidence"][0, 0])  # it was fitted on greedy answers
