"""Inputs through system shared memory, for a client on the server's own host.

A region is made and registered with the server when a request needs one and none is free, and
kept for later requests, so there are as many as requests were ever under way at once.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable, Iterator
from multiprocessing.shared_memory import SharedMemory
from typing import TypeVar

from client.failures import FORGOTTEN
from client.tensors import framed
from client.transport import SharedInput, Transport
from hmer.errors import BadParameter, HmerError, InferenceFailed

REGION_BYTES = 1 << 20  # at least; a larger input gets a larger region
REGISTER_TIMEOUT = 5.0  # seconds

T = TypeVar("T")


class SharedInputs:
    """The regions of one connection. Thread-safe."""

    def __init__(self, transport: Transport) -> None:
        """Nothing is made yet."""
        self._transport = transport
        self._free: list[tuple[str, SharedMemory]] = []
        self._all: dict[str, SharedMemory] = {}
        self._lock = threading.Lock()

    def send(self, data: bytes, ask: Callable[[SharedInput], T]) -> T:
        """``ask`` with the place of ``data``; once more if the server has forgotten its regions.

        A server that was started again has. Raises what ``ask`` and ``holding`` raise.
        """
        try:
            with self.holding(data) as place:
                return ask(place)
        except BadParameter as error:
            if FORGOTTEN not in str(error).lower():
                raise
        self._renew()
        with self.holding(data) as place:
            return ask(place)

    def _renew(self) -> None:
        """Give up the regions that nobody uses: they were all registered with the old server."""
        with self._lock:
            regions, self._free = self._free, []
        for region in regions:
            self._drop(*region)

    @contextlib.contextmanager
    def holding(self, data: bytes) -> Iterator[SharedInput]:
        """``data`` lies in shared memory within the context.

        Raises ``BadParameter`` where memory can't be shared with the server.
        """
        value = framed(data)
        region = self._borrow(len(value))
        name, memory = region
        try:
            buffer = memory.buf
            assert buffer is not None  # only after close
            buffer[: len(value)] = value
            yield SharedInput(name, len(value))
        finally:
            with self._lock:
                if name in self._all:
                    self._free.append(region)

    def _borrow(self, size: int) -> tuple[str, SharedMemory]:
        with self._lock:
            for index, (_, memory) in enumerate(self._free):
                if memory.size >= size:
                    return self._free.pop(index)
        # /dev/shm is small in a container: what is too small now makes room.
        with self._lock:
            small = self._free.pop() if self._free else None
        if small is not None:
            self._drop(*small)
        return self._make(max(size, REGION_BYTES))

    def _make(self, size: int) -> tuple[str, SharedMemory]:
        name = f"hmer-{uuid.uuid4().hex}"
        try:
            memory = SharedMemory(name, create=True, size=size)
        except OSError as error:
            raise BadParameter(
                f"No shared memory of {size} bytes can be had ({error.strerror or error}). Send "
                "the input over the network: leave --shared-memory (shared_memory=) out."
            ) from None
        try:
            self._transport.register_memory(name, f"/{memory.name}", memory.size, REGISTER_TIMEOUT)
        except (BadParameter, InferenceFailed) as error:
            _destroy(memory)
            raise BadParameter(
                f"The server at {self._transport.url} cannot read this host's shared memory "
                f"({str(error).rstrip('.')}). It works on one host only; leave --shared-memory "
                "(shared_memory=) out."
            ) from None
        except BaseException:
            _destroy(memory)
            raise
        with self._lock:
            self._all[name] = memory
        return name, memory

    def _drop(self, name: str, memory: SharedMemory) -> None:
        with self._lock:
            self._all.pop(name, None)
        with contextlib.suppress(HmerError):  # a server that has gone has forgotten it
            self._transport.unregister_memory(name, REGISTER_TIMEOUT)
        _destroy(memory)

    def close(self) -> None:
        """Unregister and free every region; before the transport is closed."""
        with self._lock:
            regions, self._free = list(self._all.items()), []
        for name, memory in regions:
            self._drop(name, memory)


def _destroy(memory: SharedMemory) -> None:
    with contextlib.suppress(OSError, BufferError):
        memory.close()
    with contextlib.suppress(OSError):
        memory.unlink()
