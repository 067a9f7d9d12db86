"""Triton's binary form of tensors, which both wires and shared memory use."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_DTYPES: dict[str, type[np.generic]] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "INT8": np.int8,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}


def framed(data: bytes) -> bytes:
    """A BYTES tensor's only value: its length (uint32, little endian), then its bytes."""
    return len(data).to_bytes(4, "little") + data


def array_of(raw: bytes, datatype: str, shape: tuple[int, ...]) -> NDArray[Any] | None:
    """The tensor in ``raw``; BYTES give an object array of ``str``. ``None``: of a type that no
    recogniser has. Raises ``ValueError`` if ``raw`` does not fit the shape."""
    if datatype == "BYTES":
        values: list[str] = []
        at = 0
        while at < len(raw):
            length = int.from_bytes(raw[at : at + 4], "little")
            values.append(raw[at + 4 : at + 4 + length].decode("utf-8"))
            at += 4 + length
        texts = np.empty(len(values), np.object_)
        texts[:] = values
        return texts.reshape(shape)
    if datatype not in _DTYPES:
        return None
    return np.frombuffer(raw, np.dtype(_DTYPES[datatype]).newbyteorder("<")).reshape(shape)
