"""The served models on a fake of Triton's Python API: how tests load and ask them."""

from __future__ import annotations

import importlib
import json
import threading
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from export.config import RepositoryOptions, model_configs
from hmer.bundle import Bundle
from hmer.errors import HmerError, from_wire
from hmer.preprocess import load, to_batch
from tests import fake_triton as fake

Tensors = dict[str, NDArray[Any]]


def args_of(bundle: Bundle, name: str, **parameters: str) -> dict[str, str]:
    """What Triton hands to ``initialize``, with the bundle wherever it is."""
    called = name in ("decoder_step", "decoder_beam")
    options = RepositoryOptions(step="bls" if called else None, preprocessors=1)
    config = model_configs(bundle.sizes, options)[name]
    entries = {
        key: {"string_value": value.string_value} for key, value in config.parameters.items()
    }
    for key, value in {"bundle": str(bundle.folder.resolve()), **parameters}.items():
        entries[key] = {"string_value": value}
    return {
        "model_config": json.dumps(
            {
                "name": name,
                "parameters": entries,
                "model_transaction_policy": {
                    "decoupled": config.model_transaction_policy.decoupled
                },
            }
        ),
        "model_repository": str(bundle.folder),
        "model_version": "1",
    }


def load_model(bundle: Bundle, name: str, **parameters: str) -> Any:
    """A served model that is ready, over the fake."""
    fake.install()
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


def alternatives(response: fake.InferenceResponse) -> list[tuple[list[str], float]]:
    (rows,) = response.arrays()["alternatives"]
    return [(entry["tokens"], entry["score"]) for entry in json.loads(rows[0])]


class Gate:
    """Holds a decode model's steps until it is opened."""

    def __init__(self, model: Any) -> None:
        self.entered, self._open = threading.Event(), threading.Event()
        self._steps = model.scheduler._greedy._step_fn
        self._step = self._steps.step

        def held(slots: Any) -> Any:
            self.entered.set()
            assert self._open.wait(10)
            return self._step(slots)

        self._steps.step = held

    def open(self) -> None:
        """Let the steps go on."""
        self._open.set()

    def open_later(self, seconds: float = 0.1) -> None:
        """The same, while the caller waits for something."""
        threading.Timer(seconds, self.open).start()

    def close(self) -> None:
        """Take it away."""
        self.open()
        self._steps.step = self._step


@pytest.fixture(scope="session")
def features(tiny_graphs: Bundle) -> list[Tensors]:
    """The encoder's outputs for eight pictures, each alone."""
    model = load_model(tiny_graphs, "encoder", max_queue="0")
    result = []
    for seed in range(8):
        image, size = to_batch([load(png(seed), tiny_graphs.preprocess)])
        result.append(model.execute([fake.request({"image": image, "size": size})])[0].arrays())
    model.finalize()
    return result
