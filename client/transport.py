"""What the client needs from a wire, and the choice between gRPC and HTTP by the URL."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlsplit

from hmer.errors import BadParameter

DEFAULT_URL = "localhost:8001"
GRPC_PORT = 8001

Outputs = dict[str, str | float]
"""The value of each output tensor of one request, by name; strings are decoded."""


@dataclass(frozen=True)
class Call:
    """One request: ``data`` is the ``input`` tensor's only value.

    ``parameters`` are the request's own (``hmer.serving.to_request``).
    """

    model: str
    version: str  # "" lets the server choose
    data: bytes
    request_id: str
    parameters: Mapping[str, int | str] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelState:
    """One version of a model as the server's index tells it; ``state`` is READY when served."""

    name: str
    version: str
    state: str
    reason: str


class Transport(Protocol):
    """A wire to one server. Thread-safe. Every method raises errors of ``hmer.errors`` only."""

    url: str

    def infer(self, call: Call, timeout: float | None) -> Outputs:
        """Send ``call``; ``timeout`` in seconds also travels to the server as its deadline."""
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

    def close(self) -> None:
        """Close all connections."""
        ...


@dataclass(frozen=True)
class Address:
    """A parsed URL; ``scheme`` is ``grpc``, ``http`` or ``https``."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """``host:port``, with brackets around an IPv6 host."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_url(url: str) -> Address:
    """``HOST:PORT`` or ``grpc://...`` for gRPC, ``http(s)://...``. Raises ``BadParameter``."""
    text = url if re.match(r"[a-z]+://", url) else f"grpc://{url}"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    defaults = {"grpc": GRPC_PORT, "http": 80, "https": 443}
    if parts.scheme not in defaults or not parts.hostname or parts.username or parts.query:
        raise BadParameter(
            f"{url!r} is not the address of a server. Write HOST:PORT for gRPC, or "
            "http://HOST:PORT."
        )
    if parts.scheme == "grpc" and parts.path not in ("", "/"):
        raise BadParameter(f"The gRPC address {url!r} has a path. Write HOST:PORT.")
    chosen = defaults[parts.scheme] if port is None else port
    return Address(parts.scheme, parts.hostname, chosen, parts.path.rstrip("/"))


def open_transport(url: str) -> Transport:
    """The transport that ``url`` asks for. Connects on the first use, so nobody need listen yet.

    Raises ``BadParameter`` for a malformed URL, and ``MissingDependency`` where gRPC is asked
    for and its library is not installed.
    """
    address = parse_url(url)
    if address.scheme == "grpc":
        from client.grpc_transport import GrpcTransport

        return GrpcTransport(address)
    from client.http_transport import HttpTransport

    return HttpTransport(address)
