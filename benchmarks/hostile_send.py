"""Sends hostile cases, and says what came back."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
from importlib import import_module
from typing import Any, NamedTuple

from benchmarks.hostile_case import Case, GrpcCase, HttpCase, messages
from client.transport import parse_url
from hmer import contract
from hmer.errors import BadParameter, MissingDependency

ANSWERED, LEFT, CLOSED, TIMEOUT, LOST = "answered", "left", "closed", "timeout", "lost"
_CODE = re.compile(r"\[([a-z_]+)\] ")
_SERVICE = "/inference.GRPCInferenceService/"


class Outcome(NamedTuple):
    """``label``: one of this module's, or the code that the server refused with; ``text``: its
    words; ``answer``: the tokens of a formula."""

    label: str
    seconds: float
    text: str = ""
    answer: str = ""


class Sender:
    """Both ends of one server; usable by several threads. A context manager."""

    def __init__(self, grpc: str, http: str, timeout: float) -> None:
        """``timeout``: seconds after which a case counts as hung. Raises ``BadParameter``."""
        self._http, address = parse_url(http), parse_url(grpc)
        if self._http.scheme != "http" or address.scheme != "grpc":
            raise BadParameter(f"{grpc} and {http} are not the plain gRPC and HTTP addresses.")
        try:
            self._grpc: Any = import_module("grpc")
        except ImportError as error:
            raise MissingDependency(
                f"gRPC is missing ({error}): pip install 'hmer[bench]'"
            ) from None
        self._timeout = timeout
        unlimited = [(f"grpc.max_{way}_message_length", -1) for way in ("send", "receive")]
        self._channel = self._grpc.insecure_channel(address.authority, options=unlimited)

    def __enter__(self) -> Sender:
        """Nothing is connected yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close what is shared."""
        self._channel.close()

    def send(self, case: Case) -> Outcome:
        """Never raises for what the server does."""
        began = time.perf_counter()
        found = self._call(case) if isinstance(case, GrpcCase) else self._exchange(case)
        return found._replace(seconds=time.perf_counter() - began)

    # --- gRPC

    def _call(self, case: GrpcCase) -> Outcome:
        try:
            if case.method == "ModelStreamInfer":
                return self._stream(case)
            call = self._channel.unary_unary(_SERVICE + case.method).future(
                case.message, timeout=self._timeout
            )
            if case.cut_after is not None:
                time.sleep(case.cut_after)
                call.cancel()
            return Outcome(ANSWERED, 0, answer=_tokens(call.result()))
        except self._grpc.FutureCancelledError:
            return Outcome(LEFT, 0)
        except self._grpc.RpcError as error:
            return self._refused(error)

    def _stream(self, case: GrpcCase) -> Outcome:
        call = self._channel.stream_stream(_SERVICE + case.method)(
            iter([case.message]), timeout=self._timeout
        )
        time.sleep(case.cut_after or 0.0)
        with contextlib.suppress(self._grpc.RpcError):
            if not case.cut_after:
                next(call, None)
            call.cancel()
            return Outcome(LEFT, 0)
        return Outcome(LEFT, 0)

    def _refused(self, error: Any) -> Outcome:
        status, text = error.code().name, str(error.details() or "")
        if status == "CANCELLED":
            return Outcome(LEFT, 0, text)
        label = _label(text, status)
        if label == "DEADLINE_EXCEEDED":
            label = TIMEOUT
        elif label == "UNAVAILABLE" and "restrict" not in text.lower():
            label = LOST
        return Outcome(label, 0, text)

    # --- HTTP

    def _exchange(self, case: HttpCase) -> Outcome:
        try:
            with socket.create_connection(
                (self._http.host, self._http.port), timeout=self._timeout
            ) as connection:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    connection.sendall(case.raw)
                if not case.waits:
                    time.sleep(case.linger)
                    connection.setblocking(False)
                    return _labelled(_come(connection)) or Outcome(LEFT, 0)
                return _labelled(self._read(connection)) or Outcome(CLOSED, 0)
        except TimeoutError:
            return Outcome(TIMEOUT, 0)
        except OSError as error:
            return Outcome(LOST, 0, str(error))

    def _read(self, connection: socket.socket) -> bytes:
        end, answer = time.monotonic() + self._timeout, bytearray()
        while not _complete(answer):
            connection.settimeout(max(0.01, end - time.monotonic()))
            try:
                part = connection.recv(1 << 16)
            except ConnectionResetError:
                break
            if not part:
                break
            answer += part
        return bytes(answer)


def _come(connection: socket.socket) -> bytes:
    with contextlib.suppress(OSError):
        return connection.recv(1 << 16)
    return b""


def _complete(answer: bytearray) -> bool:
    head, found, body = bytes(answer).partition(b"\r\n\r\n")
    if not found:
        return False
    length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
    if length is not None:
        return len(body) >= int(length[1])
    return body.endswith(b"0\r\n\r\n") if b"chunked" in head.lower() else False


def _labelled(answer: bytes) -> Outcome | None:
    head, _, body = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/"):
        return None
    words, text = head.split(None, 2), body.decode("utf-8", errors="replace")
    status = words[1].decode("latin-1") if len(words) > 1 else "?"
    if status == "200" and '"error"' not in text[:200]:
        return Outcome(ANSWERED, 0, answer=_tokens_of_json(text))
    return Outcome(_label(text, f"HTTP {status}"), 0, text)


def _label(text: str, otherwise: str) -> str:
    """The project's own code in the server's words, else what Triton says."""
    match = _CODE.search(text)
    return match[1] if match else otherwise


def _tokens(raw: bytes) -> str:
    answer = messages().ModelInferResponse.FromString(raw)
    for output, value in zip(answer.outputs, answer.raw_output_contents, strict=False):
        if output.name == contract.TOKENS.name and len(value) >= 4:
            return str(value[4:].decode("utf-8"))
    return ""


def _tokens_of_json(text: str) -> str:
    with contextlib.suppress(ValueError, KeyError, TypeError, IndexError):
        for output in json.loads(text)["outputs"]:
            if output["name"] == contract.TOKENS.name:
                return str(output["data"][0])
    return ""
