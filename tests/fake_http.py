"""The HTTP front of ``tests.fake_server``."""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from typing import Any, ClassVar

import numpy as np

from tests.fake_script import Asked, Refusal, Script, index

HTTP_STATUS = {
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "NOT_FOUND": 404,
    "INVALID_ARGUMENT": 400,
    "UNIMPLEMENTED": 501,
    "UNAUTHENTICATED": 401,
}


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
