"""A small fake of ``triton_python_backend_utils``: enough to run the served models in a test.

``install`` puts this module in its place. Calls between models (BLS) go to ``MODELS``.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1

Tensors = dict[str, NDArray[Any]]
# What BLS calls reach: a function of tensors, or a model with ``execute``.
MODELS: dict[str, Any] = {}


def install() -> None:
    """Make ``import triton_python_backend_utils`` give this module."""
    sys.modules["triton_python_backend_utils"] = sys.modules[__name__]


class TritonModelException(Exception):
    """Raised by a model that cannot load."""


class TritonError:
    """A message and a code."""

    UNKNOWN, INTERNAL, INVALID_ARG, UNAVAILABLE, CANCELLED = range(5)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class Tensor:
    """A named array; as Triton does, it refuses what is not C-contiguous."""

    def __init__(self, name: str, values: NDArray[Any]) -> None:
        assert values.flags["C_CONTIGUOUS"]
        self._name, self._values = name, values

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> NDArray[Any]:
        return self._values


class InferenceResponse:
    """Outputs or an error."""

    def __init__(
        self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None
    ) -> None:
        self._outputs, self._error = list(output_tensors), error

    def output_tensors(self) -> list[Tensor]:
        return self._outputs

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error

    def arrays(self) -> Tensors:
        """For tests: the outputs by name; fails on an error."""
        assert self._error is None, self._error.message()
        return {tensor.name(): tensor.as_numpy() for tensor in self._outputs}

    def failure(self) -> TritonError:
        """For tests: the error; fails without one."""
        assert self._error is not None
        return self._error


class ResponseSender:
    """Takes responses; tests wait for the last with ``result``, and cancel with ``cancel``.

    ``parts`` are those before it.
    """

    def __init__(self) -> None:
        self._done = threading.Event()
        self.parts: list[InferenceResponse] = []
        self._result: InferenceResponse | None = None
        self._cancelled = False
        self.on_result: Callable[[], object] = lambda: None

    def send(self, response: InferenceResponse, flags: int = 0) -> None:
        assert self._result is None, "a response after the last"
        if flags == TRITONSERVER_RESPONSE_COMPLETE_FINAL:
            self._result = response
            self.on_result()
            self._done.set()
        else:
            assert flags == 0
            self.parts.append(response)

    def is_cancelled(self) -> bool:
        return self._cancelled

    def cancel(self) -> None:
        self._cancelled = True

    def result(self, timeout: float = 10.0) -> InferenceResponse:
        assert self._done.wait(timeout), "no response"
        assert self._result is not None
        return self._result


class InferenceRequest:
    """A request to a served model, or (with ``model_name``) a call to another model."""

    def __init__(
        self,
        inputs: Sequence[Tensor],
        model_name: str = "",
        requested_output_names: Sequence[str] = (),
        parameters: Mapping[str, Any] | None = None,
        timeout: int = 0,
        model_version: int = -1,
        request_id: str = "",
    ) -> None:
        self._id = request_id
        self._inputs, self._model = list(inputs), model_name
        self._wanted, self._timeout = requested_output_names, timeout
        self._parameters = json.dumps(dict(parameters or {}))
        self.sender = ResponseSender()

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def parameters(self) -> str:
        return self._parameters

    def timeout(self) -> int:
        return self._timeout

    def request_id(self) -> str:
        return self._id

    def get_response_sender(self) -> ResponseSender:
        return self.sender

    def exec(self) -> InferenceResponse:
        try:
            model = MODELS[self._model]
            if not callable(model):  # a served model: its own way to answer
                return self._ask(model)
            outputs = model({t.name(): t.as_numpy() for t in self._inputs})
            return InferenceResponse([Tensor(name, outputs[name]) for name in self._wanted])
        except Exception as error:
            return InferenceResponse(error=TritonError(str(error)))

    def _ask(self, model: Any) -> InferenceResponse:
        responses = model.execute([self])
        return self.sender.result() if responses is None else responses[0]  # type: ignore[no-any-return]


def request(inputs: Tensors, **options: Any) -> InferenceRequest:
    """For tests: a request with these inputs."""
    return InferenceRequest([Tensor(name, values) for name, values in inputs.items()], **options)


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    return next((t for t in request.inputs() if t.name() == name), None)


def get_output_tensor_by_name(response: InferenceResponse, name: str) -> Tensor | None:
    return next((t for t in response.output_tensors() if t.name() == name), None)


class Metric:
    """A number with labels."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        self.labels, self._value = dict(labels), 0.0

    def increment(self, value: float) -> None:
        assert value > 0
        self._value += value

    def set(self, value: float) -> None:
        self._value = value

    def value(self) -> float:
        return self._value


class MetricFamily:
    """A metric's name and kind; ``ALL`` lets tests find them."""

    COUNTER, GAUGE = "counter", "gauge"
    ALL: ClassVar[dict[str, MetricFamily]] = {}

    def __init__(self, name: str, description: str, kind: str) -> None:
        assert description
        assert kind in (self.COUNTER, self.GAUGE)
        self.kind, self.metrics = kind, list[Metric]()
        self.ALL[name] = self

    def Metric(self, labels: Mapping[str, str]) -> Metric:
        self.metrics.append(Metric(labels))
        return self.metrics[-1]


def bytes_rows(rows: Sequence[bytes]) -> NDArray[np.object_]:
    """For tests: a ``bytes`` tensor (B, 1)."""
    return np.array([[row] for row in rows], dtype=np.object_)
