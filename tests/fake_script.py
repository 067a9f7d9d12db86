"""What a fake server is asked and says (``tests.fake_server``)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.shared_memory import SharedMemory
from typing import Any


class Refusal(Exception):
    """The server's error: gRPC's status name and Triton's words."""

    def __init__(self, status: str, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass
class Asked:
    """One request as the server saw it; ``timeout_us`` 0: none was given.

    ``parameters`` are the others that came with it.
    """

    model: str
    version: str
    data: bytes
    id: str
    timeout_us: int
    parameters: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    shared: str = ""  # the region that the data lay in


@dataclass
class Script:
    """What the server does.

    The tokens of a picture are its bytes' characters, or what ``answers`` has for these bytes,
    separated by spaces. ``refusals`` are by data; ``busy`` refuses so many requests first.
    """

    answers: dict[bytes, str] = field(default_factory=dict)
    refusals: dict[bytes, Refusal] = field(default_factory=dict)
    busy: list[Refusal] = field(default_factory=list)
    delays: dict[bytes, float] = field(default_factory=dict)
    hold: Callable[[Asked], None] = lambda asked: None  # is called while a request is under way
    alternatives: str = "[]"
    confidence: float = -1.0
    pause: float = 0.0  # seconds before every token of a stream
    ended: int = 0  # streams that were followed to their end
    token: str = ""  # a bearer token, without which nothing is answered
    regions: dict[str, str] = field(default_factory=dict)  # shared memory: key by name
    metrics: str = ""
    ready: bool = True
    asked: list[Asked] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def infer(self, asked: Asked) -> dict[str, Any]:
        with self.lock:
            self.asked.append(asked)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            refusal = self.busy.pop(0) if self.busy else None
        try:
            if refusal is not None:
                raise refusal
            if asked.model == "classify":
                return {"label": "cat"}
            if asked.model not in ("recognize", "recognize_stream"):
                raise Refusal(
                    "NOT_FOUND", f"Request for unknown model: '{asked.model}' is not found"
                )
            if asked.version not in ("", "1"):
                raise Refusal(
                    "NOT_FOUND",
                    f"Request for unknown model: 'recognize' version {asked.version} is not found",
                )
            time.sleep(self.delays.get(asked.data, 0.0))
            self.hold(asked)
            if asked.data in self.refusals:
                raise self.refusals[asked.data]
            tokens = self.answers.get(asked.data) or " ".join(asked.data.decode("utf-8"))
            outputs: dict[str, Any] = {
                "latex": tokens.replace(" ", ""),
                "tokens": tokens,
                "score": 0.5,
                "confidence": self.confidence,
                "alternatives": self.alternatives,
            }
            if asked.parameters.get("attention"):
                outputs["attention"] = [[[0.25, 0.75]]] * len(tokens.split())
                outputs["attention_box"] = [0.0, 0.0, 32.0, 16.0]
            return outputs
        finally:
            with self.lock:
                self.at_once -= 1

    def stream(self, asked: Asked) -> Iterator[dict[str, Any]]:
        """The responses of ``recognize_stream``."""
        outputs = self.infer(asked)
        for place, token in enumerate(outputs["tokens"].split()):
            time.sleep(self.pause)
            yield {"token": token, "token_score": 0.5, "index": place}
        yield outputs
        with self.lock:
            self.ended += 1

    def enter(self, headers: dict[str, str]) -> None:
        """Refuse who has no token, if one is needed."""
        if self.token and headers.get("authorization") != f"Bearer {self.token}":
            raise Refusal("UNAUTHENTICATED", "no valid bearer token")

    def memory(self, name: str, size: int) -> bytes:
        """What lies in registered shared memory, as Triton reads it."""
        if name not in self.regions:
            raise Refusal("NOT_FOUND", f"Unable to find shared memory region: '{name}'")
        memory = SharedMemory(self.regions[name].lstrip("/"))
        try:
            assert memory.buf is not None
            return bytes(memory.buf[:size])
        finally:
            memory.close()


def index(script: Script) -> list[dict[str, str]]:
    """The repository index of either front."""
    if script.ready:
        return [{"name": "recognize", "version": "1", "state": "READY", "reason": ""}]
    return [{"name": "recognize", "version": "1", "state": "UNAVAILABLE", "reason": "no bundle"}]
