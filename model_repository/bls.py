"""Calls from one served model to another (business logic scripting)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from hmer import contract
from hmer.errors import HmerError, InferenceFailed, ServerUnavailable, from_wire

# A tensor of the Python backend, which carries no types.
Tensor = Any
ANY_VERSION = -1


def call(
    model: str,
    inputs: Sequence[Tensor],
    outputs: Sequence[str],
    *,
    version: int = ANY_VERSION,
    parameters: Mapping[str, int | str | bool] | None = None,
    timeout_us: int = 0,
    request_id: str = "",
) -> dict[str, Tensor]:
    """The tensors that ``model`` answered with, by name, those of ``outputs`` that there are.

    ``request_id``: of the request that the call is made for. Usable from any thread, which waits.
    Raises the model's own error.
    """
    request = pb_utils.InferenceRequest(
        model_name=model,
        model_version=version,
        requested_output_names=list(outputs),
        inputs=list(inputs),
        parameters=dict(parameters or {}),
        timeout=timeout_us,
        request_id=request_id,
    )
    result = request.exec()
    if result.has_error():
        raise failure(model, str(result.error().message()))
    return {tensor.name(): tensor for tensor in result.output_tensors()}


def failure(model: str, reason: str) -> HmerError:
    """What the error message of a call to ``model`` means."""
    # A server that shuts down refuses calls between its models, while requests are under way.
    if "Server not ready" in reason:
        return ServerUnavailable("The server is shutting down. Send the request to another one.")
    if "is not healthy" in reason:  # the Python backend's word for a worker that died or hangs
        return ServerUnavailable(
            f"The worker of {model} is not healthy. Try again when it was restarted."
        )
    if "shared memory pool" in reason:  # there may be room again soon
        return ServerUnavailable(
            f"The server's shared memory is full, so {model} could not be called. Give it more "
            "(/dev/shm; --shm-size of a container), or try again later."
        )
    error = from_wire(reason)
    if not isinstance(error, InferenceFailed) or str(error) != reason.strip():
        return error  # the model's own sentence
    return InferenceFailed(f"The model {model} failed: {reason}. The server's log says more.")


class BlsRunner:
    """Runs one graph by calling the served model of that name.

    Usable from any thread; every tensor is copied at every call.
    """

    def __init__(self, spec: contract.ModelSpec, version: int = ANY_VERSION) -> None:
        self._model, self._version = spec.name, version
        self._outputs = [tensor.name for tensor in spec.outputs]

    def __call__(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs by name. Raises ``InferenceFailed`` or ``ServerUnavailable``."""
        inputs = [
            pb_utils.Tensor(name, np.ascontiguousarray(values)) for name, values in feeds.items()
        ]
        result = call(self._model, inputs, self._outputs, version=self._version)
        if missing := [name for name in self._outputs if name not in result]:
            raise InferenceFailed(f"The model {self._model} gave no {missing[0]}.")
        # Copies: the arrays lie in memory of the response, which goes.
        return {name: result[name].as_numpy().copy() for name in self._outputs}
