"""``recognize`` as a user's first Triton model: a PyTorch loop, one request at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reference.answers import answer, failure, input_bytes
from benchmarks.reference.eager_loop import EagerLoop
from hmer.runtime import thread_count


class TritonPythonModel:
    """``input`` to the answer's tensors."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the checkpoint beside the models; ``threads`` 0: as many as there are CPUs."""
        parameters = json.loads(args["model_config"])["parameters"]
        checkpoint = Path(args["model_repository"]) / parameters["checkpoint"]["string_value"]
        threads = thread_count(int(parameters["threads"]["string_value"]))
        self._loop = EagerLoop(checkpoint, threads)
        self._loop.recognize(_picture())  # what is warmed up elsewhere is warmed up here

    def execute(self, requests: list[Any]) -> list[Any]:
        """One after another."""
        responses = []
        for request in requests:
            try:
                responses.append(answer(self._loop.recognize(input_bytes(request)).tokens))
            except Exception as error:  # a bad picture fails its own request only
                responses.append(failure(error))
        return responses


def _picture() -> bytes:
    import cv2

    page = np.full((80, 200), 255, np.uint8)
    cv2.putText(page, "x+1", (20, 60), cv2.FONT_HERSHEY_SIMPLEX, 2.0, (0,), 3)
    return bytes(cv2.imencode(".png", page)[1])
