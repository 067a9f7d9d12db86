"""Hostile requests around an input that is good: shapes, types, names, parameters, versions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.hostile_case import Case, GrpcCase, Request, Rng, Tensor, http, input_of, messages
from benchmarks.hostile_pictures import flipped
from benchmarks.hostile_seeds import pictures, strokes
from client.tensors import framed
from hmer import contract

MakeCase = Callable[[Rng], Case]

_TYPES = ("BYTES", "UINT8", "INT32", "INT64", "FP32", "FP64", "FP16", "BOOL", "BF16", "X", "")
_ODD: tuple[Any, ...] = (
    *(0, -1, 1, 2, 17, 10**9, 2**63 - 1, -(2**63), 2**64, 10**400, 1.5, -0.0, 1e308, True, False),
    *("", "4", "nan", "inf", "-1", "1e999", "x" * 100_000, "\0", "é", None, [], [1], {}, {"a": 1}),
)
_NAMES = (
    *("beam", "n_best", "length_penalty", "max_tokens", "k", "attention", "priority_class"),
    *("encoding", "looks", "timeout", "id", "hmer_reply", "priority", "sequence_id", "binary_data"),
    *("sequence_start", "sequence_end", "triton_x", "traceparent", "unknown", "", "a" * 10_000),
)


def good(rng: Rng) -> bytes:
    """A good input, small."""
    names = ("gray.png", "gray.jpg")
    return pictures()[names[int(rng.integers(2))]] if rng.random() < 0.7 else strokes()["list.json"]


def _either(rng: Rng, request: Request) -> Case:
    return request.to_grpc() if rng.random() < 0.5 else request.to_http()


def _int(rng: Rng, *values: int) -> int:
    return values[int(rng.integers(len(values)))]


def shapes(rng: Rng) -> Case:
    """Shapes that the tensor's bytes do not have, or none can have."""
    sides = (0, 1, 2, 3, 16, 17, 1_000, -1, 2**31, 2**62)
    shape = [_int(rng, *sides) for _ in range(int(rng.integers(0, 5)))]
    return _either(rng, Request([Tensor("input", "BYTES", shape, framed(good(rng)))]))


def types(rng: Rng) -> Case:
    """Other types than bytes, other names, none, or the same tensor twice."""
    kind = _TYPES[int(rng.integers(len(_TYPES)))]
    name = ["input", "input", "inputs", "", "image", "x" * 5_000][int(rng.integers(6))]
    tensor = Tensor(name, kind, (1, _int(rng, 1, 4, 100)), good(rng))
    return _either(rng, Request([tensor] * _int(rng, 0, 1, 1, 1, 2)))


def lengths(rng: Rng) -> Case:
    """Strings whose own length is not the one in front of them."""
    data = good(rng)
    claimed = _int(rng, 0, 1, len(data) - 1, len(data) + 1, 2**31, 2**32 - 1)
    raw = claimed.to_bytes(4, "little") + data
    if rng.random() < 0.3:
        raw = raw[: _int(rng, 0, 1, 3, 4, 10)]
    return _either(rng, Request([Tensor("input", "BYTES", (1, 1), raw)]))


def rows(rng: Rng) -> Case:
    """No rows, or more than there may be."""
    many = _int(rng, 0, 2, 15, 16, 17, 100, 5_000)
    raw = framed(good(rng)) * many
    return _either(rng, Request([Tensor("input", "BYTES", (many, 1), raw)]))


def giants(rng: Rng) -> Case:
    """Megabytes of request id, model name, parameter, output name or input."""
    text = "x" * _int(rng, 10_000, 1_000_000, 4_000_000)
    data, place = input_of(good(rng)), int(rng.integers(5))
    if place == 0:
        return Request([data], request_id=text).to_grpc()
    if place == 1:
        return Request([data], model=text).to_grpc()
    if place == 2:
        return _either(rng, Request([data], parameters={"priority_class": text}))
    if place == 3:
        return _either(rng, Request([data], outputs=[text]))
    size = _int(rng, 33 << 20, 8 << 20, 1 << 20)
    return _either(rng, Request([input_of(bytes(size))]))


def models(rng: Rng) -> Case:
    """Models and versions that there are not."""
    names = ("nothing", "", "../recognize", "recognize/../x", "recognize%00", "preprocess", "é",
             "decoder_step", "recognize ", "RECOGNIZE", contract.RECOGNIZE)  # fmt: skip
    versions = ("", "2", "0", "-1", "99999999999999999999", "latest", "1 ", "1/../2", "1e3")
    name = names[int(rng.integers(len(names)))]
    version = versions[int(rng.integers(1, len(versions)))] if name == names[-1] else ""
    return _either(rng, Request([input_of(good(rng))], model=name, version=version))


def parameters(rng: Rng) -> Case:
    """Parameters of wrong types, out of range, or that there are not."""
    values = {
        _NAMES[int(rng.integers(len(_NAMES)))]: _ODD[int(rng.integers(len(_ODD)))]
        for _ in range(int(rng.integers(1, 4)))
    }
    if rng.random() < 0.3:
        plain = {"input": json.dumps(json.loads(strokes()["list.json"])), **values}
        body = json.dumps(plain).encode("utf-8")
        return http(f"/v2/models/{contract.RECOGNIZE_STREAM}/generate_stream", body)
    return _either(rng, Request([input_of(good(rng))], parameters=values))


def searches(rng: Rng) -> Case:
    """Parameters that are right one by one, and dear or senseless together."""
    values: dict[str, Any] = {"beam": _int(rng, 1, 8, 16, 64, 10_000)}
    values["n_best"] = _int(rng, 1, 5, values["beam"])
    values["looks"] = _int(rng, 1, 3)
    values["max_tokens"] = _int(rng, 1, 256)
    if rng.random() < 0.4:
        values["attention"] = True
    if rng.random() < 0.4:
        values["timeout"] = _int(rng, 1, 1_000, 30_000, 2**62)
    return _either(rng, Request([input_of(good(rng))], parameters=values))


def outputs(rng: Rng) -> Case:
    """Outputs that there are not, or many times."""
    names = ["latex", "nothing", "", "attention", "tokens"]
    chosen = [names[int(i)] for i in rng.integers(0, len(names), int(rng.integers(1, 200)))]
    return _either(rng, Request([input_of(good(rng))], outputs=chosen))


def protobuf(rng: Rng) -> Case:
    """A message that is none, or no longer the one that it was."""
    whole = Request([input_of(good(rng))]).to_grpc().message
    data = flipped(rng, whole) if rng.random() < 0.7 else rng.bytes(int(rng.integers(0, 500)))
    return GrpcCase(data[: int(rng.integers(len(data) + 1))] if rng.random() < 0.3 else data)


def cancelled(rng: Rng) -> Case:
    """A client that goes away, sooner or later."""
    wanted = {"beam": _int(rng, 1, 5), "max_tokens": 256}
    after = float(rng.choice([0.0, 0.002, 0.01, 0.03, 0.1]))
    return Request([input_of(good(rng))], parameters=wanted).to_grpc(cut_after=after)


def streams(rng: Rng) -> Case:
    """A gRPC stream that is cut, or whose message is wrong."""
    message = Request([input_of(good(rng))], model=contract.RECOGNIZE_STREAM)
    if rng.random() < 0.4:
        message = Request([input_of(good(rng))], model="nothing")
    after = float(rng.choice([0.0, 0.01, 0.05]))
    whole = message.to_grpc().message
    data = flipped(rng, whole) if rng.random() < 0.3 else whole
    return GrpcCase(data, "ModelStreamInfer", after)


# --- the models behind it


def encoder(rng: Rng) -> Case:
    """Pictures for the encoder that no preprocessing makes."""
    height, width = (_int(rng, 0, 1, 15, 16, 32, 100, 128, 1_024, 20_000) for _ in range(2))
    many = _int(rng, 1, 1, 2, 16, 17)
    if many * height * width > 8_000_000:
        many, height, width = 1, min(height, 2_000), min(width, 4_000)
    image = rng.integers(0, 256, (many, 1, height, width), np.uint8).tobytes()
    size = [_int(rng, 0, 1, 16, 32, height, width, -1, 2**31 - 1) for _ in range(2 * many)]
    return _either(rng, Request(
        [Tensor("image", "UINT8", (many, 1, height, width), image),
         Tensor("size", "INT32", (many, 2), np.array(size, np.int32).tobytes())],
        model=contract.ENCODER,
    ))  # fmt: skip


def decode(features: int, attention: int, state: int) -> MakeCase:
    """Features for the decoder that no encoder gives, of a network of these sizes."""
    odd = (np.nan, np.inf, -np.inf, 3e38, -3e38, 1e30, 0.0, 1e-40)

    def make(rng: Rng) -> Case:
        height, width, many = _int(rng, 1, 4, 100), _int(rng, 1, 8, 300), _int(rng, 1, 2)
        if rng.random() < 0.1:
            many, height, width = _int(rng, 0, 17), 1, 1
        scale = float(rng.choice([0.0, 1.0, 1e3]))
        arrays = {
            "values": rng.normal(0, scale, (many, height, width, features)).astype(np.float32),
            "keys": rng.normal(0, scale, (many, height, width, attention)).astype(np.float32),
            "feature_size": np.array([[height, width]] * many, np.int32).reshape(many, 2),
            "state": rng.normal(0, scale, (many, state)).astype(np.float32),
        }
        for name in ("values", "keys", "state"):
            if rng.random() < 0.4 and arrays[name].size:
                arrays[name].flat[int(rng.integers(arrays[name].size))] = odd[int(rng.integers(8))]
        if rng.random() < 0.3 and many:
            arrays["feature_size"][0] = [_int(rng, 0, -1, 1, 10**6, 2**31 - 1), 1]
        tensors = [_tensor(rng, name, values) for name, values in arrays.items()]
        wanted = {"hmer_reply": "+" + "0" * 32 + ":" + "1" * 32 + ":" + "2" * 16}
        return _either(rng, Request(
            tensors, model=contract.DECODE, parameters=wanted if rng.random() < 0.2 else {}
        ))  # fmt: skip

    return make


def _tensor(rng: Rng, name: str, values: Any) -> Tensor:
    kind = "INT32" if values.dtype == np.int32 else "FP32"
    shape, raw = list(values.shape), values.tobytes()
    if rng.random() < 0.05:
        shape = shape[::-1]
    if rng.random() < 0.05:
        raw = raw[:-4]
    return Tensor(name, kind, shape, raw)


# --- what is closed


def shared_memory(rng: Rng) -> Case:
    """Regions that are registered, asked for, or used as an input."""
    name = ["a", "../a", "", "x" * 1_000][int(rng.integers(4))]
    if rng.random() < 0.5:
        verb = ["register", "unregister", "status"][int(rng.integers(3))]
        kind = ["systemsharedmemory", "cudasharedmemory"][int(rng.integers(2))]
        body = json.dumps({"key": "/hmer", "offset": 0, "byte_size": _int(rng, 1, 2**62)})
        method = "GET" if verb == "status" else "POST"
        return http(f"/v2/{kind}/region/{name or 'a'}/{verb}", body.encode(), method=method)
    message = messages().ModelInferRequest(model_name=contract.RECOGNIZE)
    entry = message.inputs.add(name="input", datatype="BYTES", shape=[1, 1])
    entry.parameters["shared_memory_region"].string_param = name
    entry.parameters["shared_memory_byte_size"].int64_param = _int(rng, 0, 100, 2**62, -1)
    return GrpcCase(message.SerializeToString())


def control(rng: Rng) -> Case:
    """Loading, unloading, and the server's own settings."""
    verbs = (
        *("repository/models/recognize/unload", "repository/models/recognize/load"),
        *("trace/setting", "logging", "models/recognize/trace/setting", "repository/index"),
    )
    body = [b"{}", b'{"log_file": "/tmp/x"}', b'{"trace_file": "/tmp/x"}', b"[", b""]
    return http(f"/v2/{verbs[int(rng.integers(len(verbs)))]}", body[int(rng.integers(5))])


def kinds(features: int, attention: int, state: int) -> Mapping[str, tuple[MakeCase, int]]:
    """Kind -> what makes one, and how often it comes."""
    return {
        "request, shapes": (shapes, 10),
        "request, types and names": (types, 10),
        "request, lengths of strings": (lengths, 10),
        "request, rows": (rows, 5),
        "request, giant strings": (giants, 3),
        "request, models and versions": (models, 10),
        "request, parameters": (parameters, 16),
        "request, searches": (searches, 5),
        "request, outputs": (outputs, 6),
        "grpc, broken messages": (protobuf, 10),
        "grpc, cancelled": (cancelled, 8),
        "grpc, streams": (streams, 8),
        "encoder, pictures": (encoder, 8),
        "decode, features": (decode(features, attention, state), 8),
        "closed, shared memory": (shared_memory, 8),
        "closed, control": (control, 8),
    }
