"""What went wrong on the wire -> an error of ``hmer.errors`` that says what to do."""

from __future__ import annotations

from hmer.errors import (
    BadParameter,
    Cancelled,
    DeadlineExceeded,
    HmerError,
    InferenceFailed,
    Overloaded,
    ServerError,
    ServerUnavailable,
    UnknownModel,
    from_wire,
)

# Triton answers with gRPC's status names; over HTTP with these numbers for the same errors.
STATUS_OF_HTTP = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    429: "UNAVAILABLE",
    499: "CANCELLED",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",  # a proxy that finds no server behind it
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}

_SEE_MODELS = "Run hmer-client health to see what it serves."


_CUT = ("connection closed", "connection reset by peer")


def no_server(url: str, reason: str, hint: str = "") -> ServerUnavailable:
    """Nobody answers at ``url``; ``hint`` is a further sentence."""
    error = ServerUnavailable(
        f"No server answers at {url} ({reason}). Start one with hmer-serve, or give its address "
        f"with --url.{' ' if hint else ''}{hint}"
    )
    error.taken = reason in _CUT
    return error


def cancelled(url: str) -> Cancelled:
    """The request was ended by this side."""
    return Cancelled(f"The request to {url} was cancelled.")


# What Triton says of a region that was registered before it was started again.
FORGOTTEN = "unable to find shared memory region"
# What its Python backend says of a process that was killed, and of a full /dev/shm.
_FOR_NOW = ("is not healthy", "shared memory pool")


def from_status(
    status: str, text: str, url: str, model: str = "", version: str = "", request_id: str = ""
) -> HmerError:
    """The error for a server's answer: ``status`` is gRPC's name, ``text`` the server's words.

    An error that this project's models raised carries its own class (``hmer.errors.to_wire``);
    the others are told from the status and, where Triton uses one status for several things,
    from its words.
    """
    text = text.strip()
    error = from_wire(text)
    if not (type(error) is InferenceFailed and str(error) == text):
        return error
    lower = text.lower()
    if FORGOTTEN in lower:  # NOT_FOUND, but it is not the model that is missing
        return BadParameter(
            f"The server at {url} does not know the shared memory of this request "
            f"({_first_line(text)}). It may have been started again: register the region once more."
        )
    if status == "NOT_FOUND" or "unknown model" in lower or "not at ready state" in lower:
        return _no_model(lower, text, url, model, version)
    if status == "DEADLINE_EXCEEDED" or "timeout expired" in lower:
        return DeadlineExceeded(
            f"The server at {url} did not finish in time. Allow more time with --timeout "
            "(timeout=), or send fewer requests at once."
        )
    if "queue size" in lower:
        return Overloaded(
            f"The server at {url} has more requests waiting than it accepts. Try again later, or "
            "send fewer at once."
        )
    if "is restricted" in lower:  # UNAVAILABLE over gRPC, but it will not be otherwise later
        return BadParameter(
            f"The server at {url} keeps this closed ({_first_line(text)}). Start it with what "
            "opens it, such as hmer-serve --shared-memory."
        )
    if status == "UNAVAILABLE":
        return no_server(url, _first_line(text) or "unavailable")
    if any(words in lower for words in _FOR_NOW):
        return ServerUnavailable(
            f"The server at {url} is out of order ({_first_line(text)}). Try again later: "
            "hmer-serve --supervise restarts it; without, somebody must look at it."
        )
    if status == "CANCELLED":
        return cancelled(url)
    if status in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return ServerError(
            f"The server at {url} refused the request ({_first_line(text) or status.lower()}). "
            "Give what it asks for, such as a bearer token: --token, or HMER_TOKEN (token=)."
        )
    if status in ("INVALID_ARGUMENT", "UNIMPLEMENTED"):
        return BadParameter(
            f"The model {model!r} at {url} does not take this request ({_first_line(text)}). "
            f"Choose a model with the tensors of recognize. {_SEE_MODELS}"
        )
    request = f" as request {request_id}" if request_id else ""
    return InferenceFailed(
        f"The server at {url} failed on this input{request} ({_first_line(text) or status}). "
        "Its log says more."
    )


def _no_model(lower: str, text: str, url: str, model: str, version: str) -> HmerError:
    if not ("model" in lower or "version" in lower):
        # A 404 of some other web server, which does not speak of models.
        return ServerError(
            f"{url} answers, but not as a Triton server ({_first_line(text) or 'not found'}). "
            "Check the address and the port."
        )
    what = f"version {version} of the model {model!r}" if version else f"model {model!r}"
    if "not ready" in lower or "not at ready state" in lower:
        return UnknownModel(f"The server at {url} has no {what} that is ready. {_SEE_MODELS}")
    return UnknownModel(f"The server at {url} has no {what}. {_SEE_MODELS}")


def _first_line(text: str) -> str:
    """The first line without its full stop: a Python traceback of the server's stays there."""
    line = text.splitlines()[0].strip() if text else ""
    return line.rstrip(".")
