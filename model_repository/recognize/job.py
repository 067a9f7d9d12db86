"""One request to ``recognize``: what it asks for, and its answers."""

from __future__ import annotations

import base64
import binascii
import json
import math
import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from hmer import contract
from hmer.errors import BadParameter, HmerError, InferenceFailed
from hmer.serving import BASE64, MAX_ROWS, RequestParameters, from_request
from hmer.vocab import Vocabulary
from model_repository.recognize.cache import Answer
from model_repository.reply import Tokens
from model_repository.triton import (
    Request,
    deadline_of,
    error_response,
    input_rows,
    response,
    strings,
)

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
# The tokens come by another way than the answer; how long the answer waits for them.
TOKENS_TIMEOUT_S = 5.0


@dataclass(eq=False)
class Job:
    """A request under way. It is answered once, by whoever is first.

    ``passed_on``: its parameters as they came. ``deadline``: a time of ``time.monotonic``.
    ``box``: what its attention maps cover. Of a ``stream`` the tokens go out as they come.
    ``request_id``: the client's own, else a random one, by which log, trace and the models that
    are called know it.
    """

    sender: Any
    rows: list[bytes]
    parameters: RequestParameters
    passed_on: dict[str, Any]
    vocabulary: Vocabulary
    stream: bool
    arrived: float
    deadline: float | None
    request_id: str = ""
    # Stage -> when it began (``time.monotonic``), in order; each ends where the next begins.
    stages: dict[str, float] = field(default_factory=dict)
    key: bytes | None = None  # in the cache, if there is one
    ticket: str | None = None  # while `decode` has it
    answered: bool = False
    # For the log: width and height of each input's picture, tokens of all answers.
    pictures: list[tuple[int, int]] = field(default_factory=list)
    length: int | None = None
    cached: bool = False
    box: tuple[float, ...] = ()
    first_token_s: float | None = None
    sent: list[Tokens] = field(default_factory=list)
    _news: threading.Condition = field(default_factory=threading.Condition)

    @property
    def size(self) -> int:
        """Bytes of its inputs."""
        return sum(map(len, self.rows))

    @property
    def work(self) -> int:
        """How many pictures of it are encoded."""
        return len(self.rows) * self.parameters.looks

    def enter(self, stage: str) -> None:
        """Note that ``stage`` begins now."""
        self.stages[stage] = time.monotonic()

    def late(self, now: float) -> bool:
        """Whether its time is up."""
        return self.deadline is not None and now >= self.deadline

    def gone(self) -> bool:
        """Whether its client went away.

        Under the lock of ``_send``: Triton frees what it would ask with the last response, and a
        question that comes too late ends the server.
        """
        with self._news:
            return not self.answered and bool(self.sender.is_cancelled())

    def tokens(self, new: Tokens) -> None:
        """Pass on new tokens, if it is a stream that still goes on."""
        with self._news:
            if self.answered or not self.stream:
                return
            if self.first_token_s is None:
                self.first_token_s = time.monotonic() - self.arrived
            place = sum(len(part.ids) for part in self.sent)
            for offset in range(len(new.ids)):
                self.sender.send(response(self._token(new, offset, place + offset)))
            self.sent.append(new)
            self._news.notify_all()

    def _token(self, new: Tokens, offset: int, place: int) -> dict[str, Any]:
        score = math.exp(min(0.0, new.scores[offset]))
        outputs = {
            contract.TOKEN.name: strings(self.vocabulary.decode([new.ids[offset]])),
            contract.TOKEN_SCORE.name: np.array([[score]], np.float32),
            contract.INDEX.name: np.array([[place]], np.int32),
        }
        if new.maps is not None:
            outputs[contract.ATTENTION.name] = new.maps[None, offset : offset + 1]
            outputs[contract.ATTENTION_BOX.name] = np.array([self.box], np.float32)
        return outputs

    def answer(self, answer: Answer) -> bool:
        """Send the answer, after its tokens if it is a stream; whether it was the first to.

        Raises ``InferenceFailed`` if the tokens do not come.
        """
        outputs = dict(answer.outputs)
        self.length = sum(len(text.split()) for text in outputs[contract.TOKENS.name].flat)
        if self.stream:
            expected = len(outputs[contract.TOKENS.name][0, 0].split())
            with self._news:
                if not self._news.wait_for(
                    lambda: self.answered or sum(len(p.ids) for p in self.sent) >= expected,
                    TOKENS_TIMEOUT_S,
                ):
                    raise InferenceFailed("The tokens of an answer were lost on their way.")
            outputs.pop(contract.ATTENTION.name, None)  # each came with its token
        elif contract.ATTENTION.name in outputs:
            outputs[contract.ATTENTION_BOX.name] = np.array([self.box], np.float32)
        return self._send(response(outputs))

    def fail(self, error: HmerError) -> bool:
        """Answer with ``error``; whether it was the first to answer."""
        return self._send(error_response(error))

    def _send(self, message: Any) -> bool:
        with self._news:
            if self.answered:
                return False
            self.answered = True
            self._news.notify_all()
            self.sender.send(message, flags=FINAL)
        return True


def job_of(request: Request, sender: Any, vocabulary: Vocabulary, limit: int, stream: bool) -> Job:
    """Read ``request``, whose tensors lie in memory that goes. Raises an ``InputError``."""
    arrived = time.monotonic()
    passed_on = json.loads(request.parameters() or "{}")
    parameters = from_request(passed_on, limit)
    rows = input_rows(request)
    if parameters.attention and len(rows) != 1:
        raise BadParameter(
            f"attention was asked for a request of {len(rows)} rows. Send one input a request."
        )
    if parameters.looks > 1 and (stream or parameters.attention):
        raise BadParameter(
            "Several looks give one answer at the end: ask for them without a stream and without "
            "attention."
        )
    if parameters.looks * len(rows) > MAX_ROWS:
        raise BadParameter(
            f"{len(rows)} rows with {parameters.looks} looks each are more than {MAX_ROWS} "
            "pictures. Send fewer rows a request."
        )
    if stream and len(rows) != 1:
        raise BadParameter(f"A stream has one input, not {len(rows)}.")
    if parameters.encoding == BASE64:
        rows = [_from_base64(row) for row in rows]
    return Job(
        sender,
        rows,
        parameters,
        passed_on,
        vocabulary,
        stream,
        arrived,
        deadline_of(request, arrived, passed_on),
        request.request_id() or uuid.uuid4().hex,
    )


def _from_base64(row: bytes) -> bytes:
    try:
        return base64.b64decode(b"".join(row.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadParameter(
            f"The input is not base64 ({error}). Encode it, or leave the parameter encoding out."
        ) from None
