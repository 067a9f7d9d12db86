"""Kept-alive HTTP/1.1 connections on the standard library alone."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from client.access import Access
from client.cancellation import Cancellation
from client.failures import cancelled, no_server
from client.retry import Deadline
from client.transport import Address
from hmer.errors import HmerError, ServerUnavailable


@dataclass(frozen=True)
class Message:
    """One HTTP request; ``path`` comes after the server's address."""

    method: str
    path: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class Pool:
    """Connections to one server; a thread borrows one for each request."""

    def __init__(self, address: Address, access: Access) -> None:
        """Connects on the first request. Raises ``BadParameter`` for broken PEM files."""
        self.url = f"{address.scheme}://{address.authority}{address.path}"
        self._address = address
        self._headers = dict(access.headers)
        self._context = access.context() if address.secure else None
        self._idle: list[http.client.HTTPConnection] = []
        self._busy: set[http.client.HTTPConnection] = set()
        self._lock = threading.Lock()
        self._closed = False

    def close(self) -> None:
        """Close all connections; requests under way end with ``ServerUnavailable``."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            busy = list(self._busy)
        for connection in idle:
            connection.close()
        for connection in busy:
            _cut(connection)

    def exchange(
        self, message: Message, timeout: float | None, cancellation: Cancellation | None = None
    ) -> tuple[int, bytes]:
        """Send a request, return the answer's status and body. Raises a ``ServerError``."""
        with self.answering(message, timeout, cancellation) as (response, trouble):
            with trouble:
                body = response.read()
            return response.status, body

    @contextlib.contextmanager
    def answering(
        self, message: Message, timeout: float | None, cancellation: Cancellation | None = None
    ) -> Iterator[tuple[http.client.HTTPResponse, contextlib.AbstractContextManager[None]]]:
        """The answer to a request, to be read within the context, while its parts come.

        What reads it does so inside the second value, a context that can be entered again and
        again: it turns what goes wrong on the wire into a ``ServerError``. The connection is kept
        if the answer was read to its end.
        """
        deadline = Deadline(timeout)
        cancellation = cancellation or Cancellation()
        with self._lock:
            idle = self._idle.pop() if self._idle else None
        attempts = [self._connection()] if idle is None else [idle, self._connection()]
        for connection in attempts:
            with self._lock:
                self._busy.add(connection)
            response: http.client.HTTPResponse | None = None
            trouble = _Trouble(self.url, deadline, cancellation)
            try:
                with cancellation.during(lambda used=connection: _cut(used)):  # type: ignore[misc]
                    try:
                        with trouble:
                            self._send(connection, message, deadline, cancellation)
                            response = connection.getresponse()
                    except ServerUnavailable:
                        if connection is not idle or cancellation.cancelled or self._closed:
                            raise
                        continue  # closed while it lay idle: that says nothing about now
                    yield response, trouble
                    return
            finally:
                self._give_back(connection, response)

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self._address.host, self._address.port
        if self._context is not None:
            return http.client.HTTPSConnection(host, port, context=self._context)
        return http.client.HTTPConnection(host, port)

    def _send(
        self,
        connection: http.client.HTTPConnection,
        message: Message,
        deadline: Deadline,
        cancellation: Cancellation,
    ) -> None:
        limit(connection, deadline)
        if connection.sock is None:
            connection.connect()
        if cancellation.cancelled:  # while there was no socket yet that could have been cut
            raise cancelled(self.url)
        limit(connection, deadline)
        path, headers = self._address.path + message.path, self._headers | message.headers
        connection.request(message.method, path, message.body, headers)
        limit(connection, deadline)

    def _give_back(
        self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse | None
    ) -> None:
        kept = response is not None and response.isclosed() and not response.will_close
        with self._lock:
            self._busy.discard(connection)
            kept = kept and not self._closed
            if kept:
                self._idle.append(connection)
        if not kept:
            connection.close()


def limit(connection: http.client.HTTPConnection, deadline: Deadline) -> None:
    """Let the connection's next steps, connecting included, wait until the deadline only."""
    remaining = deadline.remaining()
    # 0 would make the socket non-blocking
    connection.timeout = None if remaining is None else max(remaining, 1e-3)
    if connection.sock is not None:
        connection.sock.settimeout(connection.timeout)


def _cut(connection: http.client.HTTPConnection) -> None:
    """Wake the thread that waits for an answer; closing alone would not."""
    with contextlib.suppress(OSError, AttributeError):
        connection.sock.shutdown(socket.SHUT_RDWR)


class _Trouble:
    """A context, to be entered as often as needed: the wire's errors become ours."""

    def __init__(self, url: str, deadline: Deadline, cancellation: Cancellation) -> None:
        self._url, self._deadline, self._cancellation = url, deadline, cancellation

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, (OSError, http.client.HTTPException)):
            return
        if isinstance(error, HmerError):
            return
        if self._cancellation.cancelled:
            raise cancelled(self._url) from None
        raise self._explained(error) from None

    def _explained(self, error: OSError | http.client.HTTPException) -> HmerError:
        if isinstance(error, TimeoutError):
            return self._deadline.exceeded(self._url)
        if isinstance(error, socket.gaierror):
            return no_server(self._url, "the host name cannot be resolved")
        if isinstance(error, ssl.SSLCertVerificationError):
            return no_server(
                self._url,
                f"its certificate is not trusted: {error.verify_message.rstrip('.')}",
                "Name the authority that signed it with --ca (ca=).",
            )
        if isinstance(error, ssl.SSLError):
            return no_server(self._url, f"no TLS connection: {error.reason or error}")
        if isinstance(error, (http.client.RemoteDisconnected, http.client.IncompleteRead)):
            return no_server(self._url, "connection closed")
        if isinstance(error, http.client.HTTPException):
            hint = "If that is a server's gRPC port, write HOST:PORT without http://."
            return no_server(self._url, "what answers there does not speak HTTP", hint)
        return no_server(self._url, (error.strerror or type(error).__name__).lower())
