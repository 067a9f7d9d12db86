"""What the client needs from a wire, and the choice between gRPC and HTTP by the URL."""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

from numpy.typing import NDArray

from client.access import Access
from client.cancellation import Cancellation
from hmer.errors import BadParameter

DEFAULT_URL = "localhost:8001"
GRPC_PORT = 8001

Outputs = dict[str, str | float | NDArray[Any]]
"""Each output tensor of one request, by name: its only value (strings are decoded), or the array
of a tensor that has more than one."""


@dataclass(frozen=True)
class SharedInput:
    """Where in registered shared memory the input's bytes lie, their length before them."""

    region: str
    size: int


@dataclass(frozen=True)
class Call:
    """One request: ``data`` is the ``input`` tensor's only value.

    ``parameters`` are the request's own (``hmer.serving.to_request``). ``shared``: the input lies
    there, and ``data`` does not travel.
    """

    model: str
    version: str  # "" lets the server choose
    data: bytes
    request_id: str
    parameters: Mapping[str, int | str | bool] = field(default_factory=dict)
    shared: SharedInput | None = None


@dataclass(frozen=True)
class ModelState:
    """One version of a model as the server's index tells it; ``state`` is READY when served."""

    name: str
    version: str
    state: str
    reason: str


@dataclass(frozen=True)
class TensorInfo:
    """A served model's tensor as its metadata tells it; -1 in ``shape`` is a dynamic axis."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelInfo:
    """What a served model takes and gives."""

    name: str
    platform: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


class Transport(Protocol):
    """A wire to one server. Thread-safe. Every method raises errors of ``hmer.errors`` only."""

    url: str

    def infer(
        self, call: Call, timeout: float | None, cancellation: Cancellation | None = None
    ) -> Outputs:
        """Send ``call``; ``timeout`` in seconds also travels to the server as its deadline."""
        ...

    def stream(
        self, call: Call, timeout: float | None, cancellation: Cancellation | None = None
    ) -> Generator[Outputs, None, None]:
        """Send ``call`` to a decoupled model; its responses as they come.

        Ending the iteration early cancels the request.
        """
        ...

    def live(self, timeout: float) -> bool:
        """Whether the server says that it runs."""
        ...

    def ready(self, timeout: float) -> bool:
        """Whether the server says that it takes requests."""
        ...

    def server(self, timeout: float) -> str:
        """The server's name and version."""
        ...

    def models(self, timeout: float) -> list[ModelState]:
        """All models and versions in the server's repository."""
        ...

    def model_info(self, name: str, version: str, timeout: float) -> ModelInfo:
        """The tensors of a served model."""
        ...

    def register_memory(self, name: str, key: str, size: int, timeout: float) -> None:
        """Let the server read the shared memory ``key``, of ``size`` bytes, as ``name``."""
        ...

    def unregister_memory(self, name: str, timeout: float) -> None:
        """Let the server forget the region ``name``."""
        ...

    def close(self) -> None:
        """Close all connections."""
        ...


@dataclass(frozen=True)
class Address:
    """A parsed URL; ``scheme`` is ``grpc``, ``grpcs``, ``http`` or ``https``."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """``host:port``, with brackets around an IPv6 host."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def secure(self) -> bool:
        """Whether the wire is TLS."""
        return self.scheme in ("grpcs", "https")


def parse_url(url: str) -> Address:
    """``HOST:PORT``, ``grpc(s)://...`` or ``http(s)://...``. Raises ``BadParameter``."""
    text = url if re.match(r"[a-z]+://", url) else f"grpc://{url}"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    defaults = {"grpc": GRPC_PORT, "grpcs": GRPC_PORT, "http": 80, "https": 443}
    if parts.scheme not in defaults or not parts.hostname or parts.username or parts.query:
        raise BadParameter(
            f"{url!r} is not the address of a server. Write HOST:PORT for gRPC, or "
            "http://HOST:PORT."
        )
    if parts.scheme in ("grpc", "grpcs") and parts.path not in ("", "/"):
        raise BadParameter(f"The gRPC address {url!r} has a path. Write HOST:PORT.")
    chosen = defaults[parts.scheme] if port is None else port
    return Address(parts.scheme, parts.hostname, chosen, parts.path.rstrip("/"))


def open_transport(url: str, access: Access | None = None) -> Transport:
    """The transport that ``url`` asks for. Connects on the first use, so nobody need listen yet.

    Raises ``BadParameter`` for a malformed URL, or TLS files with one that is not TLS, and
    ``MissingDependency`` where gRPC is asked for and its library is not installed.
    """
    address, access = parse_url(url), access or Access()
    if access.wants_tls and not address.secure:
        raise BadParameter(
            f"The address {url!r} is not TLS, so the files for it have no use. Write "
            "grpcs://HOST:PORT or https://HOST:PORT."
        )
    if address.scheme in ("grpc", "grpcs"):
        from client.grpc_transport import GrpcTransport

        return GrpcTransport(address, access)
    from client.http_transport import HttpTransport

    return HttpTransport(address, access)
