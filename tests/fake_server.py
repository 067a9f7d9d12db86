"""A server in this process that answers as Triton 2.51 was seen to, over gRPC and HTTP.

Both fronts share one ``Script``: what is asked of it, and what it says. Statuses and words of
the failures are those of the real server.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2, service_pb2_grpc

HTTP_STATUS = {
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "NOT_FOUND": 404,
    "INVALID_ARGUMENT": 400,
    "UNIMPLEMENTED": 501,
}


class Refusal(Exception):
    """The server's error: gRPC's status name and Triton's words."""

    def __init__(self, status: str, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass
class Asked:
    """One request as the server saw it; ``timeout_us`` 0: none was given.

    ``parameters`` are the others that came with it.
    """

    model: str
    version: str
    data: bytes
    id: str
    timeout_us: int
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass
class Script:
    """What the server does.

    The tokens of a picture are its bytes' characters, or what ``answers`` has for these bytes,
    separated by spaces. ``refusals`` are by data; ``busy`` refuses so many requests first.
    """

    answers: dict[bytes, str] = field(default_factory=dict)
    refusals: dict[bytes, Refusal] = field(default_factory=dict)
    busy: list[Refusal] = field(default_factory=list)
    delays: dict[bytes, float] = field(default_factory=dict)
    alternatives: str = "[]"
    confidence: float = float("nan")
    ready: bool = True
    asked: list[Asked] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def infer(self, asked: Asked) -> dict[str, str | float]:
        with self.lock:
            self.asked.append(asked)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            refusal = self.busy.pop(0) if self.busy else None
        try:
            if refusal is not None:
                raise refusal
            if asked.model == "classify":
                return {"label": "cat"}
            if asked.model != "recognize":
                raise Refusal(
                    "NOT_FOUND", f"Request for unknown model: '{asked.model}' is not found"
                )
            if asked.version not in ("", "1"):
                raise Refusal(
                    "NOT_FOUND",
                    f"Request for unknown model: 'recognize' version {asked.version} is not found",
                )
            time.sleep(self.delays.get(asked.data, 0.0))
            if asked.data in self.refusals:
                raise self.refusals[asked.data]
            tokens = self.answers.get(asked.data) or " ".join(asked.data.decode("utf-8"))
            return {
                "latex": tokens.replace(" ", ""),
                "tokens": tokens,
                "score": 0.5,
                "confidence": self.confidence,
                "alternatives": self.alternatives,
            }
        finally:
            with self.lock:
                self.at_once -= 1


class _Grpc(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    def __init__(self, script: Script) -> None:
        self.script = script

    def ModelInfer(self, request: Any, context: Any) -> Any:
        (raw,) = request.raw_input_contents
        (tensor,) = request.inputs
        assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("input", "BYTES", [1, 1])
        assert int.from_bytes(raw[:4], "little") == len(raw) - 4
        parameters = {
            name: getattr(value, value.WhichOneof("parameter_choice"))
            for name, value in request.parameters.items()
        }
        timeout = parameters.pop("timeout", 0)
        asked = Asked(
            request.model_name, request.model_version, raw[4:], request.id, timeout, parameters
        )
        try:
            outputs = self.script.infer(asked)
        except Refusal as refusal:
            context.abort(getattr(grpc.StatusCode, refusal.status), str(refusal))
        response = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="1")
        for name, value in outputs.items():
            entry = response.outputs.add(name=name, shape=[1, 1])
            if isinstance(value, str):
                entry.datatype = "BYTES"
                text = value.encode("utf-8")
                response.raw_output_contents.append(len(text).to_bytes(4, "little") + text)
            else:
                entry.datatype = "FP32"
                response.raw_output_contents.append(struct.pack("<f", value))
        return response

    def ServerLive(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerLiveResponse(live=True)

    def ServerReady(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerReadyResponse(ready=self.script.ready)

    def ServerMetadata(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerMetadataResponse(name="triton", version="2.51.0")

    def RepositoryIndex(self, request: Any, context: Any) -> Any:
        response = service_pb2.RepositoryIndexResponse()
        for entry in index(self.script):
            response.models.add(**entry)
        return response


def index(script: Script) -> list[dict[str, str]]:
    """The repository index of either front."""
    if script.ready:
        return [{"name": "recognize", "version": "1", "state": "READY", "reason": ""}]
    return [{"name": "recognize", "version": "1", "state": "UNAVAILABLE", "reason": "no bundle"}]


def _handler(script: Script) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # keeps connections, as Triton does

        def log_message(self, format: str, *args: object) -> None:
            pass

        def reply(self, status: int, document: object) -> None:
            body = json.dumps(document).encode("utf-8") if document is not None else b""
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            answers: dict[str, tuple[int, object]] = {
                "/v2/health/live": (200, None),
                "/v2/health/ready": (200 if script.ready else 400, None),
                "/v2": (200, {"name": "triton", "version": "2.51.0"}),
            }
            self.reply(*answers.get(self.path, (404, {"error": "Not Found"})))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v2/repository/index":
                self.reply(200, [{k: v for k, v in entry.items() if v} for entry in index(script)])
                return
            parts = self.path.split("/")
            version = parts[5] if "versions" in parts else ""
            length = int(self.headers["Inference-Header-Content-Length"])
            header, raw = json.loads(body[:length]), body[length:]
            (tensor,) = header["inputs"]
            assert (tensor["name"], tensor["datatype"], tensor["shape"]) == (
                "input",
                "BYTES",
                [1, 1],
            )
            assert tensor["parameters"]["binary_data_size"] == len(raw)
            assert int.from_bytes(raw[:4], "little") == len(raw) - 4
            parameters = header.get("parameters", {})
            timeout = parameters.pop("timeout", 0)
            asked = Asked(parts[3], version, raw[4:], header["id"], timeout, parameters)
            try:
                outputs = script.infer(asked)
            except Refusal as refusal:
                self.reply(HTTP_STATUS[refusal.status], {"error": str(refusal)})
                return
            entries = [
                {
                    "name": name,
                    "datatype": "BYTES" if isinstance(value, str) else "FP32",
                    "shape": [1, 1],
                    "data": [value],
                }
                for name, value in outputs.items()
            ]
            self.reply(200, {"id": asked.id, "outputs": entries})

    return Handler


@contextmanager
def grpc_server(script: Script, port: int = 0) -> Iterator[str]:
    """A gRPC server; gives ``HOST:PORT``."""
    server = grpc.server(ThreadPoolExecutor(32))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_Grpc(script), server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


@contextmanager
def http_server(script: Script, port: int = 0) -> Iterator[str]:
    """An HTTP server; gives ``http://HOST:PORT``."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        connections: ClassVar[list[socket.socket]] = []

        def process_request(self, request: Any, client_address: Any) -> None:
            self.connections.append(request)
            super().process_request(request, client_address)

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a client that goes away is part of the tests

    server = Server(("127.0.0.1", port), _handler(script))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        for connection in Server.connections:  # kept-alive ones outlive the listening socket
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        thread.join()


SERVERS = {"grpc": grpc_server, "http": http_server}
