"""k tokens for every row: the step's graph."""

from __future__ import annotations

from hmer.bundle import STEP_FILE
from hmer.contract import DECODER_STEP
from model_repository.graph import GraphModel


class TritonPythonModel(GraphModel):
    """The previous tokens and states in, ``tokens``, ``scores`` and the next states out."""

    model = DECODER_STEP
    file = STEP_FILE
