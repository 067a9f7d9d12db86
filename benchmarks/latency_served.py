"""A served path of ``hmer-bench latency``, and what is known of the time inside the server.

Triton's own statistics end when a model's ``execute`` returns, long before a continuous batcher
answers; the product's models count for themselves, and publish it once a second. So a pass over
the pictures is followed by a look at the server's metrics page: how long requests waited, how long
their steps took, and how long the server had them; what the caller waited beyond that is transport.
Reading the picture and the encoder have no counters; they are told by what the same work takes in
process, where it is known what the server runs (``split_served``).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from http.client import HTTPConnection, HTTPSConnection
from importlib import import_module
from typing import Any

from benchmarks.asking import Reply
from benchmarks.latency import (
    DECODE_IMAGE,
    ENCODER,
    PREPROCESS,
    QUEUE,
    SERVER,
    STEPS,
    TRANSPORT,
    Pass,
)
from benchmarks.server_metrics import Values, between, mean_ms, read_metrics, settled
from client import Recognizer
from client.transport import parse_url
from hmer.errors import HmerError, ServerUnavailable

_PINGS = 20


class ServedWay:
    """A server, over gRPC or HTTP by its ``url``; ``metrics``: its metrics page, if it has one."""

    def __init__(
        self,
        url: str,
        data: Sequence[bytes],
        load_s: float | None = None,
        metrics: str | None = None,
    ) -> None:
        """Send the first request. Raises ``ServerUnavailable``."""
        self._url, self._data, self._metrics = url, data, metrics
        self._recognizer = Recognizer(url, timeout=60.0)
        self.load_s = load_s
        began = time.perf_counter()
        try:
            self._recognizer.recognize(data[0])
        except ServerUnavailable:
            self._recognizer.close()
            raise
        except HmerError:
            pass  # the picture's fault; it is counted with the others
        self.first_ms = (time.perf_counter() - began) * 1e3
        if metrics is not None:
            settled(metrics)  # the first request shall not count with a pass

    def take(self, order: Sequence[int]) -> Pass:
        """See ``Way``."""
        before = None if self._metrics is None else read_metrics(self._metrics)
        ms, replies = [], list[Reply]()
        for index in order:
            began = time.perf_counter()
            try:
                reply: Reply = self._recognizer.recognize(self._data[index]).tokens
            except HmerError as error:
                reply = error
            ms.append((time.perf_counter() - began) * 1e3)
            replies.append(reply)
        stages = {TRANSPORT: round_trip_ms(self._url)}
        if before is not None and self._metrics is not None:
            grown = between(before, settled(self._metrics))
            stages = server_stages(statistics.fmean(ms), grown, len(order)) or stages
        return Pass(ms, replies, stages)

    def close(self) -> None:
        """See ``Way``."""
        self._recognizer.close()


def server_stages(mean: float, grown: Values, requests: int) -> dict[str, float]:
    """Mean milliseconds by stage, from what a server's metrics grew by during a pass.

    ``mean``: what the caller waited. Empty if the server counted other than ``requests`` requests:
    somebody else asked it, it has a cache, or it doesn't count.
    """
    if grown.get("hmer_recognize_request_seconds_count") != requests:
        return {}
    # Of all requests, though a picture at fault gets no further than the first stages.
    total = {
        name: (mean_ms(grown, f"hmer_{name}_seconds") or 0.0)
        * grown.get(f"hmer_{name}_seconds_count", 0.0)
        / requests
        for name in ("recognize_request", "recognize_queue", "decode_queue", "decode_decode")
    }
    queue = total["recognize_queue"] + total["decode_queue"]
    steps, inside = total["decode_decode"], total["recognize_request"]
    return {STEPS: steps, QUEUE: queue, TRANSPORT: mean - inside, SERVER: inside - queue - steps}


def split_served(
    served: dict[str, Any], encoder: Mapping[str, Any], step: Mapping[str, Any]
) -> None:
    """Split a served path's mean further by what the same work takes in process.

    ``encoder`` and ``step``: the figures of the paths in process with the runtimes that the
    server has for each. What is left is the server's own: copies between processes, hops, waiting
    for the encoder, and whatever its share of the CPUs makes slower. A server without counters
    has its steps, too, by what they take in process, and its queue in what is left.
    """
    seen: dict[str, float] = served["stages_ms"]
    stages: dict[str, float] = {
        name: encoder["stages_ms"][name] for name in (DECODE_IMAGE, PREPROCESS, ENCODER)
    }
    stages |= {name: seen[name] for name in (STEPS, QUEUE, TRANSPORT) if name in seen}
    stages.setdefault(STEPS, step["stages_ms"][STEPS])
    stages[SERVER] = served["mean_ms"] - sum(stages.values())
    served["stages_ms"] = stages


def round_trip_ms(url: str) -> float:
    """Median milliseconds of a question that costs the server nothing: is it alive?

    Over one connection that is open already, as a client's is.
    """
    address = parse_url(url)
    with ExitStack() as stack:
        if address.scheme == "grpc":
            triton = import_module("tritonclient.grpc")
            client = stack.enter_context(triton.InferenceServerClient(address.authority))
            ask: Callable[[], object] = client.is_server_live
        else:
            kind = HTTPSConnection if address.scheme == "https" else HTTPConnection
            connection = kind(address.host, address.port, timeout=10)
            stack.callback(connection.close)

            def ask() -> object:
                connection.request("GET", f"{address.path}/v2/health/live")
                return connection.getresponse().read()

        times = []
        for _ in range(_PINGS + 1):
            began = time.perf_counter()
            ask()
            times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times[1:])
