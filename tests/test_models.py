"""The served models on a fake of Triton's Python API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hmer import contract
from hmer.bundle import Bundle
from hmer.errors import (
    CorruptBundle,
    InferenceFailed,
    UnreadableImage,
    VocabularyMismatch,
    from_wire,
)
from hmer.preprocess import load, to_batch
from tests import fake_triton as fake
from tests.model_fixtures import (
    Tensors,
    ask,
    error_of,
    load_model,
    png,
)

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
    model = load_model(tiny_graphs, "encoder", max_queue="0")
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
    model = load_model(tiny_graphs, "encoder", max_queue="0")
    image, size = to_batch([load(png(), tiny_graphs.preprocess)])
    requests = [
        fake.request({"image": image, "size": size}),
        fake.request({"image": image.astype(np.float64), "size": size}),
    ]
    good, bad = model.execute(requests)
    assert not good.has_error()
    assert isinstance(error_of(bad), InferenceFailed)
    # The same from the queue of its own that the encoder has by default.
    queued = load_model(tiny_graphs, "encoder")
    one, other = (
        ask(queued, {"image": image, "size": size}),
        ask(queued, {"image": image.astype(np.float64), "size": size}),
    )
    np.testing.assert_allclose(one.result().arrays()["keys"], good.arrays()["keys"], atol=1e-5)
    assert isinstance(error_of(other.result()), InferenceFailed)
    queued.finalize()


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
