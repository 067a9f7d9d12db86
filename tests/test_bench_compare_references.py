"""The references of ``hmer-bench compare`` answer as the product does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hmer import contract
from hmer.bundle import ENCODER_FILE, STEP_FILE, Bundle
from hmer.errors import HmerError
from hmer.preprocess import load, to_batch
from hmer.recognizer import LocalRecognizer
from hmer.runtime import open_runner
from tests import fake_triton
from tests.test_recognizer import pictures


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake of the Python backend's module, for the references."""
    fake_triton.install()
    monkeypatch.setattr(fake_triton, "MODELS", {})


def answers(bundle: Bundle, data: Sequence[bytes]) -> list[tuple[str, ...]]:
    with LocalRecognizer(bundle.folder, threads=1) as recognizer:
        found = recognizer.recognize_many(data)
    return [() if isinstance(f, HmerError) else f.tokens for f in found]


def test_the_eager_loop_gives_the_same_tokens(checkpoint: Path, tiny_graphs: Bundle) -> None:
    from benchmarks.reference.eager_loop import EagerLoop

    data = pictures(6)
    loop = EagerLoop(checkpoint, threads=1)
    read = [loop.recognize(d) for d in data]
    assert [r.tokens for r in read] == answers(tiny_graphs, data)
    assert len({r.tokens for r in read}) > 1
    assert set(read[0].timings) == {"preprocess", "encode", "decode"}


def test_the_eager_model_answers_one_after_another(
    triton: None, checkpoint: Path, tiny_graphs: Bundle
) -> None:
    from benchmarks.reference.eager import TritonPythonModel

    model = TritonPythonModel()
    parameters = {"checkpoint": str(checkpoint), "threads": "1"}
    model.initialize(arguments(parameters))
    data = pictures(3)
    requests = [fake_triton.request({"input": fake_triton.bytes_rows([d])}) for d in data]
    blank = fake_triton.request({"input": fake_triton.bytes_rows([b"no picture"])})
    responses = model.execute([*requests, blank])
    assert [tokens_of(r) for r in responses[:3]] == answers(tiny_graphs, data)
    assert "[unreadable_image]" in responses[3].failure().message()


def test_the_batched_loop_gives_the_same_tokens(triton: None, tiny_graphs: Bundle) -> None:
    from benchmarks.reference.batched import TritonPythonModel

    data = pictures(5)
    model = TritonPythonModel()
    parameters = {"bundle": str(tiny_graphs.folder), "target": "onnxruntime", "threads": "1"}
    model.initialize(arguments(parameters))
    requests = [fake_triton.request(encoded(tiny_graphs, d)) for d in data]
    assert [tokens_of(r) for r in model.execute(requests)] == answers(tiny_graphs, data)
    broken = fake_triton.request({"values": np.zeros((1, 1, 1, 1), np.float32)})
    assert model.execute([broken])[0].has_error()
    model.finalize()


def test_the_naive_loop_calls_a_model_for_every_token(triton: None, tiny_graphs: Bundle) -> None:
    from benchmarks.reference.naive import TritonPythonModel

    (picture,) = pictures(1)
    (expected,) = answers(tiny_graphs, [picture])
    calls = one_token_models(tiny_graphs)
    model = TritonPythonModel()
    model.initialize(arguments({"bundle": str(tiny_graphs.folder)}))
    request = fake_triton.request({"input": fake_triton.bytes_rows([picture])})
    assert tokens_of(model.execute([request])[0]) == expected
    steps = calls.count(contract.DECODER_STEP)
    assert steps in (len(expected), len(expected) + 1)  # <eos>, unless a loop ended it
    assert calls[:2] == [contract.PREPROCESS, contract.ENCODER]
    bad = fake_triton.request({"input": fake_triton.bytes_rows([b"no picture"])})
    assert "[unreadable_image]" in model.execute([bad])[0].failure().message()


def arguments(parameters: dict[str, str]) -> dict[str, str]:
    """What Triton gives to ``initialize``; paths in ``parameters`` are absolute."""
    entries = {name: {"string_value": value} for name, value in parameters.items()}
    return {"model_config": json.dumps({"parameters": entries}), "model_repository": "/"}


def tokens_of(response: Any) -> tuple[str, ...]:
    return tuple(response.arrays()["tokens"][0, 0].decode().split())


def encoded(bundle: Bundle, data: bytes) -> dict[str, Any]:
    """The encoder's outputs for one picture."""
    image, size = to_batch([load(data, bundle.preprocess)])
    with open_runner("onnxruntime", bundle.file(ENCODER_FILE)) as runner:
        return dict(runner.infer({"image": image, "size": size}))


def one_token_models(bundle: Bundle) -> list[str]:
    """Served models of ``bundle`` for the naive loop, a step's first token alone; their calls.

    The graph has k tokens a call, so that its states are ahead: a call is replayed from the
    beginning, which is slow and right.
    """
    calls: list[str] = []
    history: list[int] = []
    runner = open_runner("onnxruntime", bundle.file(STEP_FILE))
    tokens: list[int] = []

    def preprocess(inputs: dict[str, Any]) -> dict[str, Any]:
        calls.append(contract.PREPROCESS)
        try:
            image, size = to_batch([load(inputs["input"][0, 0], bundle.preprocess)])
        except HmerError as error:
            raise RuntimeError(error.to_wire()) from error
        return {"image": image, "size": size}

    def encode(inputs: dict[str, Any]) -> dict[str, Any]:
        calls.append(contract.ENCODER)
        with open_runner("onnxruntime", bundle.file(ENCODER_FILE)) as encoder:
            return dict(encoder.infer(inputs))

    def step(inputs: dict[str, Any]) -> dict[str, Any]:
        calls.append(contract.DECODER_STEP)
        index = len(history)
        history.append(int(inputs["token"][0, 0]))
        if index == 0:
            step.first = inputs["state"].copy()  # type: ignore[attr-defined]
        if index:  # the loop feeds back what it was given
            assert history[index] == tokens[index - 1]
        assert (inputs["coverage"] == index).all()  # marks that must come back
        assert np.allclose(inputs["state"], step.first + index, atol=1e-3)  # type: ignore[attr-defined]
        if index >= len(tokens):
            feeds = dict(inputs)
            if index:
                feeds |= step.ahead  # type: ignore[attr-defined]
                feeds["token"] = np.array([[tokens[-1]]], np.int32)
            outputs = runner.infer(feeds)
            tokens.extend(outputs["tokens"][0].tolist())
            step.ahead = {  # type: ignore[attr-defined]
                "state": outputs["next_state"],
                "coverage": outputs["next_coverage"],
            }
        return {
            "tokens": np.array([[tokens[index]]], np.int32),
            "next_state": inputs["state"] + np.float32(1),
            "next_coverage": inputs["coverage"] + np.float32(1),
        }

    models = {contract.PREPROCESS: preprocess, contract.ENCODER: encode}
    fake_triton.MODELS.update({**models, contract.DECODER_STEP: step})
    return calls
