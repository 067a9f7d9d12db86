"""OpenTelemetry traces: a span for every request of a model, and one for each stage of its way.

Triton has tracing of its own, but it ends where one model calls another: its server 2.51 was tried
with ``trace=request.trace()`` in those calls and ended with signal 11 at the second request. So the
spans are made here, from the times that a request notes on its way (``Job.stages``), when it was
answered; a thread of the SDK sends them. Settings are OpenTelemetry's own variables
(``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT``, ``OTEL_TRACES_SAMPLER``, ``OTEL_SERVICE_NAME``, ...).
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Mapping
from typing import Any, Protocol

from hmer.errors import HmerError, MissingDependency
from hmer.serving import TRACE_VARIABLE, TRACEPARENT

# A collector that is away must not hold up a server that stops.
EXPORT_TIMEOUT_S = 2.0


class Traced(Protocol):
    """What is told of a request (``recognize.job.Job``); times are of ``time.monotonic``."""

    arrived: float
    request_id: str
    stages: dict[str, float]
    first_token_s: float | None
    passed_on: dict[str, Any]


def check_installed() -> None:
    """Raise ``MissingDependency`` unless the SDK and its exporter are there."""
    try:
        found = importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http") is not None
        found = found and importlib.util.find_spec("opentelemetry.sdk") is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        raise MissingDependency("Traces need OpenTelemetry: pip install 'hmer[tracing]'.")


def open_tracing(
    model: str, version: int, environment: Mapping[str, str] | None = None
) -> Tracing | None:
    """What traces requests of ``model``; ``None`` where no collector is named.

    Raises ``MissingDependency``.
    """
    values = os.environ if environment is None else environment
    if not values.get(TRACE_VARIABLE):
        return None
    check_installed()
    return Tracing(model, version)


class Tracing:
    """Sends the spans of ended requests. ``ended`` may be called by several threads."""

    def __init__(self, model: str, version: int) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        service = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "hmer"}
        self._provider = TracerProvider(resource=Resource.create(service), shutdown_on_exit=False)
        exporter = OTLPSpanExporter(timeout=EXPORT_TIMEOUT_S)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("hmer")
        self._model, self._version = model, version

    def ended(self, job: Traced, error: HmerError | None) -> None:
        """Write the spans of ``job``, which was answered now: with ``error``, if there is one."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        now = time.monotonic()
        offset = time.time() - now

        def clock(moment: float) -> int:
            return int((moment + offset) * 1e9)

        header = {TRACEPARENT: str(job.passed_on.get(TRACEPARENT, ""))}
        span = self._tracer.start_span(
            self._model,
            context=TraceContextTextMapPropagator().extract(header),
            kind=SpanKind.SERVER,
            start_time=clock(job.arrived),
            attributes={
                "hmer.model": self._model,
                "hmer.version": self._version,
                "hmer.request_id": job.request_id,
                "hmer.outcome": "ok" if error is None else error.code,
            },
        )
        if span.is_recording():
            inside = set_span_in_context(span)
            stages = [("queue", job.arrived), *job.stages.items()]
            ends = [began for _, began in stages[1:]] + [now]
            for (stage, began), end in zip(stages, ends, strict=True):
                part = self._tracer.start_span(stage, context=inside, start_time=clock(began))
                part.end(end_time=clock(end))
            if job.first_token_s is not None:
                span.add_event("first token", timestamp=clock(job.arrived + job.first_token_s))
            if error is not None:
                span.set_status(Status(StatusCode.ERROR, str(error)))
        span.end(end_time=clock(now))

    def close(self) -> None:
        """Send what is left, and end the thread."""
        self._provider.shutdown()
