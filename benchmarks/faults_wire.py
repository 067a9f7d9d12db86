"""Clients that misbehave on the wire: one that vanishes, one that reads or writes slowly."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import struct
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from hmer.contract import RECOGNIZE_STREAM

_HEAD_END = b"\r\n\r\n"
_GOOD = b"HTTP/1.1 200"


def vanish(url: str, picture: bytes) -> None:
    """Send a request for a stream, and cut the connection while it is worked on (RST)."""
    with _connected(url) as wire:
        wire.sendall(_request(picture))
        time.sleep(0.05)
        # A close that lingers for no time resets the connection: the peer gets no goodbye.
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def read_slowly(url: str, picture: bytes, pause: float, going_on: Callable[[], bool]) -> bool:
    """Take a stream's answer byte by byte with pauses; whether all of it came in the end."""
    with _connected(url, receive_buffer=1024) as wire:
        wire.sendall(_request(picture))
        found = b""
        while going_on():
            found += wire.recv(8)
            if _complete(found):
                return True
            time.sleep(pause)
        wire.settimeout(20.0)  # and now as fast as it can
        while not _complete(found):
            if not (part := wire.recv(65536)):
                return False
            found += part
    return True


def write_slowly(url: str, picture: bytes, pause: float, going_on: Callable[[], bool]) -> bool:
    """Send a request's body in small pieces with pauses; whether it is answered in the end.

    Its head goes at once: Triton's HTTP server answers one that comes in pieces with 404.
    """
    head, end, body = _request(picture).partition(_HEAD_END)
    with _connected(url) as wire:
        wire.sendall(head + end)
        place = 0
        while going_on() and place < len(body) - 1:
            wire.sendall(body[place : place + 16])
            place += 16
            time.sleep(pause)
        wire.sendall(body[place:])
        found = b""
        while not _complete(found):
            if not (part := wire.recv(65536)):
                return False
            found += part
    return found.startswith(_GOOD)


def _connected(url: str, receive_buffer: int = 0) -> contextlib.closing[socket.socket]:
    parts = urlsplit(url)
    wire = socket.socket()
    if receive_buffer:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    wire.settimeout(20.0)
    wire.connect((parts.hostname, parts.port))
    return contextlib.closing(wire)


def _request(picture: bytes) -> bytes:
    body = json.dumps(
        {"input": base64.b64encode(picture).decode("ascii"), "encoding": "base64"}
    ).encode("ascii")
    head = (
        f"POST /v2/models/{RECOGNIZE_STREAM}/generate_stream HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode("ascii") + body


def _complete(answer: bytes) -> bool:
    """Whether a chunked answer is at its end, or is none but an error."""
    refused = _HEAD_END in answer and not answer.startswith(_GOOD)
    return refused or answer.endswith(b"0\r\n\r\n")
