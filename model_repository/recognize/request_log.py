"""One line in the server's log for every request to ``recognize`` and ``recognize_stream``.

Whatever became of it, a request leaves exactly one line, written when it was answered. With
``hmer-serve --log-format json`` it is one JSON object::

    {"time": "2026-01-31T12:00:00.123Z", "level": "info", "event": "request",
     "id": "exam-7", "model": "recognize", "version": 1, "result": "ok", "rows": 1,
     "bytes": 5120, "pictures": [[412, 96]], "looks": 1, "beam": 1, "tokens": 17, "cached": false,
     "ms": 31.5, "queue_ms": 0.2, "preprocess_ms": 3.1, "encoder_ms": 17.9, "decode_ms": 10.3}

``id``: the client's own; for a request without one, 32 hexadecimal digits that are made here. One
of more than 128 characters is cut, and ``id_length`` tells how long it was. ``result``: ``ok`` or
the error's code (``hmer.errors``), such as ``overloaded`` for one that was shed, ``cancelled``,
``deadline_exceeded``; ``message`` is then its sentence, and the level ``warning``, or ``error``
where the server is at fault. ``rows`` inputs of ``bytes`` in all; ``pictures``: width and height
of each as it was decoded or drawn. ``tokens``: of all answers together. ``ms``: from arrival to
answer, then by stage; of a stream also ``first_token_ms``. What is not known is left out. With
``--log-format text`` the same stands as ``name=value``, values as in JSON.

Nothing that a client sends can end a line or change a terminal: every character that is not
printable ASCII is written as JSON's escape.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any, Protocol

from hmer.errors import HmerError, InferenceFailed
from hmer.serving import JSON, LOG_VARIABLE, RequestParameters

MAX_ID = 128  # characters; a name needs fewer
_MAX_MESSAGE = 500
_MAX_PICTURES = 8  # a batch of many would make a line of thousands of characters
_STDERR = 2

Write = Callable[[bytes], object]


class Logged(Protocol):
    """What is told of a request (``recognize.job.Job``); times are of ``time.monotonic``."""

    arrived: float
    request_id: str
    rows: list[bytes]
    parameters: RequestParameters
    stages: dict[str, float]
    pictures: list[tuple[int, int]]
    length: int | None
    cached: bool
    first_token_s: float | None


def open_request_log(
    model: str, version: int, environment: Mapping[str, str] | None = None
) -> RequestLog | None:
    """What logs requests of ``model``; ``None`` where it is switched off."""
    form = (os.environ if environment is None else environment).get(LOG_VARIABLE)
    return RequestLog(model, version, form) if form else None


def _to_stderr(line: bytes) -> None:
    """In one piece: lines of several threads and processes must not mix."""
    os.write(_STDERR, line)


class RequestLog:
    """Writes the lines. Usable by several threads."""

    def __init__(self, model: str, version: int, form: str, write: Write = _to_stderr) -> None:
        """``form``: one of ``hmer.serving.LOG_FORMATS``."""
        self._model, self._version, self._form, self._write = model, version, form, write

    def ended(self, job: Logged, error: HmerError | None) -> None:
        """The line of ``job``, which was answered now: with ``error``, if there is one."""
        at = time.monotonic()
        values: dict[str, Any] = {
            "rows": len(job.rows),
            "bytes": sum(map(len, job.rows)),
            "looks": job.parameters.looks,
            "beam": job.parameters.search.beam,
            "cached": job.cached,
        }
        if job.pictures:
            values["pictures"] = job.pictures[:_MAX_PICTURES]
        if error is None and job.length is not None:
            values["tokens"] = job.length
        values["ms"] = _ms(at - job.arrived)
        # One that never set out spent all its time in the queue.
        stages = [("queue", job.arrived), *job.stages.items()]
        ends = [began for _, began in stages[1:]] + [at]
        for (stage, began), end in zip(stages, ends, strict=True):
            values[f"{stage}_ms"] = _ms(end - began)
        if job.first_token_s is not None:
            values["first_token_ms"] = _ms(job.first_token_s)
        self._line(job.request_id, error, values)

    def refused(self, request_id: str, error: HmerError) -> None:
        """The line of a request that never set out: it cannot be read, or there is no room."""
        self._line(request_id, error, {})

    def _line(self, request_id: str, error: HmerError | None, values: Mapping[str, Any]) -> None:
        at = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": at.replace("+00:00", "Z")}
        line |= {"level": _level(error), "event": "request"}
        line["id"] = request_id[:MAX_ID] or uuid.uuid4().hex
        if len(request_id) > MAX_ID:
            line["id_length"] = len(request_id)
        line |= {"model": self._model, "version": self._version}
        line["result"] = "ok" if error is None else error.code
        line |= values
        if error is not None:
            line["message"] = str(error)[:_MAX_MESSAGE]
        if self._form == JSON:
            text = _escaped(line)
        else:
            head, level = line.pop("time"), line.pop("level")
            pairs = " ".join(f"{name}={_escaped(value)}" for name, value in line.items())
            text = f"{head} {level} {pairs}"
        self._write(text.encode("ascii") + b"\n")


def _level(error: HmerError | None) -> str:
    if error is None:
        return "info"
    return "error" if isinstance(error, InferenceFailed) else "warning"


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)


def _escaped(value: Any) -> str:
    # DEL is ASCII, so JSON would leave it.
    return json.dumps(value, ensure_ascii=True).replace("\x7f", "\\u007f")
