"""The way back: tokens from ``decode`` to the model that asked for them, and cancellations to it.

A model that calls another (BLS) gets the answer and nothing before it, and cannot cancel: Triton
2.51 has no such call, and aborts when several decoupled calls are under way at once. So the
caller listens at a local socket of its own, tells ``decode`` the address with the request, and the
two exchange short messages there, which is cheaper than a call between models. The socket is of
Linux' abstract namespace (no file to clean up), the peer proves with a key that it was asked;
nothing that arrives is executed or unpickled.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import re
import secrets
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Client, Connection, Listener
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hmer.errors import BadParameter, InferenceFailed
from hmer.serving import INNER_VARIABLE

_log = logging.getLogger(__name__)

_PREFIX = "\0hmer-reply-"
_INNER = os.environ.get(INNER_VARIABLE, "")
_ADDRESS = re.compile(r"([0-9a-f]{32}):([0-9a-f]{32}):([0-9a-f]{16})")


class Tokens(NamedTuple):
    """New tokens of an answer: ids, log-probabilities, and maps float32 (n, h, w) if asked for."""

    ids: list[int]
    scores: list[float]
    maps: NDArray[np.float32] | None = None


def passed_on(address: str) -> str:
    """The value of ``REPLY`` by which a model lets another one tell ``decode`` where tokens go."""
    return f"{_INNER}+{address}"


def from_inside(value: object) -> str | None:
    """The address in a value of ``passed_on``; ``None`` for what a client made up.

    Without a key of the server's (``INNER_VARIABLE``) nobody can tell, and it is taken for one.
    """
    key, _, address = str(value).partition("+")
    return address if address and secrets.compare_digest(key, _INNER) else None


def knows_its_own() -> bool:
    """Whether ``from_inside`` can tell."""
    return bool(_INNER)


class ReplyListener:
    """The caller's end: hands out addresses, takes the tokens, cancels."""

    def __init__(self) -> None:
        self._name, self._key = secrets.token_hex(16), secrets.token_hex(16)
        self._listener = Listener(
            _PREFIX + self._name, "AF_UNIX", backlog=16, authkey=self._key.encode("ascii")
        )
        self._lock = threading.Lock()
        self._receivers: dict[str, Callable[[Tokens], None]] = {}
        self._peers: list[Connection] = []
        self._cancelled: set[str] = set()  # of those that are expected
        self._closed = False
        threading.Thread(target=self._accept, name="hmer-reply", daemon=True).start()

    def expect(self, receive: Callable[[Tokens], None]) -> str:
        """A new ticket, whose tokens ``receive`` gets, in a thread of this object's."""
        ticket = secrets.token_hex(8)
        with self._lock:
            self._receivers[ticket] = receive
        return ticket

    def address(self, ticket: str) -> str:
        """What ``decode`` is told with the request."""
        return f"{self._name}:{self._key}:{ticket}"

    def forget(self, ticket: str) -> None:
        """Nothing more is expected for ``ticket``."""
        with self._lock:
            self._receivers.pop(ticket, None)
            self._cancelled.discard(ticket)

    def cancel(self, ticket: str) -> None:
        """Tell ``decode`` that nobody waits for ``ticket`` any more."""
        with self._lock:
            if ticket not in self._receivers:
                return
            self._cancelled.add(ticket)  # for a peer that has yet to connect
            peers = list(self._peers)
        for peer in peers:
            self._tell(peer, ticket)

    def _tell(self, peer: Connection, ticket: str) -> None:
        try:
            peer.send_bytes(ticket.encode("ascii"))
        except OSError:
            self._drop(peer)

    def close(self) -> None:
        """Listen no more."""
        self._closed = True
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as nobody:
            nobody.connect(_PREFIX + self._name)  # wakes the thread that accepts
        self._listener.close()
        with self._lock:
            peers, self._peers = self._peers, []
        for peer in peers:
            _hang_up(peer)

    def _accept(self) -> None:
        while not self._closed:
            try:
                peer = self._listener.accept()
            except Exception:  # somebody without the key, or the end
                continue
            with self._lock:
                self._peers.append(peer)
                cancelled = list(self._cancelled)
            for ticket in cancelled:
                self._tell(peer, ticket)
            threading.Thread(
                target=self._read, args=(peer,), name="hmer-reply-tokens", daemon=True
            ).start()

    def _read(self, peer: Connection) -> None:
        try:
            while True:
                head, _, raw = peer.recv_bytes().partition(b"\n")
                message = json.loads(head)
                maps = None
                if message.get("shape"):
                    maps = np.frombuffer(raw, np.float32).reshape(message["shape"])
                with self._lock:
                    receive = self._receivers.get(message["ticket"])
                if receive is not None:
                    receive(Tokens(message["ids"], message["scores"], maps))
        except (OSError, EOFError):
            pass
        except Exception:
            _log.exception("A message from the decoder could not be taken.")
        self._drop(peer)
        peer.close()

    def _drop(self, peer: Connection) -> None:
        with self._lock:
            if peer in self._peers:
                self._peers.remove(peer)
        _hang_up(peer)


@dataclass(eq=False)
class Reply:
    """``decode``'s end for one request: tell tokens, and see whether it was cancelled."""

    ticket: str
    outbox: queue.SimpleQueue[Any]
    peer: Connection
    cancelled: bool = False

    def send(self, tokens: Tokens) -> None:
        """Pass on tokens; returns at once."""
        self.outbox.put((self.peer, self.ticket, tokens))


@dataclass(eq=False)
class ReplySender:
    """``decode``'s end: connections to callers, one each, and a thread that writes."""

    _lock: threading.Lock = field(default_factory=threading.Lock)
    _peers: dict[str, Connection] = field(default_factory=dict)
    _replies: dict[str, Reply] = field(default_factory=dict)
    # Cancelled before their requests came: the messages take different ways.
    _early: deque[str] = field(default_factory=lambda: deque(maxlen=256))
    _outbox: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)

    def __post_init__(self) -> None:
        threading.Thread(target=self._write, name="hmer-reply", daemon=True).start()

    def to(self, address: str) -> Reply:
        """Where the tokens of the request with this ``address`` go, until ``done``.

        Raises ``BadParameter`` for what is no address, ``InferenceFailed`` if nobody is there.
        """
        match = _ADDRESS.fullmatch(address)
        if match is None:
            raise BadParameter("hmer_reply is for calls between the models of one server.")
        name, key, ticket = match.groups()
        with self._lock:
            peer = self._peers.get(name)
            if peer is None or peer.closed:
                try:
                    peer = Client(_PREFIX + name, "AF_UNIX", authkey=key.encode("ascii"))
                except Exception as error:
                    raise InferenceFailed(
                        f"The model that asked cannot be reached ({type(error).__name__})."
                    ) from None
                self._peers[name] = peer
                threading.Thread(
                    target=self._read, args=(name, peer), name="hmer-reply-cancel", daemon=True
                ).start()
            reply = Reply(ticket, self._outbox, peer, cancelled=ticket in self._early)
            self._replies[ticket] = reply
        return reply

    def done(self, reply: Reply) -> None:
        """The request was answered."""
        with self._lock:
            self._replies.pop(reply.ticket, None)

    def close(self) -> None:
        """Stop writing, and hang up."""
        self._outbox.put(None)
        with self._lock:
            peers = list(self._peers.values())
        for peer in peers:
            _hang_up(peer)

    def _read(self, name: str, peer: Connection) -> None:
        try:
            while True:
                ticket = peer.recv_bytes(64).decode("ascii")
                with self._lock:
                    if (reply := self._replies.get(ticket)) is not None:
                        reply.cancelled = True
                    else:
                        self._early.append(ticket)
        except (OSError, EOFError, ValueError):  # the caller is gone, and with it its requests
            with self._lock:
                if self._peers.get(name) is peer:
                    del self._peers[name]
                for reply in self._replies.values():
                    reply.cancelled |= reply.peer is peer
            peer.close()

    def _write(self) -> None:
        while (item := self._outbox.get()) is not None:
            peer, ticket, tokens = item
            try:
                peer.send_bytes(_message(ticket, tokens))
            except (OSError, ValueError):
                pass  # its reader notices
            except Exception:
                _log.exception("Tokens could not be passed on.")


def _hang_up(peer: Connection) -> None:
    """End the connection; the thread that reads from it notices, and closes it.

    Closed by another thread, its file could be another's while that one still reads from it.
    """
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(peer.fileno())) as end:
        end.shutdown(socket.SHUT_RDWR)


def _message(ticket: str, tokens: Tokens) -> bytes:
    maps = tokens.maps
    head: dict[str, Any] = {"ticket": ticket, "ids": _plain(tokens.ids), "scores": tokens.scores}
    if maps is None:
        return json.dumps(head).encode("ascii")
    head["shape"] = maps.shape
    return json.dumps(head).encode("ascii") + b"\n" + np.ascontiguousarray(maps).tobytes()


def _plain(ids: Sequence[int]) -> list[int]:
    return [int(index) for index in ids]
