"""What the served models share: their parameters, their bundle, and errors for the wire."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from reprlib import repr as shown  # at most 30 characters of what a stranger wrote
from typing import Any, NoReturn

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from hmer import contract
from hmer.bundle import GRAPHS, Bundle, load_bundle
from hmer.errors import (
    BadParameter,
    Cancelled,
    DeadlineExceeded,
    HmerError,
    ImageTooLarge,
    InferenceFailed,
    InputError,
    Overloaded,
    ServerUnavailable,
)
from hmer.serving import MAX_INPUT_BYTES, P, from_strings
from model_repository.local_request import LocalRequest

# Objects of the Python backend, which carries no types.
Request = Any
Response = Any


def model_parameters(args: Mapping[str, str], kind: type[P]) -> P:
    """The parameters in the model's ``config.pbtxt``; ``args`` as ``initialize`` gets them."""
    entries = json.loads(args["model_config"]).get("parameters", {})
    return from_strings(kind, {name: entry["string_value"] for name, entry in entries.items()})


def model_bundle(args: Mapping[str, str], path: str) -> Bundle:
    """The verified bundle at ``path``, relative to the model's folder; a later version's beside it.

    See ``model_repository.versions``.
    """
    first = (Path(args["model_repository"]) / path).resolve()
    later = first.with_name(f"{first.name}-{model_version(args)}")
    return load_bundle(later if later.is_dir() else first, GRAPHS)


def model_version(args: Mapping[str, str]) -> int:
    """The version of the model that ``initialize`` is called for."""
    return int(args.get("model_version", "1"))


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
    """An input of a request, batch first. Raises ``BadParameter`` if it is missing."""
    if isinstance(request, LocalRequest):
        tensor = request.tensor(name)
    else:
        tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        raise BadParameter(f"The request has no input {name}.")
    values: NDArray[Any] = tensor.as_numpy()
    return values


def input_rows(request: Request) -> list[bytes]:
    """The rows of the input of ``recognize``. Raises an ``InputError``."""
    values = array(request, contract.INPUT.name)
    if values.dtype != object or values.ndim != 2 or values.shape[1] != 1 or not len(values):
        raise BadParameter(
            f"The input has the type {values.dtype} and the shape {list(values.shape)}; bytes of "
            "the shape [rows, 1] are needed."
        )
    rows = [bytes(row) for row in values[:, 0]]
    for row in rows:
        if len(row) > MAX_INPUT_BYTES:
            raise ImageTooLarge(
                f"The input has {len(row):,} bytes; at most {MAX_INPUT_BYTES:,} are accepted. "
                "Scale the picture down: a formula needs about 100 pixels a line."
            )
    return rows


def deadline_of(request: Request, now: float, values: Mapping[str, Any]) -> float | None:
    """When the request's ``timeout`` (microseconds from its arrival here; 0: none) is over.

    Triton takes it out of the request's parameters, ``values``, except for ``generate_stream``.
    Raises ``BadParameter``.
    """
    timeout = values.get("timeout", 0) or request.timeout()
    if isinstance(timeout, bool) or not isinstance(timeout, int) or not 0 <= timeout < 1 << 62:
        raise BadParameter(
            f"timeout is {shown(timeout)}; it must be a whole number of microseconds."
        )
    return now + timeout * 1e-6 if timeout > 0 else None


def response(outputs: Mapping[str, NDArray[Any]]) -> Response:
    """A response with these outputs, batch first."""
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor(name, np.ascontiguousarray(values)) for name, values in outputs.items()]
    )


def strings(rows: Iterable[str]) -> NDArray[np.object_]:
    """Text rows as a ``bytes`` tensor (B, 1)."""
    return np.array([[row.encode("utf-8")] for row in rows], dtype=np.object_)
