"""The Python API of the client.

::

    from client import Recognizer

    with Recognizer("localhost:8001") as recognizer:
        print(recognizer.recognize("formula.png").latex)
        for answer in recognizer.recognize_many(paths, concurrency=8):
            print(answer)  # a Recognition, or the HmerError of that input
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any

from client.answer import to_recognition
from client.inputs import Source, read
from client.retry import DEFAULT_RETRY, Deadline, Retrier, Retry
from client.transport import DEFAULT_URL, Call, ModelState, Outputs, Transport, open_transport
from hmer.contract import RECOGNIZE
from hmer.errors import BadParameter, Cancelled, HmerError
from hmer.recognizer import Recognition
from hmer.serving import to_request

DEFAULT_TIMEOUT = 30.0  # seconds
HEALTH_TIMEOUT = 5.0  # seconds for each question
DEFAULT_CONCURRENCY = 8


@dataclass(frozen=True)
class Health:
    """How a server is. ``error`` says why it isn't live, ready or serving ``model``."""

    url: str
    model: str
    live: bool = False
    ready: bool = False
    server: str = ""
    models: list[ModelState] = field(default_factory=list)
    error: HmerError | None = None

    @property
    def serving(self) -> bool:
        """Whether the server is ready and some version of the model is, too."""
        return self.ready and any(
            state.name == self.model and state.state == "READY" for state in self.models
        )


class Recognizer:
    """A connection to a server. Thread-safe; a context manager that closes the connection.

    It is also a ``hmer.recognizer.Recognizer``: what takes one can be given either.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        model: str = RECOGNIZE,
        version: str | int = "",
        timeout: float | None = DEFAULT_TIMEOUT,
        retry: Retry = DEFAULT_RETRY,
    ) -> None:
        """Nothing is sent yet, so the server may come up later.

        ``url``: ``HOST:PORT`` (gRPC) or ``http://HOST:PORT``. ``version``: of the model; the
        server chooses by default. ``timeout``: seconds for each request with all its attempts;
        ``None`` waits without limit. Raises ``BadParameter`` or ``MissingDependency``.
        """
        self.model = model
        self.version = _checked_version(version)
        self.timeout = _checked_timeout(timeout)
        self._transport: Transport = open_transport(url)
        self._retrier = Retrier(retry)
        self._closed = False

    @property
    def url(self) -> str:
        """The server's address, as errors name it."""
        return self._transport.url

    def __enter__(self) -> Recognizer:
        """The recognizer itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Close the connection; requests under way fail with ``Cancelled``."""
        self._closed = True
        self._transport.close()

    def recognize(
        self,
        data: Source,
        *,
        timeout: float | None = None,
        request_id: str = "",
        beam: int | None = None,
        n_best: int | None = None,
        length_penalty: float | None = None,
    ) -> Recognition:
        """The formula in a path, bytes, a picture array or strokes (see ``client.inputs.read``).

        ``timeout``: seconds, instead of the recognizer's. ``request_id`` (a random one by
        default) names the request in the server's messages. The timing ``request`` is what
        the last attempt took, seen from here. ``beam``, ``n_best``, ``length_penalty``: see
        ``hmer.decode.SearchOptions``; greedy decoding by default. Raises ``HmerError``.
        """
        parameters = to_request(beam, n_best, length_penalty)
        deadline = Deadline(self.timeout if timeout is None else _checked_timeout(timeout))
        call = Call(
            self.model, self.version, read(data), request_id or uuid.uuid4().hex, parameters
        )

        def send(remaining: float | None) -> Recognition:
            start = time.perf_counter()
            outputs = self._infer(call, remaining)
            took = (time.perf_counter() - start) * 1e3
            return to_recognition(outputs, self.url, call.model, took)

        return self._retrier.run(send, deadline, self.url)

    def _infer(self, call: Call, timeout: float | None) -> Outputs:
        closed = f"The connection to {self.url} was closed by this program."
        if self._closed:
            raise Cancelled(closed)
        try:
            return self._transport.infer(call, timeout)
        except Exception:  # a closed channel is gRPC's ValueError
            if self._closed:  # by another thread, under this request's feet
                raise Cancelled(closed) from None
            raise

    def recognize_many(
        self,
        inputs: Iterable[Source],
        concurrency: int = DEFAULT_CONCURRENCY,
        *,
        beam: int | None = None,
        n_best: int | None = None,
        length_penalty: float | None = None,
    ) -> Iterator[Recognition | HmerError]:
        """Answers in the order of ``inputs``, with at most ``concurrency`` requests at a time.

        An input that fails gives its ``HmerError`` instead of an answer; the others go on.
        ``inputs`` is read as answers are taken, so it may be endless. The options are as for
        ``recognize``. Raises ``BadParameter``.
        """
        if concurrency < 1:
            raise BadParameter(f"The concurrency must be at least 1, not {concurrency}.")
        to_request(beam, n_best, length_penalty)  # refused once, not for every input
        ask = partial(self._attempt, beam=beam, n_best=n_best, length_penalty=length_penalty)
        return self._stream(iter(inputs), concurrency, ask)

    def _stream(
        self,
        inputs: Iterator[Source],
        concurrency: int,
        ask: Callable[[Source], Recognition | HmerError],
    ) -> Iterator[Recognition | HmerError]:
        # Twice as many are taken from `inputs` as are sent at a time: a slow one at the head
        # must not leave the others' places empty.
        window: deque[Future[Recognition | HmerError]] = deque()
        pool = ThreadPoolExecutor(concurrency, thread_name_prefix="hmer-client")
        try:
            for source in inputs:
                window.append(pool.submit(ask, source))
                while window and (len(window) >= 2 * concurrency or window[0].done()):
                    yield window.popleft().result()
            while window:
                yield window.popleft().result()
        finally:
            # Not waiting: after Ctrl-C or a `break`, `close` ends what is under way.
            pool.shutdown(wait=False, cancel_futures=True)

    def _attempt(self, source: Source, **options: Any) -> Recognition | HmerError:
        try:
            return self.recognize(source, **options)
        except HmerError as error:
            return error

    def health(self, timeout: float = HEALTH_TIMEOUT) -> Health:
        """Ask the server how it is; ``timeout`` in seconds for each question. Never raises."""
        live = ready = False
        server, models, error = "", [], None
        try:
            live = self._transport.live(timeout)
            ready = self._transport.ready(timeout)
            server = self._transport.server(timeout)
            models = self._transport.models(timeout)
        except HmerError as problem:
            error = problem
        return Health(self.url, self.model, live, ready, server, models, error)


def _checked_version(version: str | int) -> str:
    text = str(version)
    if text and not (text.isascii() and text.isdigit() and int(text) > 0):
        raise BadParameter(f"A model's version is a whole number from 1 on, not {text!r}.")
    return text


def _checked_timeout(timeout: float | None) -> float | None:
    if timeout is not None and not 0 < timeout < float("inf"):
        raise BadParameter(f"A timeout is a number of seconds above 0, not {timeout}.")
    return timeout
