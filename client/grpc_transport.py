"""gRPC, through Triton's own client library."""

from __future__ import annotations

from typing import Any

import numpy as np

from client.failures import from_status, no_server
from client.transport import Address, Call, ModelState, Outputs
from hmer.contract import INPUT
from hmer.errors import HmerError, MissingDependency

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

    def __init__(self, address: Address) -> None:
        """Raises ``MissingDependency`` without tritonclient."""
        self.url = address.authority
        try:
            import tritonclient.grpc as triton
        except ImportError as error:
            raise MissingDependency(
                f"The gRPC client needs tritonclient ({error}): pip install 'hmer[client]'. Over "
                "HTTP, --url http://HOST:PORT, nothing more is needed."
            ) from error
        self._triton: Any = triton
        self._client = self._triton.InferenceServerClient(self.url, channel_args=_CHANNEL_OPTIONS)

    def infer(self, call: Call, timeout: float | None) -> Outputs:
        """See ``Transport``."""
        tensor = self._triton.InferInput(INPUT.name, [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[call.data]], dtype=np.object_))
        try:
            result = self._client.infer(
                call.model,
                [tensor],
                model_version=call.version,
                request_id=call.request_id,
                timeout=None if timeout is None else max(1, int(timeout * 1e6)),
                client_timeout=timeout,
                parameters=dict(call.parameters) or None,
            )
        except self._triton.InferenceServerException as error:
            raise self._failure(error, call) from None
        outputs: Outputs = {}
        for entry in result.get_response().outputs:
            values = result.as_numpy(entry.name)
            if values is not None and values.size == 1:
                value = values.reshape(-1)[0]
                outputs[entry.name] = (
                    value.decode("utf-8") if isinstance(value, bytes) else float(value)
                )
        return outputs

    def live(self, timeout: float) -> bool:
        """See ``Transport``."""
        return bool(self._ask("is_server_live", timeout))

    def ready(self, timeout: float) -> bool:
        """See ``Transport``."""
        return bool(self._ask("is_server_ready", timeout))

    def server(self, timeout: float) -> str:
        """See ``Transport``."""
        metadata = self._ask("get_server_metadata", timeout)
        return f"{metadata.name} {metadata.version}"

    def models(self, timeout: float) -> list[ModelState]:
        """See ``Transport``."""
        index = self._ask("get_model_repository_index", timeout)
        return [
            ModelState(entry.name, entry.version, entry.state, entry.reason)
            for entry in index.models
        ]

    def close(self) -> None:
        """See ``Transport``."""
        self._client.close()

    def _ask(self, method: str, timeout: float) -> Any:
        try:
            return getattr(self._client, method)(client_timeout=timeout)
        except self._triton.InferenceServerException as error:
            raise self._failure(error) from None

    def _failure(self, error: Any, call: Call | None = None) -> HmerError:
        status = str(error.status() or "").removeprefix("StatusCode.")
        text = str(error.message() or "")
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


def _connection_trouble(text: str) -> str:
    """Why there is no connection, in gRPC's words made short; "" for an answer of the server."""
    for sign, reason in (
        ("Connection refused", "connection refused"),
        ("resolv", "the host name cannot be resolved"),
        ("lookup", "the host name cannot be resolved"),
        ("Socket closed", "connection closed"),
        ("connection attempt timed out", "no connection in time"),
        ("parsing HTTP/2", "it does not speak gRPC"),
        ("failed to connect", "no connection"),
    ):
        if sign.lower() in text.lower():
            return reason
    return ""
