"""gRPC: the stub and the messages of Triton's own client library, on one channel."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import numpy as np

from client.access import Access
from client.cancellation import Cancellation
from client.failures import cancelled, from_status, no_server
from client.tensors import array_of, framed
from client.transport import Address, Call, ModelInfo, ModelState, Outputs, TensorInfo
from hmer.contract import INPUT
from hmer.errors import HmerError, InferenceFailed, MissingDependency

_CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # gRPC's own pause between connection attempts starts at 1 s and grows to 2 minutes, in which
    # every request fails at once: a server that has just come up must be found by our retries.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


class GrpcTransport:
    """``Transport`` over one HTTP/2 channel, which all threads share."""

    def __init__(self, address: Address, access: Access) -> None:
        """Raises ``MissingDependency`` without tritonclient, ``BadParameter`` for broken PEM."""
        self.url = address.authority
        try:
            import grpc  # type: ignore[import-untyped]
            from tritonclient.grpc import service_pb2, service_pb2_grpc
        except ImportError as error:
            raise MissingDependency(
                f"The gRPC client needs tritonclient ({error}): pip install 'hmer[client]'. Over "
                "HTTP, --url http://HOST:PORT, nothing more is needed."
            ) from error
        self._grpc: Any = grpc
        self._messages: Any = service_pb2
        self._metadata = tuple(access.headers.items())
        if address.secure:
            credentials = grpc.ssl_channel_credentials(*access.pem())
            self._channel = grpc.secure_channel(self.url, credentials, _CHANNEL_OPTIONS)
        else:
            self._channel = grpc.insecure_channel(self.url, _CHANNEL_OPTIONS)
        self._stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def infer(
        self, call: Call, timeout: float | None, cancellation: Cancellation | None = None
    ) -> Outputs:
        """See ``Transport``."""
        if cancellation is not None and cancellation.cancelled:
            raise cancelled(self.url)  # a call that is cancelled at once may still be sent
        request, method = self._request(call, timeout), self._stub.ModelInfer
        try:
            if cancellation is None:
                response = method(request, timeout=timeout, metadata=self._metadata)
            else:  # a thread more on the way, so only where somebody may cancel
                future = method.future(request, timeout=timeout, metadata=self._metadata)
                with cancellation.during(future.cancel):
                    response = future.result()
        except self._grpc.FutureCancelledError:
            raise cancelled(self.url) from None
        except self._grpc.RpcError as error:
            raise self._failure(error, call) from None
        return self._outputs(response, call)

    def stream(
        self, call: Call, timeout: float | None, cancellation: Cancellation | None = None
    ) -> Generator[Outputs, None, None]:
        """See ``Transport``."""
        responses = self._stub.ModelStreamInfer(
            iter([self._request(call, timeout)]), timeout=timeout, metadata=self._metadata
        )
        with (cancellation or Cancellation()).during(responses.cancel):
            try:
                for response in responses:
                    if response.error_message:
                        raise from_status(
                            "INTERNAL", response.error_message, self.url, call.model, call.version
                        )
                    if response.infer_response.outputs:  # none: only the end of the stream
                        yield self._outputs(response.infer_response, call)
            except self._grpc.RpcError as error:
                raise self._failure(error, call) from None
            finally:
                responses.cancel()  # nothing happens if it has ended

    def _request(self, call: Call, timeout: float | None) -> Any:
        request = self._messages.ModelInferRequest(
            model_name=call.model, model_version=call.version, id=call.request_id
        )
        tensor = request.inputs.add(name=INPUT.name, datatype="BYTES", shape=[1, 1])
        if call.shared is None:
            request.raw_input_contents.append(framed(call.data))
        else:
            tensor.parameters["shared_memory_region"].string_param = call.shared.region
            tensor.parameters["shared_memory_byte_size"].int64_param = call.shared.size
        for name, value in call.parameters.items():
            if isinstance(value, bool):
                request.parameters[name].bool_param = value
            elif isinstance(value, int):
                request.parameters[name].int64_param = value
            else:
                request.parameters[name].string_param = value
        if timeout is not None:
            request.parameters["timeout"].int64_param = max(1, int(timeout * 1e6))  # microseconds
        return request

    def live(self, timeout: float) -> bool:
        """See ``Transport``."""
        return bool(self._ask("ServerLive", timeout).live)

    def ready(self, timeout: float) -> bool:
        """See ``Transport``."""
        return bool(self._ask("ServerReady", timeout).ready)

    def server(self, timeout: float) -> str:
        """See ``Transport``."""
        metadata = self._ask("ServerMetadata", timeout)
        return f"{metadata.name} {metadata.version}"

    def models(self, timeout: float) -> list[ModelState]:
        """See ``Transport``."""
        return [
            ModelState(entry.name, entry.version, entry.state, entry.reason)
            for entry in self._ask("RepositoryIndex", timeout).models
        ]

    def model_info(self, name: str, version: str, timeout: float) -> ModelInfo:
        """See ``Transport``."""
        metadata = self._ask("ModelMetadata", timeout, name=name, version=version)
        inputs, outputs = (
            tuple(TensorInfo(t.name, t.datatype, tuple(t.shape)) for t in tensors)
            for tensors in (metadata.inputs, metadata.outputs)
        )
        return ModelInfo(metadata.name, metadata.platform, inputs, outputs)

    def register_memory(self, name: str, key: str, size: int, timeout: float) -> None:
        """See ``Transport``."""
        self._ask("SystemSharedMemoryRegister", timeout, name=name, key=key, byte_size=size)

    def unregister_memory(self, name: str, timeout: float) -> None:
        """See ``Transport``."""
        self._ask("SystemSharedMemoryUnregister", timeout, name=name)

    def close(self) -> None:
        """See ``Transport``."""
        self._channel.close()

    def _outputs(self, response: Any, call: Call) -> Outputs:
        try:
            return _outputs(response)
        except ValueError as error:  # lengths that contradict each other
            raise InferenceFailed(
                f"The answer of the model {call.model!r} at {self.url} cannot be read ({error})."
            ) from None

    def _ask(self, method: str, timeout: float, **values: object) -> Any:
        request = getattr(self._messages, f"{method}Request")(**values)
        call: Callable[..., Any] = getattr(self._stub, method)
        try:
            return call(request, timeout=timeout, metadata=self._metadata)
        except self._grpc.RpcError as error:
            raise self._failure(error) from None

    def _failure(self, error: Any, call: Call | None = None) -> HmerError:
        status, text = str(error.code().name), str(error.details() or "")
        if status == "UNAVAILABLE":
            reason = _connection_trouble(text)
            if reason:
                hint = ""
                if reason in ("connection closed", "it does not speak gRPC"):
                    hint = "If that is a server's HTTP port, write http:// before it."
                return no_server(self.url, reason, hint)
        if call is None:
            return from_status(status, text, self.url)
        return from_status(status, text, self.url, call.model, call.version, call.request_id)


def _outputs(response: Any) -> Outputs:
    outputs: Outputs = {}
    for entry, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        values = array_of(raw, entry.datatype, tuple(entry.shape))
        if values is not None and values.size == 1:
            value = values.reshape(-1)[0]
            outputs[entry.name] = value if isinstance(value, str) else float(value)
        elif values is not None and values.dtype != np.object_:
            outputs[entry.name] = values
    return outputs


def _connection_trouble(text: str) -> str:
    """Why there is no connection, in gRPC's words made short; "" for an answer of the server."""
    for sign, reason in (
        ("Connection refused", "connection refused"),
        ("resolv", "the host name cannot be resolved"),
        ("lookup", "the host name cannot be resolved"),
        ("Socket closed", "connection closed"),
        ("connection attempt timed out", "no connection in time"),
        ("certificate", "its certificate is not trusted"),
        ("handshake", "no TLS connection"),
        ("parsing HTTP/2", "it does not speak gRPC"),
        ("failed to connect", "no connection"),
    ):
        if sign.lower() in text.lower():
            return reason
    return ""
