"""The way of ``recognize_stream`` where ``recognize`` holds the other models: through it.

It alone can have the encoder and the decoder in its process. The tokens come straight from the
decoder (``model_repository.reply``), before the answer.
"""

from __future__ import annotations

import numpy as np
import triton_python_backend_utils as pb_utils

from hmer import contract
from hmer.contract import Sizes
from hmer.preprocess import PreprocessSettings
from hmer.serving import REPLY
from model_repository.bls import call
from model_repository.recognize.cache import Answer
from model_repository.recognize.job import Job
from model_repository.recognize.road import attention_box
from model_repository.reply import ReplyListener, passed_on

_TAKEN_HERE = ("encoding", "timeout", REPLY)


class Through:
    """Takes jobs to ``recognize``, one in each thread that calls (``front.Way``)."""

    def __init__(self, settings: PreprocessSettings, sizes: Sizes) -> None:
        specs = contract.models(sizes)
        self._outputs = [tensor.name for tensor in specs[contract.DECODE].outputs]
        self._outputs.remove(contract.ATTENTION.name)  # each comes with its token
        self._settings = settings
        self._replies = ReplyListener()

    def go(self, job: Job, remaining_us: int) -> Answer | None:
        """See ``front.Way``."""
        if job.parameters.attention:  # the maps come before the answer, which has it too
            job.box = attention_box(job.rows[0], self._settings)
        ticket = self._replies.expect(job.tokens)
        # Calls between models carry no fractions.
        parameters = {
            n: str(v) if isinstance(v, float) else v
            for n, v in job.passed_on.items()
            if n not in _TAKEN_HERE
        }
        parameters[REPLY] = passed_on(self._replies.address(ticket))
        job.ticket = ticket
        if job.answered:
            return None
        job.enter(contract.RECOGNIZE)
        rows = np.array([[row] for row in job.rows], dtype=np.object_)
        outputs = call(
            contract.RECOGNIZE,
            [pb_utils.Tensor(contract.INPUT.name, rows)],
            self._outputs,
            # Any version: while a new one takes over, the old one's may be gone already.
            parameters=parameters,
            timeout_us=remaining_us,
            request_id=job.request_id,
        )
        return Answer({name: np.array(tensor.as_numpy()) for name, tensor in outputs.items()})

    def cancel(self, job: Job) -> None:
        """See ``front.Way``."""
        if (ticket := job.ticket) is not None:
            self._replies.cancel(ticket)

    def done(self, job: Job) -> None:
        """See ``front.Way``."""
        if (ticket := job.ticket) is not None:
            self._replies.forget(ticket)

    def close(self) -> None:
        """See ``front.Way``."""
        self._replies.close()
