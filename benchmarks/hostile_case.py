"""One hostile case: what goes over the wire, byte by byte, by gRPC or HTTP."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np

from client.tensors import framed
from hmer import contract
from hmer.errors import MissingDependency

Rng = np.random.Generator


@dataclass(frozen=True)
class GrpcCase:
    """A call with a message as it is; ``cut_after``: cancelled after so many seconds."""

    message: bytes
    method: str = "ModelInfer"
    cut_after: float | None = None


@dataclass(frozen=True)
class HttpCase:
    """Bytes for a connection of its own.

    ``waits``: whether the server owes an answer; else the connection is closed ``linger`` seconds
    after the last byte, and what came until then is noted.
    """

    raw: bytes
    waits: bool = True
    linger: float = 0.05


Case = GrpcCase | HttpCase


def messages() -> Any:
    """Triton's gRPC messages."""
    try:
        return import_module("tritonclient.grpc.service_pb2")
    except ImportError as error:
        raise MissingDependency(
            f"Hostile requests are made with tritonclient ({error}): pip install 'hmer[bench]'"
        ) from error


@dataclass(frozen=True)
class Tensor:
    """An input as it is claimed to be, and its bytes."""

    name: str
    datatype: str
    shape: Sequence[int]
    raw: bytes


def input_of(data: bytes) -> Tensor:
    """``data`` as ``recognize`` takes it."""
    return Tensor(contract.INPUT.name, "BYTES", (1, 1), framed(data))


@dataclass(frozen=True)
class Request:
    """An inference request; ``to_grpc`` and ``to_http`` write it without any check."""

    tensors: Sequence[Tensor]
    model: str = contract.RECOGNIZE
    version: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    outputs: Sequence[str] = ()
    request_id: str = ""

    def to_grpc(self, cut_after: float | None = None, method: str = "ModelInfer") -> GrpcCase:
        """As a message; parameters that gRPC has no type for go as text."""
        message = messages().ModelInferRequest(
            model_name=self.model, model_version=self.version, id=self.request_id
        )
        for tensor in self.tensors:
            entry = message.inputs.add(name=tensor.name, datatype=tensor.datatype)
            entry.shape.extend(max(-(2**63), min(2**63 - 1, side)) for side in tensor.shape)
            message.raw_input_contents.append(tensor.raw)
        for name in self.outputs:
            message.outputs.add(name=name)
        for name, value in self.parameters.items():
            slot = message.parameters[name]
            if isinstance(value, bool):
                slot.bool_param = value
            elif isinstance(value, int) and -(2**63) <= value < 2**63:
                slot.int64_param = value
            elif isinstance(value, float):
                slot.double_param = value
            else:
                slot.string_param = value if isinstance(value, str) else json.dumps(value)
        return GrpcCase(message.SerializeToString(), method, cut_after)

    def to_http(self) -> HttpCase:
        """With the tensors' bytes behind the JSON."""
        header = json.dumps(self.document()).encode("utf-8")
        body = header + b"".join(tensor.raw for tensor in self.tensors)
        return http(self.path(), body, {"Inference-Header-Content-Length": str(len(header))})

    def document(self) -> dict[str, Any]:
        """The JSON of the HTTP end point."""
        inputs = [
            {"name": t.name, "datatype": t.datatype, "shape": list(t.shape),
             "parameters": {"binary_data_size": len(t.raw)}}
            for t in self.tensors
        ]  # fmt: skip
        found: dict[str, Any] = {"inputs": inputs}
        if self.parameters:
            found["parameters"] = dict(self.parameters)
        if self.outputs:
            found["outputs"] = [{"name": name} for name in self.outputs]
        if self.request_id:
            found["id"] = self.request_id
        return found

    def path(self, verb: str = "infer") -> str:
        """Of the HTTP end point."""
        version = f"/versions/{self.version}" if self.version else ""
        return f"/v2/models/{self.model}{version}/{verb}"


def http(
    path: str,
    body: bytes,
    headers: Mapping[str, str] | None = None,
    method: str = "POST",
    length: str | None = None,
) -> HttpCase:
    """An HTTP request; ``length`` is claimed instead of the true one."""
    claimed = {"Host": "hmer", "Content-Length": str(len(body)) if length is None else length}
    lines = [f"{method} {path} HTTP/1.1"]
    lines += [f"{n}: {v}" for n, v in {**claimed, **(headers or {}), "Connection": "close"}.items()]
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", errors="replace")
    return HttpCase(head + body)


def carry(rng: Rng, data: bytes) -> Case:
    """``data`` as the input of a request, over one of the four ways that there are."""
    request = Request([input_of(data)])
    choice = int(rng.integers(10))
    if choice < 5:
        return request.to_grpc()
    if choice < 8:
        return request.to_http()
    document = {contract.INPUT.name: base64.b64encode(data).decode("ascii"), "encoding": "base64"}
    if choice == 8:
        stream = Request([], contract.RECOGNIZE_STREAM)
        return http(stream.path("generate_stream"), json.dumps(document).encode("ascii"))
    text = {"name": contract.INPUT.name, "datatype": "BYTES", "shape": [1, 1],
            "data": [document[contract.INPUT.name]]}  # fmt: skip
    return http(
        request.path(),
        json.dumps({"inputs": [text], "parameters": {"encoding": "base64"}}).encode("ascii"),
    )
