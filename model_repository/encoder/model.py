"""Padded images to the decoder's memory: the encoder's graph."""

from __future__ import annotations

from hmer.bundle import ENCODER_FILE
from hmer.contract import ENCODER
from model_repository.graph import GraphModel


class TritonPythonModel(GraphModel):
    """``image``, ``size`` to ``values``, ``keys``, ``feature_size`` and ``state``."""

    model = ENCODER
    file = ENCODER_FILE
