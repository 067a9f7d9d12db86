"""HTTP/1.1 with Triton's binary tensor extension, on the standard library alone."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from typing import Any
from urllib.parse import quote

from client.failures import STATUS_OF_HTTP, from_status, no_server
from client.retry import Deadline
from client.transport import Address, Call, ModelState, Outputs
from hmer.contract import INPUT
from hmer.errors import ServerError, ServerUnavailable


class HttpTransport:
    """``Transport`` over kept-alive connections; a thread borrows one for each request."""

    def __init__(self, address: Address) -> None:
        """Connects on the first request."""
        self.url = f"{address.scheme}://{address.authority}{address.path}"
        self._address = address
        self._idle: list[http.client.HTTPConnection] = []
        self._busy: set[http.client.HTTPConnection] = set()
        self._lock = threading.Lock()
        self._closed = False

    def infer(self, call: Call, timeout: float | None) -> Outputs:
        """See ``Transport``."""
        header, body = _request(call, timeout)
        path = f"/v2/models/{quote(call.model, safe='')}"
        if call.version:
            path += f"/versions/{quote(call.version, safe='')}"
        headers = {
            "Content-Type": "application/octet-stream",
            "Inference-Header-Content-Length": str(header),
        }
        status, answer = self._exchange("POST", f"{path}/infer", body, headers, timeout)
        if status != 200:
            name = STATUS_OF_HTTP.get(status, "INTERNAL")
            raise from_status(
                name, _message(answer), self.url, call.model, call.version, call.request_id
            )
        document = self._document(answer)
        return {
            str(entry["name"]): entry["data"][0]
            for entry in document.get("outputs", ())
            if len(entry.get("data", ())) == 1
        }

    def live(self, timeout: float) -> bool:
        """See ``Transport``."""
        return self._exchange("GET", "/v2/health/live", b"", {}, timeout)[0] == 200

    def ready(self, timeout: float) -> bool:
        """See ``Transport``."""
        return self._exchange("GET", "/v2/health/ready", b"", {}, timeout)[0] == 200

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

    def close(self) -> None:
        """See ``Transport``."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            busy = list(self._busy)
        for connection in idle:
            connection.close()
        for connection in busy:
            # Wakes the thread that waits for an answer; closing alone would not.
            with contextlib.suppress(OSError, AttributeError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    def _ask(self, method: str, path: str, timeout: float) -> Any:
        status, answer = self._exchange(method, path, b"", {}, timeout)
        if status != 200:
            name = STATUS_OF_HTTP.get(status, "INTERNAL")
            raise from_status(name, _message(answer), self.url)
        return self._document(answer)

    def _document(self, answer: bytes) -> Any:
        try:
            return json.loads(answer)
        except ValueError:
            raise ServerError(
                f"{self.url} answers, but not as a Triton server. Check the address and the port."
            ) from None

    def _exchange(
        self, method: str, path: str, body: bytes, headers: dict[str, str], timeout: float | None
    ) -> tuple[int, bytes]:
        """Send a request, return the answer's status and body."""
        deadline = Deadline(timeout)
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is not None:
            try:
                return self._send(connection, method, path, body, headers, deadline)
            except ServerUnavailable:
                pass  # the server closed it while it lay idle: that says nothing about now
        return self._send(self._connection(), method, path, body, headers, deadline)

    def _connection(self) -> http.client.HTTPConnection:
        secure = self._address.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        return kind(self._address.host, self._address.port)

    def _send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes,
        headers: dict[str, str],
        deadline: Deadline,
    ) -> tuple[int, bytes]:
        kept = False
        with self._lock:
            self._busy.add(connection)
        try:
            self._limit(connection, deadline)
            connection.request(method, self._address.path + path, body, headers)
            self._limit(connection, deadline)
            response = connection.getresponse()
            answer = response.read()
            kept = not response.will_close
            return response.status, answer
        except TimeoutError:
            raise deadline.exceeded(self.url) from None
        except socket.gaierror:
            raise no_server(self.url, "the host name cannot be resolved") from None
        except http.client.RemoteDisconnected:
            raise no_server(self.url, "connection closed") from None
        except http.client.HTTPException:
            hint = "If that is a server's gRPC port, write HOST:PORT without http://."
            raise no_server(self.url, "what answers there does not speak HTTP", hint) from None
        except OSError as error:
            reason = (error.strerror or type(error).__name__).lower()
            raise no_server(self.url, reason) from None
        finally:
            with self._lock:
                self._busy.discard(connection)
                kept = kept and not self._closed
                if kept:
                    self._idle.append(connection)
            if not kept:
                connection.close()

    @staticmethod
    def _limit(connection: http.client.HTTPConnection, deadline: Deadline) -> None:
        """Let the connection's next steps, connecting included, wait until the deadline only."""
        remaining = deadline.remaining()
        # 0 would make the socket non-blocking
        connection.timeout = None if remaining is None else max(remaining, 1e-3)
        if connection.sock is not None:
            connection.sock.settimeout(connection.timeout)


def _request(call: Call, timeout: float | None) -> tuple[int, bytes]:
    """The length of the JSON header, and header and tensor as one body.

    A BYTES tensor's value is its length (uint32, little endian) and its bytes; without being
    asked for binary outputs, Triton answers in JSON.
    """
    value = len(call.data).to_bytes(4, "little") + call.data
    document: dict[str, object] = {
        "id": call.request_id,
        "inputs": [
            {
                "name": INPUT.name,
                "shape": [1, 1],
                "datatype": "BYTES",
                "parameters": {"binary_data_size": len(value)},
            }
        ],
    }
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
