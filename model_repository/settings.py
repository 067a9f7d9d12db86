"""What a server lets others do, and what it tells about itself: Triton's options for it.

Everything that a client of ``recognize`` does not need is closed unless it is asked for: loading
and unloading models, and registering shared memory, by which who reaches the ports could have the
server read any region of this machine's ``/dev/shm``. Triton's trace and log settings stay closed.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from hmer.serving import (
    CACHE_VARIABLE,
    JSON,
    LOG_FORMATS,
    LOG_VARIABLE,
    TRACE_VARIABLE,
    TRACEPARENT,
)

# Of Triton's protocols those that change or show more than a model's answers.
CLOSED = ("trace", "logging")
SHARED_MEMORY = "shared-memory"
# A restricted protocol asks for a header with a value; nobody is told this one.
_HEADER = "hmer-closed"


@dataclass(frozen=True)
class ServerSettings:
    """All closed and quiet by default.

    ``cache``: bytes of answers that ``recognize`` and ``recognize_stream`` keep, each.
    ``model_control``: let whoever reaches the ports load and unload models (which
    ``model_repository.versions`` needs). ``shared_memory``: let them register this machine's shared
    memory (``hmer-client recognize --shared-memory``). ``log_requests``: one of ``LOG_FORMATS`` for
    a line a request in the log, ``None``: none. ``trace_url``: where traces go, an OTLP/HTTP end
    point such as ``http://localhost:4318/v1/traces``; ``trace_rate``: the part of requests, 0 to 1,
    that are traced if their caller did not decide.
    """

    cache: int = 0
    model_control: bool = False
    shared_memory: bool = False
    log_requests: str | None = None
    trace_url: str | None = None
    trace_rate: float = 1.0

    def __post_init__(self) -> None:
        assert self.log_requests in (None, *LOG_FORMATS)

    def arguments(self) -> list[str]:
        """For ``tritonserver``, embedded or in NVIDIA's image."""
        closed = [*CLOSED, *([] if self.shared_memory else [SHARED_MEMORY])]
        restricted = f"{','.join(closed)}:{_HEADER}={secrets.token_hex(16)}"
        control = (
            ["--model-control-mode=explicit", "--load-model=*"]
            if self.model_control
            else ["--model-control-mode=none"]
        )
        traced = (
            [
                f"--http-header-forward-pattern={TRACEPARENT}",
                f"--grpc-header-forward-pattern={TRACEPARENT}",
            ]
            if self.trace_url
            else []
        )
        return [
            *control,
            f"--http-restricted-api={restricted}",
            f"--grpc-restricted-protocol={restricted}",
            *(["--log-format=ISO8601"] if self.log_requests == JSON else []),
            *traced,
        ]

    def environment(self, given: Mapping[str, str] = os.environ) -> dict[str, str]:
        """Variables for the server's models; ``given`` are those that it inherits."""
        values = {CACHE_VARIABLE: str(self.cache), LOG_VARIABLE: self.log_requests or ""}
        if self.trace_url:
            values[TRACE_VARIABLE] = self.trace_url
            if "OTEL_TRACES_SAMPLER" not in given:
                values["OTEL_TRACES_SAMPLER"] = "parentbased_traceidratio"
                values["OTEL_TRACES_SAMPLER_ARG"] = str(self.trace_rate)
        return values
