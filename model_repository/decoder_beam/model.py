"""The best next tokens of every row, for beam search: the beam's graph."""

from __future__ import annotations

from hmer.bundle import BEAM_FILE
from hmer.contract import DECODER_BEAM
from model_repository.graph import GraphModel


class TritonPythonModel(GraphModel):
    """Tokens, parents and states in, ``candidates``, ``scores`` and the next states out."""

    model = DECODER_BEAM
    file = BEAM_FILE
