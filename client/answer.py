"""The output tensors of ``recognize`` and ``recognize_stream`` -> typed answers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from client.results import Partial
from client.transport import Call, Outputs
from hmer.contract import (
    ALTERNATIVES,
    ATTENTION,
    ATTENTION_BOX,
    CONFIDENCE,
    LATEX,
    SCORE,
    TOKEN,
    TOKEN_SCORE,
    TOKENS,
)
from hmer.errors import InferenceFailed
from hmer.recognition import Alternative, AttentionMaps, Recognition

_BROKEN = (KeyError, ValueError, TypeError, ArithmeticError)


def to_recognition(outputs: Outputs, url: str, call: Call, milliseconds: float) -> Recognition:
    """The answer in ``outputs`` to ``call``; ``milliseconds`` becomes its timing ``request``.

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
            confidence=confidence if confidence >= 0.0 else None,  # or NaN: unknown
            timings={"request": milliseconds},
            attention=_attention(outputs),
            request_id=call.request_id,
        )
    except _BROKEN as error:
        raise _not_ours(url, call.model, error) from None


def to_partial(
    outputs: Outputs, before: Sequence[str], scores: Sequence[float], url: str, model: str
) -> Partial | None:
    """The answer so far: ``before`` and the token in ``outputs``; ``None``: they are the last.

    Raises ``InferenceFailed`` as ``to_recognition`` does.
    """
    if TOKEN.name not in outputs:
        return None
    try:
        return Partial(
            (*before, str(outputs[TOKEN.name])),
            (*scores, float(outputs[TOKEN_SCORE.name])),
            _attention(outputs),
        )
    except _BROKEN as error:
        raise _not_ours(url, model, error) from None


def _attention(outputs: Outputs) -> AttentionMaps | None:
    if ATTENTION.name not in outputs or ATTENTION_BOX.name not in outputs:
        return None
    maps = np.asarray(outputs[ATTENTION.name], np.float32)
    left, top, right, bottom = map(float, np.asarray(outputs[ATTENTION_BOX.name]).reshape(4))
    if maps.ndim < 2:
        # A server-sent event has one map, and not its shape; but positions are square.
        height = round(math.sqrt(maps.size * (bottom - top) / (right - left)))
        maps = maps.reshape(1, height, maps.size // height)
    return AttentionMaps(maps.reshape(-1, *maps.shape[-2:]), (left, top, right, bottom))


def _alternative(entry: dict[str, Any]) -> Alternative:
    tokens = entry["tokens"]
    return Alternative(
        latex=str(entry["latex"]),
        tokens=tuple(tokens.split() if isinstance(tokens, str) else map(str, tokens)),
        score=float(entry["score"]),
    )


def _not_ours(url: str, model: str, error: Exception) -> InferenceFailed:
    return InferenceFailed(
        f"The model {model!r} at {url} does not answer like recognize "
        f"({type(error).__name__}: {error}). Choose another model, or use the same version "
        "of hmer on both sides."
    )
