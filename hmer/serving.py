"""What a served model is told, written once: by its ``config.pbtxt``, and by every request.

``export.config`` writes the parameters of the first kind, the models of ``model_repository`` read
them back. The second kind travels with a request: the client writes them with ``to_request``,
``recognize`` and ``decode`` read them with ``from_request``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from reprlib import repr as shown  # at most 30 characters of what a stranger wrote
from typing import Any, TypeVar

from hmer.decode_types import LENGTH_PENALTY, SearchOptions
from hmer.errors import BadParameter
from hmer.limits import LIMITS
from hmer.looks import MOST as MOST_LOOKS

# From a model's folder (REPOSITORY/models/MODEL) to the bundle: a repository can be moved.
BUNDLE_PATH = "../../bundle"

# How `decode` runs its steps.
IN_PROCESS, BLS = "in_process", "bls"

# The file that tells what a repository was assembled for, in its top folder.
REPOSITORY_FILE = "repository.json"
REPOSITORY_FORMAT = "hmer-repository"

# A multi-row request is split by the client above this.
MAX_ROWS = 16
# Calls between models that a Python model can wait for at a time: Triton's thread-pool-size.
MAX_WORKERS = 48
# Of one input, as a client sends it.
MAX_INPUT_BYTES = LIMITS.input_bytes
# Of all inputs that one `recognize` holds; above it requests are refused.
MAX_PENDING_BYTES = LIMITS.pending_bytes

# How many bytes of answers a model keeps (`hmer-serve --cache`); 0 by default: none.
CACHE_VARIABLE = "HMER_CACHE_BYTES"
# Whether `recognize` writes a line a request (`hmer-serve --log-requests`), and how: one of
# `LOG_FORMATS`; unset or empty: none.
LOG_VARIABLE = "HMER_LOG_REQUESTS"
JSON, TEXT = "json", "text"
LOG_FORMATS = (TEXT, JSON)
# Where traces go (`hmer-serve --trace-url`): OpenTelemetry's own name, unset or empty: nowhere.
TRACE_VARIABLE = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
# The request parameter, and the header that becomes one, that continues a caller's trace.
TRACEPARENT = "traceparent"


@dataclass(frozen=True)
class PreprocessParameters:
    """Of ``preprocess``."""

    bundle: str = BUNDLE_PATH


@dataclass(frozen=True)
class GraphParameters:
    """Of ``encoder`` and ``decoder_step`` where they are Python models over a CPU runtime.

    ``target``: ``onnxruntime`` or ``openvino``. ``threads``: 0 means every CPU that the
    process may use. ``max_queue``: of the encoder's own queue (``hmer.encoding``); 0: there is
    none, and batches come from Triton. ``workers`` that call the encoder at a time and
    ``batch_pixels`` of a call (``hmer.encoding``); 0: the usual number.
    """

    bundle: str = BUNDLE_PATH
    target: str = "onnxruntime"
    precision: str = "fp32"
    threads: int = 0
    max_queue: int = 0
    workers: int = 0
    batch_pixels: int = 0


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
class RecognizeParameters:
    """Of ``recognize`` and ``recognize_stream``.

    ``workers``: requests that are on their way through the models at a time; ``max_queue``: those
    that may wait for that, and above it requests are refused. ``full``: pictures in the server at
    which it is full, and ``max_wait_ms``: beyond that they are refused unless those ahead are done
    so soon (``hmer.room``); 0: only ``max_queue`` bounds them.
    ``max_tokens`` as of ``decode``. ``encoder``, ``decode``: the parameters of these models, as
    JSON, where ``recognize`` holds them in its own process; empty where they are served.
    ``through``: the model that holds them, for its twin.
    """

    bundle: str = BUNDLE_PATH
    workers: int = 24
    max_queue: int = 256
    full: int = 16
    max_wait_ms: int = 0
    max_tokens: int = 256
    encoder: str = ""
    decode: str = ""
    through: str = ""


# Who is served first when requests wait: a person, or what can wait.
INTERACTIVE, BATCH = "interactive", "batch"
PRIORITIES = (INTERACTIVE, BATCH)
# How the input travels; text is needed where it is a string of a JSON document.
RAW, BASE64 = "raw", "base64"
ENCODINGS = (RAW, BASE64)
# What servers and clients put among the parameters for themselves.
_FOREIGN = ("triton_", "sequence_", "binary_data", "traceparent")
# Where `decode` finds whom to tell (model_repository.reply); of no use from outside.
REPLY = "hmer_reply"
# By this the models of one server know each other; made anew for every server.
INNER_VARIABLE = "HMER_INNER"


@dataclass(frozen=True)
class RequestParameters:
    """Of one request to ``recognize``, ``recognize_stream`` or ``decode``.

    ``max_tokens``: the longest answer, <eos> included. ``search``: the request parameters
    ``beam``, ``n_best`` and ``length_penalty``. ``k``: tokens that a call of the step may give it
    at most; fewer come earlier, and cost the others time; ``None`` lets the server choose.
    ``attention``: return where the network looked for each token. ``priority``: the request
    parameter ``priority_class`` (Triton keeps ``priority`` for itself), one of ``PRIORITIES``.
    ``encoding``: of the input, one of ``ENCODINGS``. ``looks``: see ``hmer.looks``.
    The time limit travels as Triton's own parameter ``timeout``, in microseconds, which a model
    gets with the request itself.
    """

    max_tokens: int
    search: SearchOptions
    k: int | None = None
    attention: bool = False
    priority: str = INTERACTIVE
    encoding: str = RAW
    looks: int = 1


_NAMES = {
    *("beam", "n_best", "length_penalty", "max_tokens", "k", "attention", "priority_class"),
    *("encoding", "looks", "timeout", "id", REPLY),
}


def to_request(
    beam: int | None = None,
    n_best: int | None = None,
    length_penalty: float | None = None,
    *,
    max_tokens: int | None = None,
    k: int | None = None,
    attention: bool = False,
    priority: str | None = None,
    encoding: str | None = None,
    looks: int | None = None,
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
    for name, value in (("max_tokens", max_tokens), ("k", k)):
        if value is not None:
            wanted[name] = _whole(name, value, None)
    if looks is not None:
        wanted["looks"] = _whole("looks", looks, MOST_LOOKS)
    if attention:
        wanted["attention"] = True
    if priority is not None:
        wanted["priority_class"] = _one_of("priority_class", priority, PRIORITIES)
    if encoding is not None:
        wanted["encoding"] = _one_of("encoding", encoding, ENCODINGS)
    return wanted


def from_request(values: Mapping[str, Any], limit: int) -> RequestParameters:
    """The parameters in a request's ``values``; ``max_tokens`` is by default and at most ``limit``.

    Raises ``BadParameter``, also for a name that is none of a parameter.
    """
    unknown = [n for n in values if n not in _NAMES and not n.startswith(_FOREIGN)]
    if unknown:
        known = ", ".join(sorted(_NAMES - {REPLY}))
        raise BadParameter(
            f"There is no request parameter {shown(unknown[0])}. There are: {known}."
        )
    penalty = values.get("length_penalty", LENGTH_PENALTY)
    if isinstance(penalty, str):
        try:
            penalty = float(penalty)
        except ValueError:
            raise BadParameter(
                f"length_penalty is {shown(penalty)}; it must be a number."
            ) from None
    attention = values.get("attention", False)
    if not isinstance(attention, bool):
        raise BadParameter(f"attention is {shown(attention)}; it must be true or false.")
    k = values.get("k")
    return RequestParameters(
        _whole("max_tokens", values.get("max_tokens", limit), limit),
        SearchOptions(values.get("beam", 1), values.get("n_best", 1), penalty),
        None if k is None else _whole("k", k, None),
        attention,
        _one_of("priority_class", values.get("priority_class", INTERACTIVE), PRIORITIES),
        _one_of("encoding", values.get("encoding", RAW), ENCODINGS),
        _whole("looks", values.get("looks", 1), MOST_LOOKS),
    )


def cache_bytes(text: str) -> int:
    """A number of bytes such as ``64M``, ``1G`` or ``500000``. Raises ``BadParameter``."""
    match = re.fullmatch(r"(\d+) *([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise BadParameter(
            f"{text!r} is not an amount of memory. Write bytes, or a number with K, M or G: 64M."
        )
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2].upper()]


def _whole(name: str, value: object, most: int | None) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= (most or value):
        return value
    limits = "at least 1" if most is None else f"1 to {most}"
    raise BadParameter(f"{name} is {shown(value)}; it must be a whole number, {limits}.")


def _one_of(name: str, value: object, choices: Sequence[str]) -> str:
    if value not in choices:
        raise BadParameter(f"{name} is {shown(value)}; it must be {' or '.join(choices)}.")
    return str(value)


P = TypeVar("P", PreprocessParameters, GraphParameters, DecodeParameters, RecognizeParameters)


def to_strings(
    parameters: PreprocessParameters | GraphParameters | DecodeParameters | RecognizeParameters,
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
