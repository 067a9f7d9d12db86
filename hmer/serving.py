"""What a served model is told: the parameters in its ``config.pbtxt``, written once.

``export.config`` writes them, the models of ``model_repository`` read them back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from hmer.errors import BadParameter

# From a model's folder (REPOSITORY/models/MODEL) to the bundle: a repository can be moved.
BUNDLE_PATH = "../../bundle"

# How `decode` runs its steps.
IN_PROCESS, BLS = "in_process", "bls"

# The file that tells what a repository was assembled for, in its top folder.
REPOSITORY_FILE = "repository.json"
REPOSITORY_FORMAT = "hmer-repository"

# A multi-row request is split by the client above this.
MAX_ROWS = 16


@dataclass(frozen=True)
class PreprocessParameters:
    """Of ``preprocess``."""

    bundle: str = BUNDLE_PATH


@dataclass(frozen=True)
class GraphParameters:
    """Of ``encoder`` and ``decoder_step`` where they are Python models over a CPU runtime.

    ``target``: ``onnxruntime`` or ``openvino``. ``threads``: 0 means every CPU that the
    process may use.
    """

    bundle: str = BUNDLE_PATH
    target: str = "onnxruntime"
    precision: str = "fp32"
    threads: int = 0


@dataclass(frozen=True)
class DecodeParameters:
    """Of ``decode``.

    ``step``: ``in_process`` (a runner inside the model; ``target``, ``precision`` and
    ``threads`` are its) or ``bls`` (calls to the served ``decoder_step``).
    ``slots``: formulas decoded at the same time. ``max_queue``: rows that may wait for a
    slot; above it requests are refused. ``max_tokens``: the longest answer, and the default
    of the request parameter of that name.
    """

    bundle: str = BUNDLE_PATH
    step: str = IN_PROCESS
    target: str = "onnxruntime"
    precision: str = "fp32"
    threads: int = 1
    slots: int = 16
    max_queue: int = 256
    max_tokens: int = 256


P = TypeVar("P", PreprocessParameters, GraphParameters, DecodeParameters)


def to_strings(
    parameters: PreprocessParameters | GraphParameters | DecodeParameters,
) -> dict[str, str]:
    """Name to value, as ``config.pbtxt`` holds them."""
    return {name: str(value) for name, value in asdict(parameters).items()}


def from_strings(kind: type[P], values: Mapping[str, str]) -> P:
    """The parameters that ``to_strings`` wrote; others are ignored, missing ones default.

    Raises ``BadParameter`` for a value that is not a number where one is needed.
    """
    known: dict[str, Any] = {}
    for field in fields(kind):
        if field.name not in values:
            continue
        text = values[field.name]
        if field.type in (int, "int"):
            try:
                known[field.name] = int(text)
            except ValueError:
                raise BadParameter(
                    f"The model parameter {field.name} is {text!r}, which is not a whole number. "
                    "Assemble the repository again with hmer-export repository."
                ) from None
        else:
            known[field.name] = text
    return kind(**known)
