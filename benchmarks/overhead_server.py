"""A server in this process that answers every ``recognize`` at once, with the same bytes.

What a request takes against it is the time of the client and of its wire: nothing is recognised,
and the request isn't read beyond its length. Shared memory can be registered, but is not looked at.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from client.tensors import framed
from hmer import contract
from hmer.errors import MissingDependency

Answer = Mapping[str, str | float]

# What `recognize` answers: a formula of middle length, with every output that a client reads.
ANSWER: Answer = {
    contract.LATEX.name: r"x^{2}+\frac{a}{b}=\sqrt{c}",
    contract.TOKENS.name: r"x ^ { 2 } + \frac { a } { b } = \sqrt { c }",
    contract.SCORE.name: 0.875,
    contract.CONFIDENCE.name: 0.75,
    contract.ALTERNATIVES.name: "[]",
}


@contextmanager
def grpc_instant(answer: Answer = ANSWER) -> Iterator[str]:
    """Over gRPC; gives ``HOST:PORT``. Raises ``MissingDependency``."""
    try:
        grpc: Any = import_module("grpc")
        messages: Any = import_module("tritonclient.grpc.service_pb2")
    except ImportError as error:
        raise MissingDependency(
            f"The client's overhead is measured with tritonclient ({error}): "
            "pip install 'hmer[bench]'."
        ) from error
    message = messages.ModelInferResponse(model_name=contract.RECOGNIZE, model_version="1")
    for name, value in answer.items():
        entry = message.outputs.add(name=name, shape=[1, 1])
        entry.datatype = "BYTES" if isinstance(value, str) else "FP32"
        message.raw_output_contents.append(_binary(value))
    ready: bytes = message.SerializeToString()

    class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
        """Bytes in, bytes out: the messages are not even parsed."""

        def service(self, details: Any) -> Any:
            """Every method; those that register memory have an empty answer."""
            infers = details.method.endswith("/ModelInfer")
            return grpc.unary_unary_rpc_method_handler(
                (lambda request, context: ready) if infers else (lambda request, context: b"")
            )

    server = grpc.server(ThreadPoolExecutor(4), handlers=(Handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


@contextmanager
def http_instant(answer: Answer = ANSWER) -> Iterator[str]:
    """Over HTTP/1.1 with connections that are kept; gives ``http://HOST:PORT``."""
    outputs = [
        {
            "name": name,
            "datatype": "BYTES" if isinstance(value, str) else "FP32",
            "shape": [1, 1],
            "data": [value],
        }
        for name, value in answer.items()
    ]
    body = json.dumps({"model_name": contract.RECOGNIZE, "outputs": outputs}).encode("utf-8")
    ready = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "
    ready += str(len(body)).encode("ascii") + b"\r\n\r\n" + body
    connections: list[socket.socket] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        with contextlib.suppress(OSError):  # the end
            while True:
                connection, _ = listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connections.append(connection)
                threading.Thread(target=_serve, args=(connection, ready), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        for each in (listener, *connections):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        thread.join(5.0)


def _serve(connection: socket.socket, ready: bytes) -> None:
    """Answer what comes, until the other side is done."""
    with contextlib.suppress(OSError, ValueError), connection.makefile("rb") as stream:
        while stream.readline():
            length = 0
            while (line := stream.readline().strip()) != b"":
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            stream.read(length)
            connection.sendall(ready)


def _binary(value: str | float) -> bytes:
    """One value as Triton's binary tensor."""
    if isinstance(value, str):
        return framed(value.encode("utf-8"))
    import numpy as np

    return np.array([value], np.float32).tobytes()
