"""Does a running server still answer? A small request for every front that answered nobody lately.

A worker that hangs keeps its process, and Triton keeps saying that it is ready. So a thread looks
at the metrics page: a front (``recognize``, ``recognize_stream``) that completed a request since
the last look works, and is left alone. To another one goes a stroke with ``max_tokens=1``, which
passes preprocessing, encoder and decoder in milliseconds; its id is ``ASKED_BY``. An answer is an
answer, also an error that the model gives; a full queue and a time that was up count as one only if
the decoder took steps meanwhile.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import random
import re
import threading
import time
from types import TracebackType

from hmer import contract
from hmer.errors import DeadlineExceeded, Overloaded, ServerUnavailable, from_wire
from model_repository.server import EmbeddedServer
from model_repository.workers import Fault

ASKED_BY = "hmer-serve-supervise"
EVERY_S = 3.0
# For an answer; an idle server takes milliseconds, a busy one shows that it works.
TIMEOUT_S = 10.0
MISSES = 2  # in a row
PUBLISHED_S = 1.5  # after so long what was done is on the metrics page
# What the Python backend says of a worker that ended or hangs.
DEAD_WORKER = "is not healthy"
_FRONTS = (contract.RECOGNIZE, contract.RECOGNIZE_STREAM)
_WORK = re.compile(r"^hmer_(decode_steps|recognize_completed)_total\{(.*)\} ([\d.e+]+)$", re.M)


class Probe:
    """Asks in a thread of its own, while entered as a context; ``fault`` is what it found."""

    def __init__(
        self, server: EmbeddedServer, every: float = EVERY_S, timeout: float = TIMEOUT_S
    ) -> None:
        self._server, self._every, self._timeout = server, every, timeout
        self._fronts = [name for name in _FRONTS if name in server.repository.models]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="hmer-probe", daemon=True)
        self.fault: Fault | None = None

    def __enter__(self) -> Probe:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()

    def _loop(self) -> None:
        missed = dict.fromkeys(self._fronts, 0)
        work = self._work()
        while not self._stop.wait(self._every):
            before, work = work, self._work()
            for front in self._fronts:
                if work.get(front, 0.0) > before.get(front, 0.0):
                    missed[front] = 0
                    continue
                reason = self._ask(front)
                if not reason or (reason == _BUSY and self._stepped(work)):
                    missed[front] = 0
                    continue
                missed[front] += MISSES if DEAD_WORKER in reason else 1
                if missed[front] >= MISSES:
                    self.fault = Fault(
                        "no_answer", f"{front} does not answer any more ({reason}).", front
                    )
                    return

    def _stepped(self, before: dict[str, float]) -> bool:
        """Whether the decoder took steps since ``before``; they are published once a second."""
        self._stop.wait(PUBLISHED_S)
        return self._work().get(contract.DECODE, 0.0) > before.get(contract.DECODE, 0.0)

    def _work(self) -> dict[str, float]:
        """What the metrics page says was done: steps of ``decode``, answers of the fronts."""
        endpoints = self._server.endpoints
        try:
            status, page = self._exchange(endpoints.metrics_port, "GET", "/metrics", "")
        except (OSError, http.client.HTTPException):
            return {}
        found: dict[str, float] = {}
        for _, labels, value in _WORK.findall(page if status == 200 else ""):
            model = re.search(r'model="(\w+)"', labels)
            if model is not None:  # of all versions
                found[model[1]] = found.get(model[1], 0.0) + float(value)
        return found

    def _ask(self, front: str) -> str:
        """Ask a front; why that was no answer, empty if it was."""
        # Never twice the same, which a cache could answer.
        stroke = json.dumps([[[0, 0], [random.uniform(5, 20), 30], [20, random.uniform(0, 20)]]])
        limits = {"max_tokens": 1, "timeout": int(self._timeout * 0.8e6)}
        if front == contract.RECOGNIZE_STREAM:
            encoded = base64.b64encode(stroke.encode("ascii")).decode("ascii")
            path, body = "generate_stream", {"input": encoded, "encoding": "base64", **limits}
        else:
            tensor = {"name": "input", "shape": [1, 1], "datatype": "BYTES", "data": [stroke]}
            path, body = "infer", {"inputs": [tensor], "parameters": limits}
        body["id"] = ASKED_BY
        port = self._server.endpoints.http_port
        try:
            status, text = self._exchange(
                port, "POST", f"/v2/models/{front}/{path}", json.dumps(body)
            )
        except (OSError, http.client.HTTPException) as error:
            return f"no answer within {self._timeout:g} s ({type(error).__name__})"
        return _trouble(status, text)

    def _exchange(self, port: int, method: str, path: str, body: str) -> tuple[int, str]:
        with contextlib.closing(
            http.client.HTTPConnection(
                self._server.endpoints.client_host, port, timeout=self._timeout
            )
        ) as connection:
            end = time.monotonic() + self._timeout
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            if connection.sock is not None:
                connection.sock.settimeout(max(0.1, end - time.monotonic()))
            return response.status, response.read().decode("utf-8", "replace")


_BUSY = "its queue is full or its time was up, and the decoder took no step"


def _trouble(status: int, text: str) -> str:
    """Why an HTTP answer of a front shows that it does not work; empty for a good one."""
    found = re.search(r"\[[a-z_]+\] .*", text, re.DOTALL)
    if found is None:
        return "" if status == 200 else f"HTTP {status}: {text.strip()[:200]}"
    error = from_wire(found[0])
    if isinstance(error, (Overloaded, DeadlineExceeded)):
        return _BUSY
    return str(error)[:200] if isinstance(error, ServerUnavailable) else ""
