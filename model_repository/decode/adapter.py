"""Between Triton's requests and the scheduler's: what a request asks for, and its answer."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from hmer import contract
from hmer.calibration import Calibration
from hmer.decode import DecodeRequest, EncodedImage, Outcome, Scheduler
from hmer.errors import BadParameter, HmerError, InferenceFailed
from hmer.following import AttentionFollower
from hmer.recognition import answer
from hmer.serving import REPLY, RequestParameters, from_request
from hmer.slots import split_encoded
from hmer.vocab import Vocabulary
from model_repository.decode.metrics import Durations
from model_repository.reply import Reply, ReplySender, Tokens
from model_repository.triton import (
    Request,
    array,
    deadline_of,
    error_response,
    response,
    strings,
)

_log = logging.getLogger(__name__)

# Asking whether a request was cancelled is a trip to another process (0.1 ms): too dear for
# every slot at every step.
CANCEL_POLL_S = 0.05


def encoded_images(request: Request, max_positions: int) -> list[EncodedImage]:
    """The rows of ``request``, cropped to their true sizes; copies, for Triton's memory goes.

    Raises ``BadParameter`` for what cannot be an encoder's output, ``InferenceFailed`` for one
    that holds what is no number.
    """
    outputs = {name: array(request, name) for name in ("values", "keys", "feature_size", "state")}
    values, keys, size, state = outputs.values()
    if values.ndim != 4 or keys.ndim != 4 or size.ndim != 2 or state.ndim != 2:
        raise BadParameter(
            "The features have the shapes "
            + ", ".join(f"{name} {list(a.shape)}" for name, a in outputs.items())
            + "; see the model's configuration."
        )
    height, width = values.shape[1:3]
    if keys.shape[:3] != values.shape[:3] or len({len(a) for a in outputs.values()}) != 1:
        raise BadParameter(
            f"values {list(values.shape)} and keys {list(keys.shape)} are not of one encoder."
        )
    if height * width > max_positions:
        raise BadParameter(
            f"The features have {height} x {width} positions; at most {max_positions} in all are "
            "accepted. Scale the picture down."
        )
    if (size < 1).any() or (size > (height, width)).any():
        raise BadParameter(
            f"The feature sizes {size.tolist()} do not lie within the features' {height} x {width} "
            "positions."
        )
    images = [
        EncodedImage(image.values.copy(), image.keys.copy(), image.state.copy())
        for image in split_encoded(outputs)
    ]
    for image in images:
        # The sum is not finite if anything in it is not, and costs less than asking each.
        if not all(math.isfinite(a.sum()) for a in (image.values, image.keys, image.state)):
            raise InferenceFailed(
                "The encoder gave numbers that are not finite for this input. Its graph or "
                "weights are broken, or its precision is too low for this picture."
            )
    return images


@dataclass(eq=False)
class Pending:
    """A request under way: as many slots as it has rows, and one response when all are done.

    The first row that fails answers for the request and frees the other rows' slots. ``reply`` is
    where a caller in this server waits for tokens (if ``streams``) and cancels; without one the
    response sender is asked. With a ``follower`` every token's attention is traced, in a thread
    that does that alone, and tokens and answer go out from there.
    """

    sender: Any
    rows: int
    loop: Loop
    calibration: Calibration | None = None
    arrived: float = field(default_factory=time.monotonic)
    reply: Reply | None = None
    streams: bool = False
    follower: AttentionFollower | None = None
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    answered: bool = False
    _begun: bool = False
    _gone: bool = False
    _asked: float = 0.0
    # A row may be refused in Triton's thread while another fails in the decoding thread.
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def cancelled(self) -> bool:
        """Whether nobody waits for this any more: answered with an error, or cancelled."""
        if self.answered or self._gone:
            return True
        if self.reply is not None:
            return self.reply.cancelled
        now = time.monotonic()
        if now - self._asked >= CANCEL_POLL_S:
            self._asked = now
            with self._lock:  # never after the last response: Triton has freed what it would ask
                self._gone = self.answered or bool(self.sender.is_cancelled())
        return self._gone

    def tokens(self, ids: Sequence[int], scores: Sequence[float]) -> None:
        """Take new tokens of the answer, in the decoding thread."""
        if not self._begun:
            self._begun = True
            self.loop.durations.first_token.observe(time.monotonic() - self.arrived)
        if self.follower is not None:
            self.loop.tracer.submit(self._trace, list(ids), list(scores))
        elif self.streams and self.reply is not None:
            self.reply.send(Tokens(list(ids), list(scores)))

    def _trace(self, ids: list[int], scores: list[float]) -> None:
        assert self.follower is not None
        if self.answered:
            return
        try:
            maps = self.follower.follow(ids)
        except Exception as error:
            _log.exception("The attention of a formula could not be traced.")
            self.fail(InferenceFailed(f"The attention cannot be traced: {error}"))
            return
        if self.streams and self.reply is not None:
            self.reply.send(Tokens(ids, scores, maps))

    def done(self, row: int, outcome: Outcome) -> None:
        """Take a row's outcome; respond if it was the last one missing, or an error."""
        self.loop.durations.ended(outcome)
        if outcome.error is not None:
            self.fail(outcome.error)
            return
        self.outcomes[row] = outcome
        if len(self.outcomes) == self.rows:
            if self.follower is not None:  # after the tokens that are being traced
                self.loop.tracer.submit(lambda: self._send(self._response()))
            else:
                self._send(self._response())

    def fail(self, error: HmerError) -> None:
        """Respond with an error, unless a response was sent."""
        self._send(error_response(error))

    def _response(self) -> Any:
        try:
            outputs = answer_tensors(
                self.loop.vocabulary,
                [self.outcomes[row] for row in range(self.rows)],
                self.calibration,
            )
            if self.follower is not None:
                outputs[contract.ATTENTION.name] = self.follower.maps[None]
            return response(outputs)
        except Exception as error:
            _log.exception("An answer could not be written.")
            return error_response(error)

    def _send(self, message: Any) -> None:
        with self._lock:
            if self.answered:
                return
            self.answered = True
            if self.reply is not None:
                self.loop.replies.done(self.reply)
            self.sender.send(message, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


@dataclass(frozen=True)
class Loop:
    """What the requests of one ``decode`` share.

    ``max_tokens``: the longest answer. ``max_positions``: feature positions that an image may
    have. ``k``: tokens a call of the step. ``calibration`` is the bundle's, for the searches that
    it fits. ``follow`` makes what traces an image's attention, if the bundle has a graph for it.
    """

    scheduler: Scheduler
    vocabulary: Vocabulary
    max_tokens: int
    max_positions: int
    k: int
    calibration: Calibration | None
    follow: Callable[[EncodedImage], AttentionFollower] | None
    replies: ReplySender
    tracer: Executor
    durations: Durations


def answer_tensors(
    vocabulary: Vocabulary, outcomes: Sequence[Outcome], calibration: Calibration | None = None
) -> dict[str, NDArray[Any]]:
    """The outputs of ``decode`` for these rows; ``calibration`` is one for their search."""
    answers = [answer(vocabulary, outcome, calibration) for outcome in outcomes]
    return {
        contract.LATEX.name: strings(a.latex for a in answers),
        contract.TOKENS.name: strings(" ".join(a.tokens) for a in answers),
        contract.SCORE.name: np.array([[a.score] for a in answers], np.float32),
        contract.CONFIDENCE.name: np.array(
            [
                [contract.UNKNOWN_CONFIDENCE if a.confidence is None else a.confidence]
                for a in answers
            ],
            np.float32,
        ),
        contract.ALTERNATIVES.name: strings(
            json.dumps([other.to_dict() for other in a.alternatives], ensure_ascii=False)
            for a in answers
        ),
    }


def enqueue(request: Request, loop: Loop) -> None:
    """Submit every row of ``request``; its response comes later, whatever happens."""
    pending = Pending(request.get_response_sender(), 0, loop)
    try:
        _submit(request, pending)
    except HmerError as error:
        pending.fail(error)
    except Exception as error:
        _log.exception("A request could not be read.")
        pending.fail(
            InferenceFailed(f"The request cannot be read: {type(error).__name__}: {error}")
        )


def _submit(request: Request, pending: Pending) -> None:
    loop = pending.loop
    values = json.loads(request.parameters() or "{}")
    wanted, deadline = _wanted(values, loop), deadline_of(request, pending.arrived, values)
    if loop.calibration is not None and loop.calibration.fits(wanted.search):
        pending.calibration = loop.calibration
    images = encoded_images(request, loop.max_positions)
    pending.rows = len(images)
    if REPLY in values:
        address = str(values[REPLY])
        pending.streams = address.startswith("+")
        pending.reply = loop.replies.to(address[1:])
    if wanted.attention:
        pending.follower = _follower(loop, images)
    for row, image in enumerate(images):
        loop.scheduler.submit(
            DecodeRequest(
                image,
                wanted.max_tokens,
                on_done=lambda outcome, row=row: pending.done(row, outcome),  # type: ignore[misc]
                deadline=deadline,
                on_tokens=pending.tokens,
                cancelled=pending.cancelled,
                search=wanted.search,
                priority=wanted.priority,
                k=wanted.k,
                eager=pending.streams,
            )
        )


def _wanted(values: dict[str, Any], loop: Loop) -> RequestParameters:
    wanted = from_request(values, loop.max_tokens)
    if wanted.k is not None and wanted.k > loop.k:
        raise BadParameter(
            f"k is {wanted.k}, and this model decodes at most {loop.k} tokens a call. Ask for 1 to "
            f"{loop.k}, or leave k out."
        )
    return wanted


def _follower(loop: Loop, images: Sequence[EncodedImage]) -> AttentionFollower:
    if loop.follow is None:
        raise BadParameter(
            f"This model's graphs give {loop.k} tokens a call, so it cannot tell where it looked "
            "for each. Export the checkpoint again with hmer-export onnx --beam 8, or with --k 1."
        )
    if len(images) != 1:
        raise BadParameter(
            f"attention was asked for a request of {len(images)} rows. Send one input a request."
        )
    return loop.follow(images[0])
