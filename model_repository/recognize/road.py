"""One request's way: preprocess, ``encoder``, ``decode``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from hmer import contract
from hmer.contract import Sizes
from hmer.looks import surest, zooms
from hmer.preprocess import Prepared, PreprocessSettings, decode, measure, scale_to, to_batch
from hmer.serving import REPLY
from model_repository.bls import call
from model_repository.recognize.cache import Answer
from model_repository.recognize.job import Job
from model_repository.reply import ReplyListener, from_inside

# ``bls.call``, or what does the same.
Call = Callable[..., dict[str, Any]]

# Parameters that `decode` is told; others, of whatever type, end here.
_PASSED_ON = ("beam", "n_best", "length_penalty", "max_tokens", "k", "attention", "priority_class")


class Road:
    """Takes jobs from bytes to their answers, one in each thread that calls.

    ``version``: of the models that are called, the caller's own, so that a new version beside the
    old one has its own encoder and decoder. ``call`` reaches them. ``told``: who asks may say
    where the tokens go (``through.Through``), instead of being told by this model.
    """

    def __init__(
        self,
        settings: PreprocessSettings,
        sizes: Sizes,
        version: int,
        call: Call = call,
        told: bool = False,
    ) -> None:
        self._settings, self._version = settings, version
        self._call, self._told = call, told
        specs = contract.models(sizes)
        self._encoder, self._decode = specs[contract.ENCODER], specs[contract.DECODE]
        self._replies = ReplyListener()
        # Reading one picture at a time is as fast as all at once, and the first is done earlier.
        self._reading = threading.Semaphore(2)

    def go(self, job: Job, remaining_us: int) -> Answer | None:
        """The answer, ``None`` if nobody waits for it any more. Raises an ``HmerError``.

        ``remaining_us``: the time left, 0 for any.
        """
        with self._reading:
            job.enter("preprocess")
            image, size = to_batch(self._read(job))
        if job.answered:
            return None
        fed = [
            pb_utils.Tensor(contract.IMAGE.name, image),
            pb_utils.Tensor(contract.SIZE.name, size),
        ]
        names = [tensor.name for tensor in self._encoder.outputs]
        job.enter(contract.ENCODER)
        encoded = self._call(contract.ENCODER, fed, names, version=self._version,
                             timeout_us=remaining_us, request_id=job.request_id)  # fmt: skip
        if job.answered:
            return None
        # The tensors as they are: they may lie on the GPU, and are copied once less.
        return self._ask(job, [encoded[name] for name in names], remaining_us)

    def _read(self, job: Job) -> Sequence[Any]:
        images = []
        for row in job.rows:
            gray = decode(row)
            job.pictures.append((gray.shape[1], gray.shape[0]))
            measured = measure(gray)
            for zoom in zooms(job.parameters.looks):
                prepared = scale_to(measured, self._settings, zoom)
                images.append(prepared.image)
        if job.parameters.attention:
            job.box = _box(prepared)
        return images

    def _ask(self, job: Job, encoded: list[Any], remaining_us: int) -> Answer | None:
        parameters = {n: v for n, v in job.passed_on.items() if n in _PASSED_ON}
        if "length_penalty" in parameters:  # calls between models carry no fractions
            parameters["length_penalty"] = str(parameters["length_penalty"])
        told = from_inside(job.passed_on.get(REPLY, "")) if self._told else None
        if told is not None:  # who asks also cancels there
            parameters[REPLY] = "+" + told
        else:
            job.ticket = ticket = self._replies.expect(job.tokens)
            parameters[REPLY] = ("+" if job.stream else "-") + self._replies.address(ticket)
        if job.answered:  # since: whoever answered saw no ticket to cancel
            return None
        job.enter(contract.DECODE)
        outputs = self._call(
            contract.DECODE,
            encoded,
            [tensor.name for tensor in self._decode.outputs],
            version=self._version,
            parameters=parameters,
            timeout_us=remaining_us,
            request_id=job.request_id,
        )
        # Copies: the arrays lie in memory of the response, which goes.
        arrays = {name: np.array(tensor.as_numpy()) for name, tensor in outputs.items()}
        return Answer(_surest(arrays, job.parameters.looks))

    def cancel(self, job: Job) -> None:
        """Free what ``decode`` holds for ``job``."""
        if (ticket := job.ticket) is not None:
            self._replies.cancel(ticket)

    def done(self, job: Job) -> None:
        """``job`` was answered: nothing more is expected for it."""
        if (ticket := job.ticket) is not None:
            self._replies.forget(ticket)

    def close(self) -> None:
        """Listen no more."""
        self._replies.close()


def attention_box(row: bytes, settings: PreprocessSettings) -> tuple[float, ...]:
    """What the attention maps of the input ``row`` cover. Raises an ``InputError``."""
    return _box(scale_to(measure(decode(row)), settings))


def _box(prepared: Prepared) -> tuple[float, ...]:
    """Left, top, right and bottom of what the network sees, in pixels of the input."""
    (left, top), scale, margin = prepared.origin, prepared.scale, prepared.margin
    height, width = prepared.image.shape
    return tuple(
        (edge - margin) / scale + origin
        for edge, origin in ((0, left), (0, top), (width, left), (height, top))
    )


def _surest(outputs: dict[str, Any], looks: int) -> dict[str, Any]:
    """Of each input's ``looks`` rows the surest; it has no calibrated confidence."""
    if looks == 1:
        return outputs
    scores = outputs[contract.SCORE.name][:, 0].tolist()
    lengths = [len(text.split()) for text in outputs[contract.TOKENS.name][:, 0]]
    rows = [
        first + surest(scores[first : first + looks], lengths[first : first + looks])
        for first in range(0, len(scores), looks)
    ]
    chosen = {name: array[rows] for name, array in outputs.items()}
    chosen[contract.CONFIDENCE.name] = np.full_like(
        chosen[contract.CONFIDENCE.name], contract.UNKNOWN_CONFIDENCE
    )
    return chosen
