"""A model that runs one graph of the bundle through a CPU runtime of ``hmer.runtime``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmer import contract
from hmer.bundle import Bundle
from hmer.contract import ModelSpec
from hmer.errors import HmerError
from hmer.runtime import Runner, open_runner
from hmer.serving import GraphParameters
from model_repository.triton import (
    Request,
    Response,
    array,
    error_response,
    model_bundle,
    model_parameters,
    refuse,
    response,
)

Tensors = dict[str, NDArray[Any]]


class GraphModel:
    """Requests whose tensors have equal shapes run as one batch.

    A subclass names the model of the contract and the graph's file.
    """

    model: str
    file: str

    spec: ModelSpec
    runner: Runner
    bundle: Bundle

    def initialize(self, args: Mapping[str, str]) -> None:
        """Verify the bundle and load the graph."""
        try:
            parameters = model_parameters(args, GraphParameters)
            self.bundle = bundle = model_bundle(args, parameters.bundle)
            self.spec = contract.models(bundle.sizes)[self.model]
            self.runner = open_runner(
                parameters.target,
                bundle.file(self.file),
                threads=parameters.threads,
                precision=parameters.precision,
            )
        except HmerError as error:
            refuse(error)

    def check(self, feed: Tensors) -> None:
        """Raise an ``InputError`` for a request that would fail, or cost too much."""

    def execute(self, requests: list[Request]) -> list[Response]:
        """One response a request, in order."""
        feeds = [{t.name: array(r, t.name) for t in self.spec.inputs} for r in requests]
        groups: dict[tuple[tuple[tuple[int, ...], str], ...], list[int]] = {}
        responses: dict[int, Response] = {}
        for index, feed in enumerate(feeds):
            try:
                self.check(feed)
            except HmerError as error:
                responses[index] = error_response(error)
                continue
            # Types, too: a wrong one must not spoil its neighbours' batch.
            kind = tuple((values.shape[1:], values.dtype.str) for values in feed.values())
            groups.setdefault(kind, []).append(index)
        for indices in groups.values():
            answers = self._run([feeds[index] for index in indices])
            responses.update(zip(indices, answers, strict=True))
        return [responses[index] for index in range(len(requests))]

    def finalize(self) -> None:
        """Free the graph."""
        self.runner.close()

    def _run(self, feeds: Sequence[Tensors]) -> list[Response]:
        try:
            if len(feeds) == 1:
                return [response(self._infer(feeds[0]))]
            joined = {
                t.name: np.concatenate([feed[t.name] for feed in feeds]) for t in self.spec.inputs
            }
            outputs = self._infer(joined)
            first = self.spec.inputs[0].name
            ends = np.cumsum([len(feed[first]) for feed in feeds])
            return [
                response({name: values[end - len(feed[first]) : end]
                          for name, values in outputs.items()})
                for feed, end in zip(feeds, ends, strict=True)
            ]  # fmt: skip
        except Exception as error:  # an exception from execute would end up in the client
            return [error_response(error) for _ in feeds]

    def _infer(self, feeds: Tensors) -> Tensors:
        outputs = self.runner.infer(feeds)
        return {tensor.name: outputs[tensor.name] for tensor in self.spec.outputs}
