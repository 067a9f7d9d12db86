"""Between Triton's requests and the scheduler's: what a request asks for, and its answer."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from hmer import contract
from hmer.calibration import Calibration
from hmer.decode import DecodeRequest, EncodedImage, Outcome, Scheduler
from hmer.errors import BadParameter, HmerError, InferenceFailed, ServerUnavailable
from hmer.recognizer import answer
from hmer.serving import RequestParameters, from_request
from hmer.slots import split_encoded
from hmer.vocab import Vocabulary
from model_repository.triton import Request, array, error_response, response, strings

_log = logging.getLogger(__name__)

# Asking whether a request was cancelled is a trip to another process (0.1 ms): too dear for
# every slot at every step.
CANCEL_POLL_S = 0.05


def encoded_images(request: Request) -> list[EncodedImage]:
    """The rows of ``request``, cropped to their true sizes; copies, for Triton's memory goes."""
    outputs = {name: array(request, name) for name in ("values", "keys", "feature_size", "state")}
    height, width = outputs["values"].shape[1:3]
    size = outputs["feature_size"]
    if (size < 1).any() or (size > (height, width)).any():
        raise BadParameter(
            f"The feature sizes {size.tolist()} do not lie within the features' {height} x {width} "
            "positions."
        )
    return [
        EncodedImage(image.values.copy(), image.keys.copy(), image.state.copy())
        for image in split_encoded(outputs)
    ]


def parameters_of(request: Request, limit: int) -> RequestParameters:
    """What ``request`` asks for; ``limit``: the most tokens. Raises ``BadParameter``."""
    return from_request(json.loads(request.parameters() or "{}"), limit)


def deadline_of(request: Request, now: float) -> float | None:
    """When the request's ``timeout`` (microseconds from its arrival here; 0: none) is over."""
    timeout = int(request.timeout())
    return now + timeout * 1e-6 if timeout > 0 else None


@dataclass(eq=False)
class Pending:
    """A request under way: as many slots as it has rows, and one response when all are done.

    The first row that fails answers for the request and frees the other rows' slots.
    """

    sender: Any
    rows: int
    vocabulary: Vocabulary
    calibration: Calibration | None = None
    clock: Callable[[], float] = time.monotonic
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    answered: bool = False
    _gone: bool = False
    _asked: float = 0.0
    # A row may be refused in Triton's thread while another fails in the decoding thread.
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def cancelled(self) -> bool:
        """Whether nobody waits for this any more: answered with an error, or cancelled."""
        now = self.clock()
        if not (self.answered or self._gone) and now - self._asked >= CANCEL_POLL_S:
            self._asked = now
            self._gone = bool(self.sender.is_cancelled())
        return self.answered or self._gone

    def done(self, row: int, outcome: Outcome) -> None:
        """Take a row's outcome; respond if it was the last one missing, or an error."""
        if outcome.error is not None:
            self.fail(outcome.error)
            return
        self.outcomes[row] = outcome
        if len(self.outcomes) == self.rows:
            self._send(self._response())

    def fail(self, error: HmerError) -> None:
        """Respond with an error, unless a response was sent."""
        self._send(error_response(error))

    def _response(self) -> Any:
        try:
            return response(
                answer_tensors(
                    self.vocabulary,
                    [self.outcomes[row] for row in range(self.rows)],
                    self.calibration,
                )
            )
        except Exception as error:
            _log.exception("An answer could not be written.")
            return error_response(error)

    def _send(self, message: Any) -> None:
        with self._lock:
            if self.answered:
                return
            self.answered = True
        self.sender.send(message, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


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
            [[np.nan if a.confidence is None else a.confidence] for a in answers], np.float32
        ),
        contract.ALTERNATIVES.name: strings(
            json.dumps([other.to_dict() for other in a.alternatives], ensure_ascii=False)
            for a in answers
        ),
    }


def enqueue(
    request: Request,
    scheduler: Scheduler,
    vocabulary: Vocabulary,
    limit: int,
    calibration: Calibration | None = None,
) -> None:
    """Submit every row of ``request``; its response comes later, whatever happens.

    ``calibration`` is the bundle's, for the searches that it fits.
    """
    arrived = time.monotonic()
    pending = Pending(request.get_response_sender(), 0, vocabulary)
    try:
        wanted, deadline = parameters_of(request, limit), deadline_of(request, arrived)
        if calibration is not None and calibration.fits(wanted.search):
            pending.calibration = calibration
        images = encoded_images(request)
        pending.rows = len(images)
        for row, image in enumerate(images):
            scheduler.submit(
                DecodeRequest(
                    image,
                    wanted.max_tokens,
                    on_done=lambda outcome, row=row: pending.done(row, outcome),  # type: ignore[misc]
                    deadline=deadline,
                    cancelled=pending.cancelled,
                    search=wanted.search,
                )
            )
    except HmerError as error:
        pending.fail(error)
    except Exception as error:
        _log.exception("A request could not be read.")
        pending.fail(
            InferenceFailed(f"The request cannot be read: {type(error).__name__}: {error}")
        )


def _call_failure(model: str, reason: str) -> HmerError:
    # A server that shuts down refuses calls between its models, while requests are under way.
    if "Server not ready" in reason:
        return ServerUnavailable("The server is shutting down. Send the request to another one.")
    return InferenceFailed(f"The model {model} failed: {reason}. The server's log says more.")


class BlsRunner:
    """Runs one graph by calling the served model of that name (business logic scripting).

    Usable from any thread; every tensor is copied at every call.
    """

    def __init__(self, spec: contract.ModelSpec) -> None:
        self._model = spec.name
        self._outputs = [tensor.name for tensor in spec.outputs]

    def __call__(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs by name. Raises ``InferenceFailed`` or ``ServerUnavailable``."""
        call = pb_utils.InferenceRequest(
            model_name=self._model,
            requested_output_names=self._outputs,
            inputs=[
                pb_utils.Tensor(name, np.ascontiguousarray(values))
                for name, values in feeds.items()
            ],
        )
        result = call.exec()
        if result.has_error():
            raise _call_failure(self._model, str(result.error().message()))
        # Copies: the arrays lie in memory of the response, which goes.
        return {
            name: pb_utils.get_output_tensor_by_name(result, name).as_numpy().copy()
            for name in self._outputs
        }
