"""What a soak sends: every kind of request that a server meets in a day, good and bad.

Most are pictures of mixed sizes, asked once. Beside them: ink, streams, beams, callers that
leave before they are answered, streams that nobody reads to the end, and inputs that must be
refused. Whatever a good request was answered first, it must be answered every time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from benchmarks.crohme import Expression
from client import AsyncRecognizer, Retry
from hmer import ink
from hmer.errors import HmerError, InputError
from hmer.recognizer import Recognition

# Shares of the requests by kind.
SHARES = {
    "picture": 0.68,
    "ink": 0.10,
    "stream": 0.06,
    "beam": 0.03,
    "cancelled": 0.05,
    "left stream": 0.02,
    "bad": 0.06,
}
ANSWERED = ("picture", "ink", "stream", "beam")
SCALES = (0.75, 1.0, 1.5, 2.5)  # of a picture's sides
BEAM = 3
_LEAVE_S = (0.005, 0.25)  # after so long, drawn evenly, a caller is gone
# Outcomes of a request, beside the codes of errors that should not be.
OK, REFUSED, LEFT, WRONG = "answered", "refused", "left", "another answer"


@dataclass(frozen=True)
class Request:
    """One to send: its kind, what is sent, the key of its answer, and when its caller leaves."""

    kind: str
    data: bytes
    key: str = ""
    leaves: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What became of one, and how long that took in seconds from when it was due."""

    kind: str
    outcome: str
    latency: float
    done: float


class Mix:
    """Draws requests; equal seeds draw equal ones."""

    def __init__(self, expressions: Sequence[Expression], seed: int = 0) -> None:
        """``expressions``: with strokes as JSON in ``data``."""
        self._rng = np.random.default_rng(seed)
        self._kinds, self._shares = list(SHARES), list(SHARES.values())
        self._inks = [(e.id, e.data) for e in expressions]
        self._pictures = [
            (f"{e.id} x{scale:g}", scaled(e.data, scale)) for e in expressions for scale in SCALES
        ]
        self._bad = bad_inputs(self._pictures[0][1])

    def draw(self) -> Request:
        """The next one."""
        kind = str(self._rng.choice(self._kinds, p=self._shares))
        if kind == "bad":
            return Request(kind, self._bad[int(self._rng.integers(len(self._bad)))])
        pool = self._inks if kind == "ink" else self._pictures
        key, data = pool[int(self._rng.integers(len(pool)))]
        leaves = float(self._rng.uniform(*_LEAVE_S)) if kind in ("cancelled", "left stream") else 0
        return Request(kind, data, f"{key} beam" if kind == "beam" else key, leaves)


class Sender:
    """Sends requests of a ``Mix`` and judges what comes back."""

    def __init__(self, recognizer: AsyncRecognizer) -> None:
        """``recognizer`` must not retry: what is refused once is counted."""
        self._recognizer = recognizer
        self._answers: dict[str, tuple[str, ...]] = {}

    async def __call__(self, request: Request, due: float) -> Outcome:
        """Send ``request`` now; ``due`` is when it should have been, by ``time.perf_counter``."""
        try:
            outcome = await self._send(request)
        except InputError as error:
            outcome = REFUSED if request.kind == "bad" else error.code
        except HmerError as error:
            outcome = error.code
        done = time.perf_counter()
        return Outcome(request.kind, outcome, done - due, done)

    async def _send(self, request: Request) -> str:
        if request.kind == "cancelled":
            try:
                await asyncio.wait_for(self._recognizer.recognize(request.data), request.leaves)
            except asyncio.TimeoutError:
                return LEFT
            return OK
        if request.kind == "left stream":
            async with contextlib.aclosing(self._recognizer.stream(request.data)) as parts:
                async for _ in parts:
                    return LEFT
            return OK
        if request.kind == "stream":
            return self._judge(request, [p async for p in self._recognizer.stream(request.data)])
        beam = BEAM if request.kind == "beam" else None
        return self._judge(request, [await self._recognizer.recognize(request.data, beam=beam)])

    def _judge(self, request: Request, parts: Sequence[object]) -> str:
        last = parts[-1] if parts else None
        if not isinstance(last, Recognition) or request.kind == "bad":
            return WRONG
        return OK if self._answers.setdefault(request.key, last.tokens) == last.tokens else WRONG


def connect(url: str, timeout: float) -> AsyncRecognizer:
    """For a ``Sender``."""
    return AsyncRecognizer(url, timeout=timeout, retry=Retry(attempts=1), threads=256)


def scaled(strokes: bytes, scale: float) -> bytes:
    """The strokes drawn as PNG, with sides ``scale`` times as long."""
    page = ink.render(ink.parse_strokes(strokes).strokes)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    resized = (
        page if scale == 1 else cv2.resize(page, None, fx=scale, fy=scale, interpolation=method)
    )
    return cv2.imencode(".png", resized)[1].tobytes()


def bad_inputs(png: bytes) -> list[bytes]:
    """Inputs that must be refused, one of each kind."""
    blank = cv2.imencode(".png", np.full((60, 200), 255, np.uint8))[1].tobytes()
    return [
        png[: len(png) // 2],
        b"not a picture",
        b"\x89PNG\r\n\x1a\n" + bytes(500),
        blank,
        b'{"strokes": [[[0, 0], [1, NaN]]]}',
        json.dumps({"strokes": []}).encode(),
        b'{"strokes": [[[1e400, 2]]]}',
        b"<ink><trace>1 2, x y</trace></ink>",
        b"<ink>" + b"<a>" * 500,
    ]
