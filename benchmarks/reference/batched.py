"""``decode`` as a loop over a dynamic batch: all of it is answered when its longest has ended."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from benchmarks.reference.answers import answer, failure
from benchmarks.reference.padding import padded
from hmer.bundle import STEP_FILE, load_bundle
from hmer.guards import Guards
from hmer.runtime import open_runner
from hmer.vocab import EOS_ID

MAX_TOKENS = 256
_ENCODED = ("values", "keys", "feature_size", "state")


class TritonPythonModel:
    """Features to the answer's tensors; the step runs in this process, k tokens a call."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the step's graph."""
        given = json.loads(args["model_config"])["parameters"]
        parameters = {name: entry["string_value"] for name, entry in given.items()}
        bundle = load_bundle(Path(args["model_repository"]) / parameters["bundle"])
        self._vocabulary = bundle.vocabulary
        self._guards = Guards(bundle.vocabulary)
        self._runner = open_runner(
            parameters["target"], bundle.file(STEP_FILE), threads=int(parameters["threads"])
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """All of Triton's batch together."""
        try:
            rows = [
                {n: pb_utils.get_input_tensor_by_name(r, n).as_numpy()[0] for n in _ENCODED}
                for r in requests
            ]
            return [answer(self._vocabulary.decode(ids)) for ids in self.decode(rows)]
        except Exception as error:
            return [failure(error) for _ in requests]

    def decode(self, rows: Sequence[Mapping[str, NDArray[Any]]]) -> list[list[int]]:
        """Ids of every row: the padded batch is stepped until no row goes on."""
        feeds = padded(rows)
        ids: list[list[int]] = [[] for _ in rows]
        going = set(range(len(rows)))
        while going:
            outputs = self._runner.infer(feeds)
            feeds["state"], feeds["coverage"] = outputs["next_state"], outputs["next_coverage"]
            feeds["token"] = np.ascontiguousarray(outputs["tokens"][:, -1:])
            for row in sorted(going):
                for index in outputs["tokens"][row].tolist():
                    ids[row].append(index)
                    if (
                        index == EOS_ID
                        or len(ids[row]) == MAX_TOKENS
                        or self._guards.loops(ids[row])
                    ):
                        going.discard(row)
                        break
        return ids

    def finalize(self) -> None:
        """Free the graph."""
        self._runner.close()
