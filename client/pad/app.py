"""The pad's ASGI application: the page, its files, and the REST end point."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import uuid
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from importlib.resources import files
from typing import Any, TypeVar

from client.inputs import MAX_BYTES
from client.pad.backend import Backend, Wanted
from client.pad.documents import answer_document, error_document, status_of
from client.pad.openapi import (
    HEALTH_PATH,
    MAX_ID,
    PARAMETERS,
    RECOGNIZE_PATH,
    REQUEST_ID,
    description,
)
from hmer.errors import (
    BadParameter,
    Cancelled,
    EmptyInput,
    HmerError,
    ImageTooLarge,
    InferenceFailed,
    MissingDependency,
)

try:
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route
except ImportError as error:  # pragma: no cover - the extra's absence
    raise MissingDependency(
        f"The pad needs starlette and uvicorn ({error}): pip install 'hmer[pad]'."
    ) from error

T = TypeVar("T")

_PLAIN_ID = re.compile(rf"[!-~]{{1,{MAX_ID}}}")

LOOPBACK = ("localhost", "127.0.0.1", "::1", "[::1]")
_FILES = {"/": ("page.html", "text/html"), "/pad.css": ("pad.css", "text/css"),
          "/pad.js": ("pad.js", "text/javascript"),
          "/ink.js": ("ink.js", "text/javascript")}  # fmt: skip
_HEADERS = {
    # Nothing from elsewhere, whatever an answer says.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def make_app(backend: Backend, hosts: Sequence[str] = LOOPBACK) -> Starlette:
    """The application in front of ``backend``, which it closes at its end.

    ``hosts``: names that requests may call this server by; others are refused, so that no other
    page's name can be made to lead here (DNS rebinding).
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await backend.close()

    async def recognize(request: Request) -> Response:
        wanted = _wanted(request.query_params)
        data = await _body(request)
        wanted["request_id"] = _id_of(request)
        answer = await _while_connected(request, backend.recognize(data, wanted))
        return _json(request, answer_document(answer, data))

    async def health(request: Request) -> Response:
        ready, detail = await backend.health()
        return JSONResponse({"ready": ready, "detail": detail}, 200 if ready else 503)

    async def openapi(request: Request) -> Response:
        return JSONResponse(description())

    async def page(request: Request) -> Response:
        name, kind = _FILES[request.url.path]
        content = files("client.pad").joinpath(name).read_bytes()
        return Response(content, media_type=kind, headers=_HEADERS)

    return Starlette(
        routes=[
            Route(RECOGNIZE_PATH, recognize, methods=["POST"]),
            Route(HEALTH_PATH, health),
            Route("/openapi.json", openapi),
            *(Route(path, page) for path in _FILES),
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
        ],
        exception_handlers={
            HmerError: _failed,
            ClientDisconnect: _gone,
            HTTPException: _refused,
            Exception: _broken,
        },
        lifespan=lifespan,
    )


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HmerError)
    return _json(request, error_document(error), status_of(error))


async def _gone(request: Request, error: Exception) -> Response:
    return _json(request, error_document(Cancelled("The client went away.")), 503)


async def _refused(request: Request, error: Exception) -> Response:
    """No such path or method: what the framework says, in the form of the other errors."""
    assert isinstance(error, HTTPException)
    problem = {"code": "not_found", "message": f"{request.url.path}: {error.detail}."}
    headers = error.headers
    return JSONResponse({"error": problem}, error.status_code, headers=dict(headers or {}))


async def _broken(request: Request, error: Exception) -> Response:
    """Whatever else: no traceback reaches the client; the framework logs it."""
    failed = InferenceFailed(f"The pad failed on this request ({type(error).__name__}).")
    return _json(request, error_document(failed), 500)


def _json(request: Request, document: dict[str, Any], status: int = 200) -> Response:
    """A response that says by what name the server's log knows the request."""
    return JSONResponse(document, status, headers={REQUEST_ID: _id_of(request)})


def _id_of(request: Request) -> str:
    """The client's own name for ``request`` if it is a plain one, else a random one; kept."""
    if not hasattr(request.state, "hmer_id"):
        given = request.headers.get(REQUEST_ID, "")
        plain = _PLAIN_ID.fullmatch(given)
        request.state.hmer_id = given if plain else uuid.uuid4().hex
    return str(request.state.hmer_id)


def _wanted(query: Mapping[str, str]) -> Wanted:
    """The query's parameters. Raises ``BadParameter``, also for unknown ones."""
    if unknown := sorted(set(query) - set(PARAMETERS)):
        raise BadParameter(
            f"There is no parameter {unknown[0]!r}. There are: {', '.join(PARAMETERS)}."
        )
    values: Any = {name: _value(name, text) for name, text in query.items()}
    if values.get("n_best", 1) > values.get("beam", 1):
        raise BadParameter(f"n_best is {values['n_best']}, more than the beam's width.")
    wanted: Wanted = values
    return wanted


def _value(name: str, text: str) -> bool | int | float:
    schema = PARAMETERS[name]["schema"]
    if schema["type"] == "boolean":
        if text not in ("true", "false"):
            raise BadParameter(f"{name} is {text!r}; it must be true or false.")
        return text == "true"
    whole = schema["type"] == "integer"
    try:
        value: float = int(text) if whole and text.isascii() else float(text)
    except ValueError:
        value = math.nan
    low, high = schema["minimum"], schema["maximum"]
    if not low <= value <= high or (whole and not isinstance(value, int)):
        raise BadParameter(
            f"{name} is {text!r}; it must be a {'whole ' * whole}number, {low:g} to {high:g}."
        )
    return value


async def _body(request: Request) -> bytes:
    """The body. Raises ``EmptyInput`` or ``ImageTooLarge``, the latter before it is read whole."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BYTES:
            raise ImageTooLarge(
                f"The input is larger than {MAX_BYTES // 2**20} MiB, the most that is taken."
            )
        parts.append(part)
    if not size:
        raise EmptyInput("The request has no body: send a picture, InkML or JSON strokes.")
    return b"".join(parts)


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is cancelled when the client goes away meanwhile."""
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for each in (task, watcher):
            each.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
