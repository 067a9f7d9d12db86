"""``recognize`` as the BLS loop that everyone writes: one request, one token a call.

Each step sends the features to ``decoder_step`` again and waits for its answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from benchmarks.reference.answers import answer, failure
from hmer import contract
from hmer.bundle import load_bundle
from hmer.errors import from_wire
from hmer.guards import Guards
from hmer.vocab import EOS_ID, SOS_ID

MAX_TOKENS = 256


class TritonPythonModel:
    """``input`` to the answer's tensors, by calls to the three served models."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read the vocabulary."""
        parameters = json.loads(args["model_config"])["parameters"]
        bundle = load_bundle(Path(args["model_repository"]) / parameters["bundle"]["string_value"])
        self._vocabulary = bundle.vocabulary
        self._guards = Guards(bundle.vocabulary)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One after another."""
        responses = []
        for request in requests:
            try:
                responses.append(answer(self._recognize(request)))
            except Exception as error:  # a bad picture fails its own request only
                responses.append(failure(error))
        return responses

    def _recognize(self, request: Any) -> tuple[str, ...]:
        picture = pb_utils.get_input_tensor_by_name(request, contract.INPUT.name)
        image = _call(contract.PREPROCESS, [picture], ("image", "size"))
        encoded = _call(
            contract.ENCODER, list(image.values()), ("values", "keys", "feature_size", "state")
        )
        state = encoded.pop("state").as_numpy()
        features = list(encoded.values())
        coverage = np.zeros(encoded["keys"].as_numpy().shape[:3], np.float32)
        ids = [SOS_ID]
        while len(ids) <= MAX_TOKENS:
            step = _call(
                contract.DECODER_STEP,
                [
                    *features,
                    pb_utils.Tensor("token", np.array([[ids[-1]]], np.int32)),
                    pb_utils.Tensor("state", state),
                    pb_utils.Tensor("coverage", coverage),
                ],
                ("tokens", "next_state", "next_coverage"),
            )
            # Copies: what as_numpy gives lies in memory of the response, which goes.
            state = step["next_state"].as_numpy().copy()
            coverage = step["next_coverage"].as_numpy().copy()
            ids.append(int(step["tokens"].as_numpy()[0, 0]))
            if ids[-1] == EOS_ID or self._guards.loops(ids[1:]):
                break
        return tuple(self._vocabulary.decode(ids[1:]))


def _call(model: str, inputs: list[Any], outputs: tuple[str, ...]) -> dict[str, Any]:
    result = pb_utils.InferenceRequest(
        model_name=model, requested_output_names=list(outputs), inputs=inputs
    ).exec()
    if result.has_error():
        raise from_wire(str(result.error().message()))
    return {name: pb_utils.get_output_tensor_by_name(result, name) for name in outputs}
