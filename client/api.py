"""The Python API of the client.

::

    from client import Recognizer

    with Recognizer("localhost:8001") as recognizer:
        print(recognizer.recognize("formula.png").latex)
        for part in recognizer.stream("formula.png"):
            print(part.latex)  # grows; the last one is the Recognition
        for answer in recognizer.recognize_many(paths, concurrency=8):
            print(answer)  # a Recognition, or the HmerError of that input
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast, overload

from client.access import make_access
from client.answer import to_partial, to_recognition
from client.cancellation import Cancellation
from client.inputs import Source, read
from client.metrics import Metrics, read_metrics
from client.ordered import attempt, check_concurrency, ordered
from client.parameters import (
    Options,
    RequestOptions,
    check_timeout,
    check_version,
    to_parameters,
)
from client.protocol import DEFAULT_CONCURRENCY, Items, is_many
from client.results import Health, Partial
from client.retry import DEFAULT_RETRY, Deadline, Retrier, Retry
from client.shared_memory import SharedInputs
from client.transport import (
    DEFAULT_URL,
    Call,
    ModelInfo,
    Outputs,
    SharedInput,
    Transport,
    open_transport,
)
from hmer.contract import RECOGNIZE, RECOGNIZE_STREAM
from hmer.errors import Cancelled, HmerError, InferenceFailed
from hmer.recognizer import Recognition

if TYPE_CHECKING:
    from typing_extensions import Unpack

DEFAULT_TIMEOUT = 30.0  # seconds
HEALTH_TIMEOUT = 5.0  # seconds for each question


class Recognizer:
    """A connection to a server. Thread-safe; a context manager that closes the connection.

    It is a ``client.FormulaRecognizer`` and a ``hmer.recognizer.Recognizer``: what takes one can
    be given either.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        model: str = RECOGNIZE,
        version: str | int = "",
        timeout: float | None = DEFAULT_TIMEOUT,
        retry: Retry = DEFAULT_RETRY,
        headers: Mapping[str, str] | None = None,
        token: str | None = None,
        ca: str | os.PathLike[str] | None = None,
        certificate: str | os.PathLike[str] | None = None,
        key: str | os.PathLike[str] | None = None,
        shared_memory: bool = False,
    ) -> None:
        """Nothing is sent yet, so the server may come up later.

        ``url``: ``HOST:PORT`` (gRPC), ``http://HOST:PORT``, or with TLS ``grpcs://HOST:PORT`` and
        ``https://HOST:PORT``; ``ca``, ``certificate`` and ``key`` are PEM files for it.
        ``version``: of the model; the server chooses by default. ``timeout``: seconds for each
        request with all its attempts; ``None`` waits without limit. ``headers`` go with every
        request, ``token`` as a bearer token. ``shared_memory``: inputs reach a server on this host
        without travelling. Raises ``BadParameter``, ``MissingInput`` or ``MissingDependency``.
        """
        self.model = model
        self.version = check_version(version)
        self.timeout = check_timeout(timeout)
        self._access = make_access(headers, token, ca, certificate, key)
        self._transport: Transport = open_transport(url, self._access)
        self._shared = SharedInputs(self._transport) if shared_memory else None
        self._retrier = Retrier(retry)
        self._closed = threading.Event()

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
        if self._closed.is_set():
            return
        self._closed.set()
        if self._shared is not None:
            self._shared.close()
        self._transport.close()

    @overload
    def recognize(
        self, data: Items, **options: Unpack[RequestOptions]
    ) -> list[Recognition | HmerError]: ...

    @overload
    def recognize(self, data: Source, **options: Unpack[RequestOptions]) -> Recognition: ...

    def recognize(
        self, data: Any, **options: Unpack[RequestOptions]
    ) -> Recognition | list[Recognition | HmerError]:
        """The formula in a path, bytes, a picture or strokes (see ``client.inputs.read``).

        A list of such inputs gives the list of their answers, as ``recognize_many`` does; with a
        ``request_id`` theirs are numbered, ``-1``, ``-2``, ... after it. ``options``: see
        ``client.parameters``. The timing ``request`` is what the last attempt took, seen from
        here. Raises ``HmerError``.
        """
        if not is_many(data):
            return self._recognize(data, options)
        name = options.get("request_id", "")

        def ask(numbered: tuple[int, Source]) -> Recognition | HmerError:
            number, source = numbered
            own = RequestOptions(**options)
            if name:
                own["request_id"] = f"{name}-{number}"
            return attempt(self._recognize, source, own)

        return list(ordered(ask, enumerate(data, 1), min(DEFAULT_CONCURRENCY, len(data))))

    def _recognize(self, data: Source, options: RequestOptions) -> Recognition:
        call, deadline, cancellation = self._call(self.model, data, options)

        def send(remaining: float | None) -> Recognition:
            start = time.perf_counter()
            with self._guarded(call):
                outputs = self._infer(call, remaining, cancellation)
            took = (time.perf_counter() - start) * 1e3
            return to_recognition(outputs, self.url, call, took)

        return self._retrier.run(send, deadline, self.url, self._pause(cancellation))

    def stream(
        self, data: Source, **options: Unpack[RequestOptions]
    ) -> Iterator[Partial | Recognition]:
        """The answer as it is decoded: ``Partial``s that grow, then the ``Recognition``.

        A beam's tokens are known at its end only, and come all at once. Ending the iteration early
        cancels the request. The server is asked when the first part is taken, and asked again
        (``retry``) only until that one has come. Options and errors as of ``recognize``.
        """
        model = RECOGNIZE_STREAM if self.model == RECOGNIZE else self.model
        return self._events(*self._call(model, data, options))

    def _events(
        self, call: Call, deadline: Deadline, cancellation: Cancellation | None
    ) -> Iterator[Partial | Recognition]:
        began = time.perf_counter()

        def start(remaining: float | None) -> tuple[Outputs | None, Generator[Outputs, None, None]]:
            with self._guarded(call):
                parts = self._transport.stream(call, remaining, cancellation)
                return next(parts, None), parts

        pause = self._pause(cancellation)
        outputs, parts = self._retrier.run(start, deadline, self.url, pause)
        part = Partial((), ())
        with contextlib.closing(parts):
            while outputs is not None:
                new = to_partial(outputs, part.tokens, part.scores, self.url, call.model)
                if new is None:
                    took = (time.perf_counter() - began) * 1e3
                    yield to_recognition(outputs, self.url, call, took)
                    return
                part = new
                yield part
                with self._guarded(call):
                    outputs = next(parts, None)
        raise InferenceFailed(
            f"The model {call.model!r} at {self.url} ended the stream before its answer. Its log "
            "says more."
        )

    def _call(
        self, model: str, data: Source, options: RequestOptions
    ) -> tuple[Call, Deadline, Cancellation | None]:
        rest = dict(options)
        timeout, name = options.get("timeout"), options.get("request_id", "")
        for own in ("timeout", "request_id", "cancellation"):
            rest.pop(own, None)
        sent = to_parameters(**rest)  # type: ignore[arg-type]
        deadline = Deadline(self.timeout if timeout is None else check_timeout(timeout))
        call = Call(model, self.version, read(data), name or uuid.uuid4().hex, sent)
        return call, deadline, options.get("cancellation")

    def _infer(
        self, call: Call, timeout: float | None, cancellation: Cancellation | None
    ) -> Outputs:
        if self._shared is None:
            return self._transport.infer(call, timeout, cancellation)

        def ask(place: SharedInput) -> Outputs:
            placed = replace(call, data=b"", shared=place)
            return self._transport.infer(placed, timeout, cancellation)

        return self._shared.send(call.data, ask)

    @contextlib.contextmanager
    def _guarded(self, call: Call) -> Iterator[None]:
        """What goes wrong once this is closed is ``Cancelled``; errors get the request's id."""
        closed = f"The connection to {self.url} was closed by this program."
        if self._closed.is_set():
            raise Cancelled(closed)
        try:
            yield
        except Exception as error:  # a closed channel is gRPC's ValueError
            if self._closed.is_set():  # by another thread, under this request's feet
                raise Cancelled(closed) from None
            if isinstance(error, HmerError):
                error.request_id = call.request_id
            raise

    def _pause(self, cancellation: Cancellation | None) -> Any:
        """How to sleep between attempts: not longer than somebody wants the answer."""
        return self._closed.wait if cancellation is None else cancellation.wait

    def recognize_many(
        self,
        inputs: Iterable[Source],
        concurrency: int = DEFAULT_CONCURRENCY,
        **options: Unpack[Options],
    ) -> Iterator[Recognition | HmerError]:
        """Answers in the order of ``inputs``, with at most ``concurrency`` requests at a time.

        An input that fails gives its ``HmerError`` instead of an answer; the others go on.
        ``inputs`` is read as answers are taken, so it may be endless. The options are as for
        ``recognize``. Raises ``BadParameter``.
        """
        check_concurrency(concurrency)
        to_parameters(**options)  # refused once, not for every input
        wanted = cast(RequestOptions, options)
        return ordered(lambda s: attempt(self._recognize, s, wanted), inputs, concurrency)

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

    def model_info(
        self, name: str, version: str | int = "", timeout: float = HEALTH_TIMEOUT
    ) -> ModelInfo:
        """What a served model takes and gives. Raises ``ServerError``."""
        return self._transport.model_info(name, check_version(version), timeout)

    def metrics(
        self, url: str | None = None, timeout: float = HEALTH_TIMEOUT
    ) -> tuple[Metrics, str]:
        """The server's own figures, and the address that they come from.

        ``url``: of the page; by default at port 8002 of the server's host. Raises ``ServerError``.
        """
        return read_metrics(self.url, url, self._access, timeout)
