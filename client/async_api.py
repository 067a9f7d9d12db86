"""The Python API for programs that run an event loop.

::

    from client import AsyncRecognizer

    async with AsyncRecognizer("localhost:8001") as recognizer:
        answer = await recognizer.recognize("formula.png")
        async for part in recognizer.stream(strokes):
            print(part.latex)

It runs a ``Recognizer`` in threads, so that wires, retries and errors are one implementation.
Cancelling a task (``asyncio.timeout``, ``task.cancel()``) ends its request on the wire, and the
server frees what it held.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from client.api import HEALTH_TIMEOUT, Recognizer
from client.cancellation import Cancellation
from client.inputs import Source
from client.ordered import check_concurrency
from client.parameters import Options, RequestOptions
from client.protocol import DEFAULT_CONCURRENCY, Items
from client.results import Health, Partial
from client.transport import DEFAULT_URL, ModelInfo
from hmer.errors import Cancelled, HmerError
from hmer.recognizer import Recognition

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")

DEFAULT_THREADS = 64


class AsyncRecognizer:
    """A ``Recognizer`` whose methods are awaited; an asynchronous context manager."""

    def __init__(
        self, url: str = DEFAULT_URL, *, threads: int = DEFAULT_THREADS, **options: Any
    ) -> None:
        """``options`` are those of ``Recognizer``; ``threads``: requests at a time, others wait.

        Raises what ``Recognizer`` raises.
        """
        check_concurrency(threads)
        self._recognizer = Recognizer(url, **options)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="hmer-async")
        self._under_way: set[Cancellation] = set()
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """The server's address, as errors name it."""
        return self._recognizer.url

    async def __aenter__(self) -> AsyncRecognizer:
        """The recognizer itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        await self.close()

    async def close(self) -> None:
        """Close the connection; requests under way fail with ``Cancelled``."""
        with self._lock:
            under_way = list(self._under_way)
        for cancellation in under_way:
            cancellation.cancel()
        await asyncio.to_thread(self._recognizer.close)
        # What still waits for a thread gets one, and fails there as what is under way does.
        self._pool.shutdown(wait=False)

    @overload
    async def recognize(
        self, data: Items, **options: Unpack[RequestOptions]
    ) -> list[Recognition | HmerError]: ...

    @overload
    async def recognize(self, data: Source, **options: Unpack[RequestOptions]) -> Recognition: ...

    async def recognize(
        self, data: Any, **options: Unpack[RequestOptions]
    ) -> Recognition | list[Recognition | HmerError]:
        """See ``Recognizer.recognize``; ``cancellation`` is this class's own."""
        with self._cancelling() as cancellation:
            options["cancellation"] = cancellation
            return await self._in_thread(partial(self._recognizer.recognize, data, **options))

    async def stream(
        self, data: Source, **options: Unpack[RequestOptions]
    ) -> AsyncGenerator[Partial | Recognition, None]:
        """See ``Recognizer.stream``; leaving the iteration (``aclose``) cancels the request."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Partial | Recognition | BaseException | None] = asyncio.Queue()

        def put(event: Partial | Recognition | BaseException | None) -> None:
            if not loop.is_closed():  # nobody listens any more
                loop.call_soon_threadsafe(queue.put_nowait, event)

        def pump() -> None:
            try:
                for event in self._recognizer.stream(data, **options):
                    put(event)
                put(None)
            except BaseException as error:
                put(error)

        with self._cancelling() as cancellation:
            options["cancellation"] = cancellation
            self._submit(pump)
            while (event := await queue.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                yield event

    async def recognize_many(
        self,
        inputs: Iterable[Source],
        concurrency: int = DEFAULT_CONCURRENCY,
        **options: Unpack[Options],
    ) -> AsyncIterator[Recognition | HmerError]:
        """See ``Recognizer.recognize_many``."""
        check_concurrency(concurrency)

        async def ask(source: Source) -> Recognition | HmerError:
            try:
                return await self.recognize(source, **options)
            except HmerError as error:
                return error

        window: list[asyncio.Task[Recognition | HmerError]] = []
        try:
            for source in inputs:
                window.append(asyncio.create_task(ask(source)))
                while sum(not task.done() for task in window) >= concurrency or (
                    len(window) >= 2 * concurrency
                ):
                    if window[0].done():
                        yield window.pop(0).result()
                    else:
                        await asyncio.wait(window, return_when=asyncio.FIRST_COMPLETED)
            while window:
                yield await window.pop(0)
        finally:
            for task in window:
                task.cancel()

    async def health(self, timeout: float = HEALTH_TIMEOUT) -> Health:
        """See ``Recognizer.health``."""
        return await self._in_thread(partial(self._recognizer.health, timeout))

    async def model_info(
        self, name: str, version: str | int = "", timeout: float = HEALTH_TIMEOUT
    ) -> ModelInfo:
        """See ``Recognizer.model_info``."""
        return await self._in_thread(partial(self._recognizer.model_info, name, version, timeout))

    def _cancelling(self) -> _Cancelling:
        return _Cancelling(self._under_way, self._lock)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.wrap_future(self._submit(call))

    def _submit(self, call: Callable[[], T]) -> Future[T]:
        try:
            return self._pool.submit(call)
        except RuntimeError:  # it was shut down
            raise Cancelled(f"The connection to {self.url} was closed by this program.") from None


class _Cancelling:
    """A ``Cancellation`` that ends with its context, known to the recognizer meanwhile."""

    def __init__(self, known: set[Cancellation], lock: threading.Lock) -> None:
        self._known, self._lock = known, lock
        self._cancellation = Cancellation()

    def __enter__(self) -> Cancellation:
        with self._lock:
            self._known.add(self._cancellation)
        return self._cancellation

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._known.discard(self._cancellation)
        self._cancellation.cancel()
