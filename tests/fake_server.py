"""A server in this process that answers as Triton 2.51 was seen to, over gRPC and HTTP.

Both fronts share one ``Script``: what is asked of it, and what it says. Statuses and words of
the failures are those of the real server.
"""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from multiprocessing.shared_memory import SharedMemory
from typing import Any, ClassVar

import grpc  # type: ignore[import-untyped]
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

HTTP_STATUS = {
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "NOT_FOUND": 404,
    "INVALID_ARGUMENT": 400,
    "UNIMPLEMENTED": 501,
    "UNAUTHENTICATED": 401,
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
    headers: dict[str, str] = field(default_factory=dict)
    shared: str = ""  # the region that the data lay in


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
    hold: Callable[[Asked], None] = lambda asked: None  # is called while a request is under way
    alternatives: str = "[]"
    confidence: float = -1.0
    pause: float = 0.0  # seconds before every token of a stream
    ended: int = 0  # streams that were followed to their end
    token: str = ""  # a bearer token, without which nothing is answered
    regions: dict[str, str] = field(default_factory=dict)  # shared memory: key by name
    metrics: str = ""
    ready: bool = True
    asked: list[Asked] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def infer(self, asked: Asked) -> dict[str, Any]:
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
            if asked.model not in ("recognize", "recognize_stream"):
                raise Refusal(
                    "NOT_FOUND", f"Request for unknown model: '{asked.model}' is not found"
                )
            if asked.version not in ("", "1"):
                raise Refusal(
                    "NOT_FOUND",
                    f"Request for unknown model: 'recognize' version {asked.version} is not found",
                )
            time.sleep(self.delays.get(asked.data, 0.0))
            self.hold(asked)
            if asked.data in self.refusals:
                raise self.refusals[asked.data]
            tokens = self.answers.get(asked.data) or " ".join(asked.data.decode("utf-8"))
            outputs: dict[str, Any] = {
                "latex": tokens.replace(" ", ""),
                "tokens": tokens,
                "score": 0.5,
                "confidence": self.confidence,
                "alternatives": self.alternatives,
            }
            if asked.parameters.get("attention"):
                outputs["attention"] = [[[0.25, 0.75]]] * len(tokens.split())
                outputs["attention_box"] = [0.0, 0.0, 32.0, 16.0]
            return outputs
        finally:
            with self.lock:
                self.at_once -= 1

    def stream(self, asked: Asked) -> Iterator[dict[str, Any]]:
        """The responses of ``recognize_stream``."""
        outputs = self.infer(asked)
        for place, token in enumerate(outputs["tokens"].split()):
            time.sleep(self.pause)
            yield {"token": token, "token_score": 0.5, "index": place}
        yield outputs
        with self.lock:
            self.ended += 1

    def enter(self, headers: dict[str, str]) -> None:
        """Refuse who has no token, if one is needed."""
        if self.token and headers.get("authorization") != f"Bearer {self.token}":
            raise Refusal("UNAUTHENTICATED", "no valid bearer token")

    def memory(self, name: str, size: int) -> bytes:
        """What lies in registered shared memory, as Triton reads it."""
        if name not in self.regions:
            raise Refusal("NOT_FOUND", f"Unable to find shared memory region: '{name}'")
        memory = SharedMemory(self.regions[name].lstrip("/"))
        try:
            assert memory.buf is not None
            return bytes(memory.buf[:size])
        finally:
            memory.close()


class _Grpc(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    def __init__(self, script: Script) -> None:
        self.script = script

    def enter(self, context: Any) -> dict[str, str]:
        headers = dict(context.invocation_metadata())
        try:
            self.script.enter(headers)
        except Refusal as refusal:
            context.abort(getattr(grpc.StatusCode, refusal.status), str(refusal))
        return headers

    def asked(self, request: Any, context: Any) -> Asked:
        headers = self.enter(context)
        (tensor,) = request.inputs
        region = ""
        if "shared_memory_region" in tensor.parameters:
            region = tensor.parameters["shared_memory_region"].string_param
            size = tensor.parameters["shared_memory_byte_size"].int64_param
            raw = self.script.memory(region, size)
        else:
            (raw,) = request.raw_input_contents
        assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("input", "BYTES", [1, 1])
        assert int.from_bytes(raw[:4], "little") == len(raw) - 4
        parameters = {
            name: getattr(value, value.WhichOneof("parameter_choice"))
            for name, value in request.parameters.items()
        }
        timeout = parameters.pop("timeout", 0)
        return Asked(
            request.model_name,
            request.model_version,
            raw[4:],
            request.id,
            timeout,
            parameters,
            headers,
            region,
        )

    def ModelInfer(self, request: Any, context: Any) -> Any:
        try:
            outputs = self.script.infer(self.asked(request, context))
        except Refusal as refusal:
            context.abort(getattr(grpc.StatusCode, refusal.status), str(refusal))
        return self.response(outputs)

    def ModelStreamInfer(self, requests: Any, context: Any) -> Any:
        for request in requests:
            try:
                for outputs in self.script.stream(self.asked(request, context)):
                    if not context.is_active():
                        return
                    yield service_pb2.ModelStreamInferResponse(
                        infer_response=self.response(outputs)
                    )
            except Refusal as refusal:
                if refusal.status == "UNAVAILABLE":
                    context.abort(grpc.StatusCode.UNAVAILABLE, str(refusal))
                yield service_pb2.ModelStreamInferResponse(error_message=str(refusal))

    def response(self, outputs: dict[str, Any]) -> Any:
        response = service_pb2.ModelInferResponse(model_name="recognize", model_version="1")
        for name, value in outputs.items():
            entry = response.outputs.add(name=name)
            if isinstance(value, str):
                entry.datatype = "BYTES"
                entry.shape.extend([1, 1])
                text = value.encode("utf-8")
                response.raw_output_contents.append(len(text).to_bytes(4, "little") + text)
            else:
                array = np.array(value, np.float32)
                entry.datatype = "FP32"
                entry.shape.extend([1, *(array.shape or (1,))])
                response.raw_output_contents.append(array.tobytes())
        return response

    def SystemSharedMemoryRegister(self, request: Any, context: Any) -> Any:
        self.script.regions[request.name] = request.key
        return service_pb2.SystemSharedMemoryRegisterResponse()

    def SystemSharedMemoryUnregister(self, request: Any, context: Any) -> Any:
        self.script.regions.pop(request.name)
        return service_pb2.SystemSharedMemoryUnregisterResponse()

    def ModelMetadata(self, request: Any, context: Any) -> Any:
        response = service_pb2.ModelMetadataResponse(name=request.name, platform="python")
        response.inputs.add(name="input", datatype="BYTES", shape=[-1, 1])
        response.outputs.add(name="latex", datatype="BYTES", shape=[-1, 1])
        return response

    def ServerLive(self, request: Any, context: Any) -> Any:
        self.enter(context)
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
        disable_nagle_algorithm = True  # no 40 ms between an answer's head and body

        def log_message(self, format: str, *args: object) -> None:
            pass

        def reply(self, status: int, document: object) -> None:
            body = json.dumps(document).encode("utf-8") if document is not None else b""
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            if not self.entered():
                return
            if self.path == "/metrics":
                self.send_response(200)
                self.send_header("Content-Length", str(len(script.metrics.encode())))
                self.end_headers()
                self.wfile.write(script.metrics.encode())
                return
            tensor = [{"name": "input", "datatype": "BYTES", "shape": [-1, 1]}]
            answers: dict[str, tuple[int, object]] = {
                "/v2/health/live": (200, None),
                "/v2/health/ready": (200 if script.ready else 400, None),
                "/v2": (200, {"name": "triton", "version": "2.51.0"}),
                "/v2/models/recognize/versions/1": (200, {"platform": "python", "inputs": tensor}),
            }
            self.reply(*answers.get(self.path, (404, {"error": "Not Found"})))

        def entered(self) -> bool:
            try:
                script.enter({name.lower(): value for name, value in self.headers.items()})
            except Refusal as refusal:
                self.reply(401, {"error": str(refusal)})
                return False
            return True

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if not self.entered():
                return
            if self.path == "/v2/repository/index":
                self.reply(200, [{k: v for k, v in entry.items() if v} for entry in index(script)])
            elif "/systemsharedmemory/" in self.path:
                *_, name, verb = self.path.split("/")
                if verb == "register":
                    script.regions[name] = json.loads(body)["key"]
                else:
                    script.regions.pop(name)
                self.reply(200, None)
            elif self.path.endswith("/generate_stream"):
                self.stream(json.loads(body))
            else:
                self.infer(body)

        def infer(self, body: bytes) -> None:
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
            region = tensor["parameters"].get("shared_memory_region", "")
            parameters = header.get("parameters", {})
            timeout = parameters.pop("timeout", 0)
            try:
                if region:
                    size = tensor["parameters"]["shared_memory_byte_size"]
                    raw = script.memory(region, size)
                else:
                    assert tensor["parameters"]["binary_data_size"] == len(raw)
                assert int.from_bytes(raw[:4], "little") == len(raw) - 4
                asked = Asked(parts[3], version, raw[4:], header["id"], timeout, parameters)
                asked.headers = {name.lower(): value for name, value in self.headers.items()}
                asked.shared = region
                outputs = script.infer(asked)
            except Refusal as refusal:
                self.reply(HTTP_STATUS[refusal.status], {"error": str(refusal)})
                return
            entries = [
                {
                    "name": name,
                    "datatype": "BYTES" if isinstance(value, str) else "FP32",
                    "shape": [1, *(np.array(value).shape or (1,))],
                    "data": np.array(value).reshape(-1).tolist(),
                }
                for name, value in outputs.items()
            ]
            self.reply(200, {"id": asked.id, "outputs": entries})

        def stream(self, document: dict[str, Any]) -> None:
            data = base64.b64decode(document.pop("input"))
            assert document.pop("encoding") == "base64"
            timeout, name = document.pop("timeout", 0), document.pop("id")
            asked = Asked(self.path.split("/")[3], "", data, name, timeout, document)
            parts = script.stream(asked)
            try:
                first = next(parts)
            except Refusal as refusal:
                self.reply(HTTP_STATUS[refusal.status], {"error": str(refusal)})
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            with suppress(OSError):  # the client has gone
                for outputs in chain([first], parts):
                    event = f"data: {json.dumps(outputs)}\n\n".encode()
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
                self.wfile.write(b"0\r\n\r\n")

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
