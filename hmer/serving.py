"""What a served model is told, written once: by its ``config.pbtxt``, and by every request.

``export.config`` writes the parameters of the first kind, the models of ``model_repository`` read
them back. The second kind travels with a request through the ensemble: the client writes them
with ``to_request``, ``decode`` reads them with ``from_request``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from hmer.decode_types import LENGTH_PENALTY, SearchOptions
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
    ``slots``: formulas decoded at the same time, each hypothesis of a beam counting as one.
    ``max_queue``: rows that may wait for a slot; above it requests are refused.
    ``max_tokens``: the longest answer, and the default of the request parameter of that name.
    ``guards``: whether answers are kept from what no formula is (``hmer.guards``).
    """

    bundle: str = BUNDLE_PATH
    step: str = IN_PROCESS
    target: str = "onnxruntime"
    precision: str = "fp32"
    threads: int = 1
    slots: int = 16
    max_queue: int = 256
    max_tokens: int = 256
    guards: bool = True


@dataclass(frozen=True)
class RequestParameters:
    """Of one request to ``decode``, or to the ensemble, which passes them on.

    ``max_tokens``: the longest answer, <eos> included. ``search``: the request parameters
    ``beam``, ``n_best`` and ``length_penalty``.
    """

    max_tokens: int
    search: SearchOptions


def to_request(
    beam: int | None = None, n_best: int | None = None, length_penalty: float | None = None
) -> dict[str, int | str]:
    """The parameters of a request for what is given; the server decides the rest.

    Raises ``BadParameter`` for what no server would take.
    """
    SearchOptions().with_(beam, n_best, length_penalty)
    wanted: dict[str, int | str] = {}
    if beam is not None:
        wanted["beam"] = beam
    if n_best is not None:
        wanted["n_best"] = n_best
    if length_penalty is not None:
        wanted["length_penalty"] = repr(float(length_penalty))  # gRPC carries no fractions here
    return wanted


def from_request(values: Mapping[str, Any], limit: int) -> RequestParameters:
    """The parameters in a request's ``values``; ``max_tokens`` is by default and at most ``limit``.

    Others are ignored. Raises ``BadParameter``.
    """
    wanted = values.get("max_tokens", limit)
    if not isinstance(wanted, int) or isinstance(wanted, bool) or not 1 <= wanted <= limit:
        raise BadParameter(f"max_tokens is {wanted!r}; it must be a whole number, 1 to {limit}.")
    penalty = values.get("length_penalty", LENGTH_PENALTY)
    if isinstance(penalty, str):
        try:
            penalty = float(penalty)
        except ValueError:
            raise BadParameter(f"length_penalty is {penalty!r}; it must be a number.") from None
    return RequestParameters(
        wanted, SearchOptions(values.get("beam", 1), values.get("n_best", 1), penalty)
    )


P = TypeVar("P", PreprocessParameters, GraphParameters, DecodeParameters)


def to_strings(
    parameters: PreprocessParameters | GraphParameters | DecodeParameters,
) -> dict[str, str]:
    """Name to value, as ``config.pbtxt`` holds them."""
    return {name: str(value) for name, value in asdict(parameters).items()}


def from_strings(kind: type[P], values: Mapping[str, str]) -> P:
    """The parameters that ``to_strings`` wrote; others are ignored, missing ones default.

    Raises ``BadParameter`` for a value that is not a number, or not True or False, where one
    is needed.
    """
    known: dict[str, Any] = {}
    for field in fields(kind):
        if field.name not in values:
            continue
        text = values[field.name]
        if field.type in (bool, "bool"):
            if text not in ("True", "False"):
                raise BadParameter(
                    f"The model parameter {field.name} is {text!r}, not True or False. "
                    "Assemble the repository again with hmer-export repository."
                )
            known[field.name] = text == "True"
        elif field.type in (int, "int"):
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
