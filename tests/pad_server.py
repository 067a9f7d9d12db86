"""The pad on a free port, in a thread, and a backend that answers what a test wants."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import numpy as np
import uvicorn

from client.pad.app import make_app
from client.pad.backend import Backend, Wanted
from hmer.errors import HmerError
from hmer.preprocess import PreprocessSettings, decode, preprocess
from hmer.recognition import Alternative, AttentionMaps, Recognition


@dataclass
class FakeBackend:
    """Reads its input as the real one does. Ink of n strokes is ``x^{n}``, a picture ``a+b``."""

    error: HmerError | None = None
    delay: float = 0.0
    asked: list[tuple[bytes, Wanted]] = field(default_factory=list)
    cancelled: list[bytes] = field(default_factory=list)
    closed: bool = False
    ids: list[str] = field(default_factory=list)

    async def recognize(self, data: bytes, wanted: Wanted) -> Recognition:
        self.ids.append(wanted.pop("request_id", ""))
        self.asked.append((data, wanted))
        try:
            await asyncio.sleep(self.delay)
        except asyncio.CancelledError:
            self.cancelled.append(data)
            raise
        if self.error is not None:
            raise self.error
        gray = decode(data)
        preprocess(gray, PreprocessSettings())
        height, width = gray.shape
        is_ink = data.lstrip().startswith((b"{", b"["))
        tokens: tuple[str, ...] = ("a", "+", "b")
        if is_ink:
            document = json.loads(data)
            strokes = document["strokes"] if isinstance(document, dict) else document
            tokens = ("x", "^", "{", str(len(strokes)), "}")
        others = (Alternative("y", ("y",), 0.125), Alternative(r"\alpha", (r"\alpha",), 0.0625))
        maps = np.zeros((len(tokens), 2, 3), np.float32)
        maps[np.arange(len(tokens)), 0, np.arange(len(tokens)) % 3] = 1.0
        box = (0.0, 0.0, float(width), float(height))
        return Recognition(
            "".join(tokens), tokens, 0.5,
            alternatives=others[: wanted.get("n_best", 1) - 1],
            confidence=None if wanted.get("beam", 1) > 1 else 0.75,
            timings={"request": 1.5},
            attention=AttentionMaps(maps, box) if wanted.get("attention") else None,
        )  # fmt: skip

    async def health(self) -> tuple[bool, str]:
        return self.error is None, str(self.error or "A backend for tests")

    async def close(self) -> None:
        self.closed = True


@contextmanager
def serving(backend: Backend) -> Iterator[str]:
    """The pad in front of ``backend``; gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(make_app(backend), log_level="error"))
        thread = threading.Thread(target=_run, args=(server, listener), daemon=True)
        thread.start()
        until = time.monotonic() + 20
        while not server.started and time.monotonic() < until:
            time.sleep(0.01)
        assert server.started
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)


def _run(server: uvicorn.Server, listener: socket.socket) -> None:
    with suppress(KeyboardInterrupt, SystemExit):
        server.run(sockets=[listener])
