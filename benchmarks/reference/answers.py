"""Between the references' tokens and the tensors of ``recognize``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from hmer import contract
from hmer.errors import HmerError
from hmer.latex import to_latex


def input_bytes(request: Any) -> bytes:
    """The one picture of a request to ``recognize``."""
    values = pb_utils.get_input_tensor_by_name(request, contract.INPUT.name).as_numpy()
    return bytes(values.reshape(-1)[0])


def answer(tokens: Sequence[str], score: float = 1.0) -> Any:
    """A response with ``tokens``; the references do not compute a confidence."""
    texts = {
        contract.LATEX.name: to_latex(tokens),
        contract.TOKENS.name: " ".join(tokens),
        contract.ALTERNATIVES.name: "[]",
    }
    numbers = {contract.SCORE.name: score, contract.CONFIDENCE.name: contract.UNKNOWN_CONFIDENCE}
    return pb_utils.InferenceResponse(
        [
            *(
                pb_utils.Tensor(name, np.array([[text.encode("utf-8")]], np.object_))
                for name, text in texts.items()
            ),
            *(
                pb_utils.Tensor(name, np.array([[value]], np.float32))
                for name, value in numbers.items()
            ),
        ]
    )


def failure(error: Exception) -> Any:
    """A response with ``error``."""
    text = error.to_wire() if isinstance(error, HmerError) else f"{type(error).__name__}: {error}"
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(text))
