"""Triton's HTTP end points, with its binary form of the input."""

from __future__ import annotations

import base64
import json
from collections.abc import Generator
from typing import Any
from urllib.parse import quote

import numpy as np

from client.access import Access
from client.cancellation import Cancellation
from client.failures import STATUS_OF_HTTP, from_status
from client.http_pool import Message, Pool
from client.tensors import framed
from client.transport import Address, Call, ModelInfo, ModelState, Outputs, TensorInfo
from hmer.contract import INPUT
from hmer.errors import HmerError, ServerError


class HttpTransport:
    """``Transport`` over kept-alive connections."""

    def __init__(self, address: Address, access: Access) -> None:
        """Connects on the first request. Raises ``BadParameter`` for broken PEM files."""
        self._pool = Pool(address, access)
        self.url = self._pool.url

    def infer(
        self, call: Call, timeout: float | None, cancellation: Cancellation | None = None
    ) -> Outputs:
        """See ``Transport``."""
        header, body = _request(call, timeout)
        headers = {
            "Content-Type": "application/octet-stream",
            "Inference-Header-Content-Length": str(header),
        }
        message = Message("POST", f"{_path(call.model, call.version)}/infer", body, headers)
        status, answer = self._pool.exchange(message, timeout, cancellation)
        if status != 200:
            raise self._failure(status, answer, call)
        outputs: Outputs = {}
        for entry in self._document(answer).get("outputs", ()):
            data = entry.get("data", ())
            if len(data) == 1:
                outputs[str(entry["name"])] = data[0]
            elif data and not isinstance(data[0], str):
                outputs[str(entry["name"])] = np.array(data).reshape(entry["shape"])
        return outputs

    def stream(
        self, call: Call, timeout: float | None, cancellation: Cancellation | None = None
    ) -> Generator[Outputs, None, None]:
        """See ``Transport``."""
        document: dict[str, object] = dict(call.parameters)
        document["id"] = call.request_id
        document[INPUT.name] = base64.b64encode(call.data).decode("ascii")
        document["encoding"] = "base64"
        if timeout is not None:
            document["timeout"] = max(1, int(timeout * 1e6))  # microseconds
        body = json.dumps(document).encode("utf-8")
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        path = f"{_path(call.model, call.version)}/generate_stream"
        message = Message("POST", path, body, headers)
        with self._pool.answering(message, timeout, cancellation) as (response, trouble):
            if response.status != 200:
                with trouble:
                    answer = response.read()
                raise self._failure(response.status, answer, call)
            while True:
                with trouble:
                    line = response.readline()
                if not line:
                    return
                if line.startswith(b"data:"):
                    yield self._event(line[5:], call)

    def _event(self, data: bytes, call: Call) -> Outputs:
        """One server-sent event: the outputs by name, or an error."""
        document = self._document(data)
        if "error" in document:
            raise from_status(
                "INTERNAL", str(document["error"]), self.url, call.model, call.version
            )
        return {
            str(name): np.array(value) if isinstance(value, list) else value
            for name, value in document.items()
        }

    def live(self, timeout: float) -> bool:
        """See ``Transport``."""
        return self._health("live", timeout)

    def ready(self, timeout: float) -> bool:
        """See ``Transport``."""
        return self._health("ready", timeout)

    def _health(self, what: str, timeout: float) -> bool:
        status, answer = self._pool.exchange(Message("GET", f"/v2/health/{what}"), timeout)
        if status in (401, 403):
            raise self._failure(status, answer)
        return status == 200

    def server(self, timeout: float) -> str:
        """See ``Transport``."""
        metadata = self._ask("GET", "/v2", timeout)
        return f"{metadata.get('name', 'unknown')} {metadata.get('version', '')}".strip()

    def models(self, timeout: float) -> list[ModelState]:
        """See ``Transport``."""
        return [
            ModelState(*(str(entry.get(key, "")) for key in ("name", "version", "state", "reason")))
            for entry in self._ask("POST", "/v2/repository/index", timeout)
        ]

    def model_info(self, name: str, version: str, timeout: float) -> ModelInfo:
        """See ``Transport``."""
        metadata = self._ask("GET", _path(name, version), timeout)
        inputs, outputs = (
            tuple(
                TensorInfo(str(t["name"]), str(t["datatype"]), tuple(map(int, t["shape"])))
                for t in metadata.get(kind, ())
            )
            for kind in ("inputs", "outputs")
        )
        return ModelInfo(name, str(metadata.get("platform", "")), inputs, outputs)

    def register_memory(self, name: str, key: str, size: int, timeout: float) -> None:
        """See ``Transport``."""
        body = json.dumps({"key": key, "offset": 0, "byte_size": size}).encode("utf-8")
        self._ask("POST", f"{_memory(name)}/register", timeout, body)

    def unregister_memory(self, name: str, timeout: float) -> None:
        """See ``Transport``."""
        self._ask("POST", f"{_memory(name)}/unregister", timeout)

    def close(self) -> None:
        """See ``Transport``."""
        self._pool.close()

    def _ask(self, method: str, path: str, timeout: float, body: bytes = b"") -> Any:
        status, answer = self._pool.exchange(Message(method, path, body), timeout)
        if status != 200:
            raise self._failure(status, answer)
        return self._document(answer) if answer.strip() else {}

    def _failure(self, status: int, answer: bytes, call: Call | None = None) -> HmerError:
        name, text = STATUS_OF_HTTP.get(status, "INTERNAL"), _message(answer)
        if call is None:
            return from_status(name, text, self.url)
        return from_status(name, text, self.url, call.model, call.version, call.request_id)

    def _document(self, answer: bytes) -> Any:
        try:
            return json.loads(answer)
        except ValueError:
            raise ServerError(
                f"{self.url} answers, but not as a Triton server. Check the address and the port."
            ) from None


def _path(model: str, version: str) -> str:
    path = f"/v2/models/{quote(model, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}" if version else path


def _memory(name: str) -> str:
    return f"/v2/systemsharedmemory/region/{quote(name, safe='')}"


def _request(call: Call, timeout: float | None) -> tuple[int, bytes]:
    """The length of the JSON header, and header and tensor as one body.

    Without being asked for binary outputs, Triton answers in JSON.
    """
    if call.shared is None:
        value = framed(call.data)
        where: dict[str, object] = {"binary_data_size": len(value)}
    else:
        value = b""
        where = {
            "shared_memory_region": call.shared.region,
            "shared_memory_byte_size": call.shared.size,
        }
    tensor = {"name": INPUT.name, "shape": [1, 1], "datatype": "BYTES", "parameters": where}
    document: dict[str, object] = {"id": call.request_id, "inputs": [tensor]}
    parameters = dict(call.parameters)
    if timeout is not None:
        parameters["timeout"] = max(1, int(timeout * 1e6))  # microseconds
    if parameters:
        document["parameters"] = parameters
    header = json.dumps(document).encode("utf-8")
    return len(header), header + value


def _message(answer: bytes) -> str:
    """Triton's ``{"error": ...}``, or the body as it is."""
    text = answer.decode("utf-8", errors="replace")
    try:
        document = json.loads(text)
    except ValueError:
        return text
    if isinstance(document, dict) and "error" in document:
        return str(document["error"])
    return text
