"""Answers to identical requests, kept in memory.

Triton's own response cache has the model's inputs in its key and not the request's parameters, so
it would answer a beam with what greedy decoding found; and it keeps nothing for decoupled models.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from hmer.serving import RequestParameters
from model_repository.reply import Tokens

_ENTRY_BYTES = 1024  # what an entry takes beside its tensors, about


@dataclass(frozen=True)
class Answer:
    """An answer's outputs, batch first; of a stream the tokens that led to it; its maps' box."""

    outputs: dict[str, NDArray[Any]]
    tokens: Sequence[Tokens] = ()
    box: tuple[float, ...] = ()

    @property
    def size(self) -> int:
        """Bytes in memory, about."""
        total = _ENTRY_BYTES
        for values in self.outputs.values():
            total += values.nbytes
            if values.dtype == object:
                total += sum(len(value) for value in values.flat)
        for part in self.tokens:
            total += 64 * len(part.ids) + (0 if part.maps is None else part.maps.nbytes)
        return total


class AnswerCache:
    """The answers used last, up to ``capacity`` bytes; usable by several threads.

    A cache belongs to one version of one model. ``capacity`` 0 keeps nothing.
    """

    def __init__(self, capacity: int) -> None:
        self.hits = self.misses = 0
        self.size = 0
        self._capacity = capacity
        self._answers: OrderedDict[bytes, Answer] = OrderedDict()
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        """Whether anything is ever kept."""
        return self._capacity > 0

    def get(self, key: bytes) -> Answer | None:
        """The answer, if it is here."""
        with self._lock:
            answer = self._answers.get(key)
            if answer is None:
                self.misses += 1
                return None
            self.hits += 1
            self._answers.move_to_end(key)
            return answer

    def put(self, key: bytes, answer: Answer) -> None:
        """Keep ``answer`` in place of those that were not asked for the longest."""
        with self._lock:
            if (old := self._answers.pop(key, None)) is not None:
                self.size -= old.size
            if answer.size > self._capacity:
                return
            self._answers[key] = answer
            self.size += answer.size
            while self.size > self._capacity:
                _, gone = self._answers.popitem(last=False)
                self.size -= gone.size


def key_of(rows: Sequence[bytes], parameters: RequestParameters) -> bytes:
    """What two requests with the same answer have in common: inputs and what shapes the answer.

    Priority, time limit and ``k`` do not; the rows are those after decoding base64.
    """
    search = parameters.search
    digest = hashlib.sha256(
        repr(
            (search.beam, search.n_best, search.length_penalty if search.beam > 1 else None,
             parameters.max_tokens, parameters.attention, parameters.looks,
             [len(row) for row in rows])
        ).encode("ascii")
    )  # fmt: skip
    for row in rows:
        digest.update(row)
    return digest.digest()
