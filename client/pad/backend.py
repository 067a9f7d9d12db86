"""Who recognises for the pad: a server, or this process."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Protocol, TypedDict

import numpy as np

from client.async_api import AsyncRecognizer
from client.local import SHIPPED, LocalRecognizer
from client.results import Health
from hmer.attention import trace_attention
from hmer.bundle import GRAPHS, load_bundle
from hmer.preprocess import decode, prepare
from hmer.recognition import AttentionMaps, Recognition


class Wanted(TypedDict, total=False):
    """What the REST end point lets a request ask for; see ``client.parameters.Options``."""

    beam: int
    n_best: int
    length_penalty: float
    max_tokens: int
    attention: bool
    request_id: str


class Backend(Protocol):
    """Pictures or ink in, answers out. Every method raises errors of ``hmer.errors`` only."""

    async def recognize(self, data: bytes, wanted: Wanted) -> Recognition:
        """The answer; cancelling the task ends the work for it where that can be."""
        ...

    async def health(self) -> tuple[bool, str]:
        """Whether requests are answered now, and who answers or why nobody does."""
        ...

    async def close(self) -> None:
        """Free what is held."""
        ...


class ServerBackend:
    """A running hmer-serve behind ``url``."""

    def __init__(self, url: str, **options: Any) -> None:
        """``options`` are those of ``client.AsyncRecognizer``, and so are the errors."""
        self._recognizer = AsyncRecognizer(url, **options)

    async def recognize(self, data: bytes, wanted: Wanted) -> Recognition:
        """See ``Backend``."""
        return await self._recognizer.recognize(data, **wanted)

    async def health(self) -> tuple[bool, str]:
        """See ``Backend``."""
        state: Health = await self._recognizer.health()
        if state.error is not None:
            return False, str(state.error)
        if not state.serving:
            return False, (
                f"The server at {state.url} is not ready, or does not serve {state.model!r}. "
                "hmer-client health says more."
            )
        return True, f"{state.server or 'The server'} at {state.url}"

    async def close(self) -> None:
        """See ``Backend``."""
        await self._recognizer.close()


class LocalBackend:
    """The network in this process; requests take turns."""

    def __init__(self, bundle: str | Path = SHIPPED, *, threads: int = 0) -> None:
        """Load ``bundle``; the errors are those of ``hmer.recognizer.LocalRecognizer``."""
        self._bundle = Path(bundle)
        self._threads = threads
        self._recognizer = LocalRecognizer(bundle, threads=threads)
        self._turn = asyncio.Lock()

    async def recognize(self, data: bytes, wanted: Wanted) -> Recognition:
        """See ``Backend``. A request that was cancelled before its turn costs nothing."""
        async with self._turn:
            return await asyncio.to_thread(self._recognize, data, wanted)

    def _recognize(self, data: bytes, wanted: Wanted) -> Recognition:
        options: Any = {n: v for n, v in wanted.items() if n not in ("attention", "request_id")}
        answer: Recognition = self._recognizer.recognize(data, **options)
        if not wanted.get("attention"):
            return answer
        return _with_attention(answer, self._bundle, data, self._threads)

    async def health(self) -> tuple[bool, str]:
        """See ``Backend``."""
        return True, f"This process, with {self._bundle}"

    async def close(self) -> None:
        """See ``Backend``."""
        await asyncio.to_thread(self._recognizer.close)


def _with_attention(answer: Recognition, bundle: Path, data: bytes, threads: int) -> Recognition:
    """``answer`` with its tokens' maps, traced over once more."""
    from dataclasses import replace

    traced = trace_attention(bundle, data, threads=threads, tokens=answer.tokens)
    prepared = prepare(decode(data), load_bundle(bundle, kind=GRAPHS).preprocess)
    (left, top), (height, width) = prepared.origin, prepared.image.shape
    edges = ((0, left), (0, top), (width, left), (height, top))
    box = [(edge - prepared.margin) / prepared.scale + origin for edge, origin in edges]
    maps = np.asarray(traced.maps[: len(answer.tokens)], np.float32)
    return replace(answer, attention=AttentionMaps(maps, (box[0], box[1], box[2], box[3])))
