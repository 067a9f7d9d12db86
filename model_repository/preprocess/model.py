"""Encoded pictures or ink in, one padded image a row out: ``hmer.preprocess`` for Triton."""

from __future__ import annotations

from collections.abc import Mapping

from hmer import contract
from hmer.errors import HmerError
from hmer.preprocess import PreprocessSettings, load, to_batch
from hmer.serving import PreprocessParameters
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


class TritonPythonModel:
    """``input`` bytes (B, 1) to ``image`` uint8 (B, 1, H, W) and ``size`` int32 (B, 2)."""

    settings: PreprocessSettings

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read the settings that the network was trained with."""
        try:
            parameters = model_parameters(args, PreprocessParameters)
            self.settings = model_bundle(args, parameters.bundle).preprocess
        except HmerError as error:
            refuse(error)

    def execute(self, requests: list[Request]) -> list[Response]:
        """One response a request; a bad input fails its own request only."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Response:
        try:
            rows = array(request, contract.INPUT.name).reshape(-1)
            image, size = to_batch([load(row, self.settings) for row in rows])
        except Exception as error:  # any that is raised further would fail the neighbours too
            return error_response(error)
        return response({contract.IMAGE.name: image, contract.SIZE.name: size})
