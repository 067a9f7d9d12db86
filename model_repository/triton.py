"""What the served models share: their parameters, their bundle, and errors for the wire."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from hmer.bundle import GRAPHS, Bundle, load_bundle
from hmer.errors import (
    Cancelled,
    DeadlineExceeded,
    HmerError,
    InferenceFailed,
    InputError,
    Overloaded,
    ServerUnavailable,
)
from hmer.serving import P, from_strings

# Objects of the Python backend, which carries no types.
Request = Any
Response = Any


def model_parameters(args: Mapping[str, str], kind: type[P]) -> P:
    """The parameters in the model's ``config.pbtxt``; ``args`` as ``initialize`` gets them."""
    entries = json.loads(args["model_config"]).get("parameters", {})
    return from_strings(kind, {name: entry["string_value"] for name, entry in entries.items()})


def model_bundle(args: Mapping[str, str], path: str) -> Bundle:
    """The verified bundle at ``path``, relative to the model's folder."""
    return load_bundle((Path(args["model_repository"]) / path).resolve(), GRAPHS)


def refuse(error: HmerError) -> NoReturn:
    """End ``initialize``: the model doesn't load, and the log holds the error's wire form."""
    raise pb_utils.TritonModelException(error.to_wire()) from error


def error_response(error: BaseException) -> Response:
    """A response that carries ``error`` to the client."""
    if not isinstance(error, HmerError):
        error = InferenceFailed(f"The model failed: {type(error).__name__}: {error}")
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(error.to_wire(), _code(error)))


def _code(error: HmerError) -> Any:
    codes = pb_utils.TritonError
    if isinstance(error, InputError):
        return codes.INVALID_ARG
    if isinstance(error, (Overloaded, DeadlineExceeded, ServerUnavailable)):
        return codes.UNAVAILABLE
    if isinstance(error, Cancelled):
        return codes.CANCELLED
    return codes.INTERNAL


def array(request: Request, name: str) -> NDArray[Any]:
    """An input of a request, batch first."""
    values: NDArray[Any] = pb_utils.get_input_tensor_by_name(request, name).as_numpy()
    return values


def response(outputs: Mapping[str, NDArray[Any]]) -> Response:
    """A response with these outputs, batch first."""
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor(name, np.ascontiguousarray(values)) for name, values in outputs.items()]
    )


def strings(rows: Iterable[str]) -> NDArray[np.object_]:
    """Text rows as a ``bytes`` tensor (B, 1)."""
    return np.array([[row.encode("utf-8")] for row in rows], dtype=np.object_)
