"""Hostile HTTP: lengths that are wrong, bodies that are cut, documents that are none."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from benchmarks.hostile_case import Case, HttpCase, Request, Rng, http, input_of
from benchmarks.hostile_pictures import flipped, truncated
from benchmarks.hostile_requests import MakeCase, good
from hmer import contract

_INFER = f"/v2/models/{contract.RECOGNIZE}/infer"
_LENGTH = "Inference-Header-Content-Length"


def _whole(rng: Rng) -> tuple[bytes, bytes]:
    """A good request's JSON, and the bytes behind it."""
    request = Request([input_of(good(rng))])
    return json.dumps(request.document()).encode("ascii"), request.tensors[0].raw


def header_lengths(rng: Rng) -> Case:
    """The JSON's length: too short, too long, negative, no number, missing."""
    header, raw = _whole(rng)
    claimed: list[str] = [
        "0",
        "1",
        str(len(header) - 1),
        str(len(header) + 1),
        "-1",
        "x",
        "",
        "1e3",
    ]
    claimed += [str(len(header) + len(raw)), str(2**31), str(2**63), str(2**64), "9" * 400]
    chosen = claimed[int(rng.integers(len(claimed)))]
    headers = {_LENGTH: chosen} if rng.random() < 0.9 else {}
    return http(_INFER, header + raw, headers)


def binary_sizes(rng: Rng) -> Case:
    """``binary_data_size`` that the body does not have."""
    request = Request([input_of(good(rng))])
    document = request.document()
    sizes: list[Any] = [0, 1, -1, 2**31, 2**63, 1.5, "4", None, [], len(request.tensors[0].raw) + 1]
    document["inputs"][0]["parameters"]["binary_data_size"] = sizes[int(rng.integers(len(sizes)))]
    header = json.dumps(document).encode("ascii")
    return http(_INFER, header + request.tensors[0].raw, {_LENGTH: str(len(header))})


def documents(rng: Rng) -> Case:
    """JSON that is broken, deep, of other types, or not JSON."""
    header, raw = _whole(rng)
    choice = int(rng.integers(7))
    if choice == 0:
        header = flipped(rng, header)
    elif choice == 1:
        header = truncated(rng, header)
    elif choice == 2:
        depth = int(rng.choice([100, 10_000, 200_000]))
        header = b'{"inputs":' + b"[" * depth + b"]" * depth + b"}"
    elif choice == 3:
        words = (b"", b"null", b"[]", b"1", b'"a"', b'{"inputs":1}', b'{"inputs":[1]}', b"\xff\xfe")
        header = words[int(rng.integers(len(words)))]
    elif choice == 4:
        header = header.replace(b'"shape": [1, 1]', b'"shape": [1, 99999999999999999999]')
    elif choice == 5:
        header = header.replace(b'{"inputs"', b'{"a":' + b"9" * 5_000 + b',"inputs"')
    else:
        inputs = {"name": "input", "datatype": "BYTES", "shape": [1, 1]}
        values: list[Any] = [[], [1], [None], [["a"]], "a", [{"a": 1}], ["a", "b"], ["\0"], 1e400]
        document = {"inputs": [inputs | {"data": values[int(rng.integers(len(values)))]}]}
        return http(_INFER, json.dumps(document).encode("ascii"))
    return http(_INFER, header + raw, {_LENGTH: str(len(header))})


def content_lengths(rng: Rng) -> Case:
    """``Content-Length`` that is wrong: who claims more than it sends never gets an answer."""
    header, raw = _whole(rng)
    body = header + raw
    claimed = [str(len(body) + 1), str(2**31), str(2**63), "-1", "x", "", str(len(body) - 1), "0"]
    case = http(
        _INFER, body, {_LENGTH: str(len(header))}, length=claimed[int(rng.integers(len(claimed)))]
    )
    return HttpCase(case.raw, waits=False)


def cut(rng: Rng) -> Case:
    """A request that ends in the middle, in its head or its body."""
    header, raw = _whole(rng)
    whole = http(_INFER, header + raw, {_LENGTH: str(len(header))}).raw
    at = int(rng.integers(1, len(whole)))
    return HttpCase(whole[:at], waits=False, linger=float(rng.choice([0.0, 0.0, 0.02])))


def gone(rng: Rng) -> Case:
    """A whole request whose client does not wait for the answer."""
    header, raw = _whole(rng)
    whole = http(_INFER, header + raw, {_LENGTH: str(len(header))}).raw
    return HttpCase(whole, waits=False, linger=float(rng.choice([0.0, 0.01, 0.03])))


def paths(rng: Rng) -> Case:
    """Methods and paths that there are not."""
    methods = ("GET", "PUT", "DELETE", "OPTIONS", "HEAD", "TRACE", "X" * 50, "POST", "")
    tails = (
        *("/", "/v2", "/v2/models", "/v2/../../etc/passwd", "/v2/models/%2e%2e/infer", "//", "*"),
        *("/v2/models/recognize", "/v2/models/recognize/versions/9/infer", "/" + "a" * 60_000),
        *("/v2/models/recognize/infer?a=b", "/v2/health/ready/x", "/%00", "/v2/models/\x7f/infer"),
    )
    method, tail = methods[int(rng.integers(9))], tails[int(rng.integers(len(tails)))]
    return HttpCase(http(tail, b"", method=method).raw, waits=False, linger=0.1)


def headers(rng: Rng) -> Case:
    """Many, long, double or broken headers."""
    odd: tuple[dict[str, str], ...] = (
        {f"X-{i}": "a" for i in range(2_000)},
        {"X": "a" * 200_000},
        {"Expect": "100-continue"},
        {"Transfer-Encoding": "chunked"},
        {"Content-Encoding": "gzip"},
        {"Content-Encoding": "deflate"},
        {"Content-Encoding": "x"},
        {"Accept-Encoding": "gzip;q=" + "9" * 100},
        {"": "a"},
        {"traceparent": "00-" + "f" * 5_000},
    )
    header, raw = _whole(rng)
    more = {_LENGTH: str(len(header)), **odd[int(rng.integers(len(odd)))]}
    return HttpCase(http(_INFER, header + raw, more).raw, waits=False, linger=0.1)


@lru_cache(maxsize=2)
def _packed(size: int) -> bytes:
    return gzip.compress(bytes(size), 9)


def compressed(rng: Rng) -> Case:
    """A body of megabytes of zeros in some kilobytes, or that is not compressed at all."""
    body = _packed(int(rng.choice([1 << 20, 32 << 20])))
    if rng.random() < 0.3:
        body = truncated(rng, body)
    name = ["gzip", "deflate"][int(rng.integers(2))]
    return http(_INFER, body, {"Content-Encoding": name, _LENGTH: "100"})


def chunks(rng: Rng) -> Case:
    """A body in pieces whose lengths are wrong."""
    header, raw = _whole(rng)
    body = header + raw
    sizes = (f"{len(body):x}", f"{len(body) + 9:x}", "0", "fffffffffffffffff", "-1", "x", "")
    size = sizes[int(rng.integers(len(sizes)))].encode()
    head = (
        f"POST {_INFER} HTTP/1.1\r\nHost: hmer\r\nTransfer-Encoding: chunked\r\n"
        f"{_LENGTH}: {len(header)}\r\nConnection: close\r\n\r\n"
    ).encode()
    return HttpCase(head + size + b"\r\n" + body + b"\r\n0\r\n\r\n", waits=False, linger=0.1)


def noise(rng: Rng) -> Case:
    """Bytes that are no HTTP, to either of its ports."""
    return HttpCase(rng.bytes(int(rng.integers(1, 2_000))), waits=False)


KINDS: Mapping[str, tuple[MakeCase, int]] = {
    "http, length of the header": (header_lengths, 10),
    "http, sizes of tensors": (binary_sizes, 10),
    "http, documents": (documents, 14),
    "http, length of the body": (content_lengths, 6),
    "http, cut": (cut, 8),
    "http, client gone": (gone, 6),
    "http, paths": (paths, 8),
    "http, headers": (headers, 6),
    "http, compressed": (compressed, 3),
    "http, chunks": (chunks, 5),
    "http, noise": (noise, 5),
}
