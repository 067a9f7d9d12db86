"""Asynchronous requests to a server's ``recognize`` over gRPC, for many at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from benchmarks.crohme import Expression
from client.failures import from_status, no_server
from client.transport import parse_url
from hmer.contract import INPUT, RECOGNIZE, TOKENS
from hmer.errors import BadParameter, HmerError, MissingDependency, ServerUnavailable

Reply = tuple[str, ...] | HmerError


class Ask(Protocol):
    """Sends the input ``index`` and waits for its tokens, or for the error it is refused with."""

    async def __call__(self, index: int) -> Reply:
        """Never raises for one input's fault."""


class GrpcAsker:
    """``Ask`` over one HTTP/2 connection; an asynchronous context manager.

    Nothing is tried a second time: what a load test asks is what it gets.
    """

    def __init__(
        self,
        url: str,
        expressions: Sequence[Expression],
        *,
        timeout: float = 60.0,
        model: str = RECOGNIZE,
        parameters: Mapping[str, int | str] | None = None,
    ) -> None:
        """``timeout``: seconds a request. ``parameters``: of every request, by
        ``hmer.serving.to_request``. Raises ``BadParameter`` or ``MissingDependency``.
        """
        address = parse_url(url)
        if address.scheme != "grpc":
            raise BadParameter(f"{url} is an HTTP address. Give the gRPC address, HOST:PORT.")
        self.url = address.authority
        try:
            self._triton: Any = import_module("tritonclient.grpc.aio")
        except ImportError as error:
            raise MissingDependency(
                f"Loading a server needs tritonclient ({error}): pip install 'hmer[bench]'"
            ) from error
        self._model, self._timeout = model, timeout
        self._parameters = dict(parameters or {})
        self._inputs = [self._input(e.data) for e in expressions]
        self._client: Any = None

    def _input(self, data: bytes) -> Any:
        tensor = self._triton.InferInput(INPUT.name, [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[data]], dtype=np.object_))
        return tensor

    async def __aenter__(self) -> GrpcAsker:
        """Connect, and see that the server is ready. Raises ``ServerUnavailable``."""
        self._client = self._triton.InferenceServerClient(self.url)
        try:
            ready = await self._client.is_server_ready(client_timeout=10.0)
        except self._triton.InferenceServerException as error:
            await self._client.close()
            raise no_server(self.url, str(error.message()).splitlines()[0][:120]) from None
        if not ready:
            await self._client.close()
            raise ServerUnavailable(f"The server at {self.url} is not ready yet. Try again.")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connection."""
        await self._client.close()

    async def __call__(self, index: int) -> Reply:
        """See ``Ask``."""
        try:
            result = await self._client.infer(
                self._model,
                [self._inputs[index]],
                client_timeout=self._timeout,
                parameters=self._parameters or None,
            )
        except self._triton.InferenceServerException as error:
            status = str(error.status() or "").removeprefix("StatusCode.")
            return from_status(status, str(error.message() or ""), self.url, self._model)
        tokens = result.as_numpy(TOKENS.name).reshape(-1)[0].decode("utf-8")
        return tuple(tokens.split())
