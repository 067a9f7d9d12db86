"""The output tensors of ``recognize`` -> ``Recognition``."""

from __future__ import annotations

import json
import math
from typing import Any

from client.transport import Outputs
from hmer.contract import ALTERNATIVES, CONFIDENCE, LATEX, SCORE, TOKENS
from hmer.errors import InferenceFailed
from hmer.recognizer import Alternative, Recognition


def to_recognition(outputs: Outputs, url: str, model: str, milliseconds: float) -> Recognition:
    """The answer in ``outputs``; ``milliseconds`` becomes its timing ``request``.

    Raises ``InferenceFailed`` if a tensor is missing or holds something else: the model is not
    a recogniser, or of another contract.
    """
    try:
        confidence = float(outputs[CONFIDENCE.name])
        return Recognition(
            latex=str(outputs[LATEX.name]),
            tokens=tuple(str(outputs[TOKENS.name]).split()),
            score=float(outputs[SCORE.name]),
            alternatives=tuple(
                _alternative(entry) for entry in json.loads(str(outputs[ALTERNATIVES.name]))
            ),
            confidence=None if math.isnan(confidence) else confidence,
            timings={"request": milliseconds},
        )
    except (KeyError, ValueError, TypeError) as error:
        raise InferenceFailed(
            f"The model {model!r} at {url} does not answer like recognize "
            f"({type(error).__name__}: {error}). Choose another model, or use the same version "
            "of hmer on both sides."
        ) from None


def _alternative(entry: dict[str, Any]) -> Alternative:
    tokens = entry["tokens"]
    return Alternative(
        latex=str(entry["latex"]),
        tokens=tuple(tokens.split() if isinstance(tokens, str) else map(str, tokens)),
        score=float(entry["score"]),
    )
