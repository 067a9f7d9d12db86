"""Where a server listens."""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack
from dataclasses import dataclass

from hmer.errors import ServerSetupError


@dataclass(frozen=True)
class Endpoints:
    """Where the server listens. Port 0 asks for any free one."""

    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002

    @property
    def client_host(self) -> str:
        """The address for clients on this machine."""
        return "127.0.0.1" if self.host == "0.0.0.0" else self.host

    @property
    def grpc(self) -> str:
        """For ``--url``, over gRPC."""
        return f"{self.client_host}:{self.grpc_port}"

    @property
    def http(self) -> str:
        """For ``--url``, over HTTP."""
        return f"http://{self.client_host}:{self.http_port}"

    @property
    def metrics(self) -> str:
        """For Prometheus."""
        return f"http://{self.client_host}:{self.metrics_port}/metrics"

    def reserve(self) -> Endpoints:
        """The same with an IPv4 address and free ports. Raises ``ServerSetupError``."""
        try:
            host = str(socket.getaddrinfo(self.host, None, socket.AF_INET)[0][4][0])
        except OSError:
            raise ServerSetupError(
                f"{self.host} is not an IPv4 address or host name. Use --host 127.0.0.1, or "
                "0.0.0.0 for every address of this machine."
            ) from None
        with ExitStack() as probes:
            # Held open together, so that three free ports are three different ones.
            ports = [
                probes.enter_context(_bind(host, port, name)).getsockname()[1]
                for name, port in (
                    ("http", self.http_port),
                    ("grpc", self.grpc_port),
                    ("metrics", self.metrics_port),
                )
            ]
        return Endpoints(host, *ports)


def _bind(host: str, port: int, name: str) -> socket.socket:
    probe = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind((host, port))
        probe.listen(1)
    except OSError as error:
        probe.close()
        reasons = {
            errno.EADDRINUSE: "is in use. Stop the program that listens there",
            errno.EACCES: "may not be opened by this user",
            errno.EADDRNOTAVAIL: f"cannot be opened: {host} is no address of this machine",
        }
        reason = reasons.get(error.errno or 0, f"cannot be opened ({error.strerror})")
        raise ServerSetupError(
            f"Port {port} on {host} {reason}, or choose another with --{name}-port."
        ) from None
    return probe
