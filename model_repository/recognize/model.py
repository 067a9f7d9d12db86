"""The life cycle of ``recognize`` and ``recognize_stream``: load, hand requests on, stop."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import triton_python_backend_utils as pb_utils

from hmer import contract, limits
from hmer.bundle import Bundle
from hmer.errors import HmerError, InferenceFailed
from hmer.room import Room
from hmer.serving import CACHE_VARIABLE, REPLY, RecognizeParameters, cache_bytes
from model_repository.decode.metrics import recognize_metrics
from model_repository.recognize.cache import AnswerCache
from model_repository.recognize.front import Front, Way
from model_repository.recognize.job import Job, job_of
from model_repository.recognize.request_log import open_request_log
from model_repository.recognize.road import Road
from model_repository.recognize.through import Through
from model_repository.reply import from_inside, knows_its_own
from model_repository.tracing import open_tracing
from model_repository.triton import (
    Request,
    error_response,
    model_bundle,
    model_parameters,
    model_version,
    refuse,
)

_log = logging.getLogger(__name__)


class TritonPythonModel:
    """``input`` bytes (B, 1) to the answer; a decoupled model sends the tokens before it."""

    bundle: Bundle
    front: Front

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read the bundle and start the threads."""
        self._resources = ExitStack()
        config = json.loads(args["model_config"])
        self._stream = bool(config.get("model_transaction_policy", {}).get("decoupled"))
        try:
            limits.check()
            parameters = model_parameters(args, RecognizeParameters)
            self.bundle = model_bundle(args, parameters.bundle)
            self._limit = parameters.max_tokens
            version = model_version(args)
            cache = AnswerCache(cache_bytes(os.environ.get(CACHE_VARIABLE, "0")))
            road = self._way(args, parameters, version)
            tracing = open_tracing(config["name"], version)
            self._request_log = open_request_log(config["name"], version)
            told = [who.ended for who in (self._request_log, tracing) if who is not None]
            self.front = Front(
                road,
                cache,
                parameters.workers,
                parameters.max_queue,
                Room(parameters.full, parameters.max_wait_ms / 1e3),
                lambda job, error: [tell(job, error) for tell in told if not _inner(job)],
            )
        except HmerError as error:
            self._resources.close()
            refuse(error)
        if tracing:
            self._resources.callback(tracing.close)
        self._resources.callback(self.front.close)
        self._resources.enter_context(
            recognize_metrics(self.front.values, config["name"], str(version))
        )

    def _way(self, args: Mapping[str, str], parameters: RecognizeParameters, version: int) -> Way:
        settings, sizes = self.bundle.preprocess, self.bundle.sizes
        if parameters.through:
            return Through(settings, sizes)
        hosted = {contract.ENCODER: parameters.encoder, contract.DECODE: parameters.decode}
        if not all(hosted.values()):
            return Road(settings, sizes, version)
        from model_repository.hosted import Hosted  # the runtimes, for whoever needs them

        models = Hosted(args, hosted)
        self._resources.callback(models.close)
        return Road(settings, sizes, version, models.call, told=True)

    def execute(self, requests: list[Request]) -> None:
        """Queue; the responses go out from other threads."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                self.front.submit(
                    job_of(request, sender, self.bundle.vocabulary, self._limit, self._stream)
                )
            except Exception as error:
                self._refuse(request, sender, error)

    def _refuse(self, request: Request, sender: Any, error: Exception) -> None:
        if not isinstance(error, HmerError):
            _log.exception("A request could not be read.")
            error = InferenceFailed(f"The request cannot be read: {type(error).__name__}: {error}")
        self.front.stats.failed(error)
        # Before the response: Triton frees the request with the last one.
        name = request.request_id()
        sender.send(error_response(error), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        if self._request_log is not None:
            self._request_log.refused(name, error)

    def finalize(self) -> None:
        """Stop; requests under way are answered with an error."""
        self._resources.close()


def _inner(job: Job) -> bool:
    """Whether the twin asks for somebody, and tells of the request itself."""
    return knows_its_own() and from_inside(job.passed_on.get(REPLY, "")) is not None
