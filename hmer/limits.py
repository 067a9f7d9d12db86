"""What one input may cost: limits with defaults that no formula comes near.

Each can be set by an environment variable of the process that reads inputs (the server's models
inherit that of ``hmer-serve``; in a container, set it there)::

    HMER_MAX_INPUT_BYTES     of one input, as a client sends it
    HMER_MAX_PENDING_BYTES   of all inputs that one served model holds; above, requests are refused
    HMER_MAX_PIXELS          of an encoded picture, read from its header
    HMER_MAX_INK_BYTES       of InkML or JSON strokes
    HMER_MAX_STROKES         of an ink
    HMER_MAX_POINTS          of an ink's strokes together

A value that is no number leaves the default in place until ``check`` says so.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields

from hmer.errors import BadParameter

PREFIX = "HMER_MAX_"


@dataclass(frozen=True)
class Limits:
    """The module's table in numbers."""

    input_bytes: int = 32 * 1024 * 1024
    pending_bytes: int = 256 * 1024 * 1024
    pixels: int = 50_000_000
    ink_bytes: int = 8 * 1024 * 1024
    strokes: int = 10_000
    points: int = 200_000


def from_environment(given: Mapping[str, str], strict: bool = True) -> Limits:
    """The limits that ``given`` sets. Raises ``BadParameter``, unless not ``strict``."""
    values = {}
    for field in fields(Limits):
        name = PREFIX + field.name.upper()
        if not (text := given.get(name, "").strip()):
            continue
        if text.isascii() and text.isdigit() and 0 < int(text) < 1 << 40:
            values[field.name] = int(text)
        elif strict:
            raise BadParameter(
                f"The environment variable {name} is {text[:40]!r}; it must be a whole number, "
                f"such as {field.default}."
            )
    return Limits(**values)


def check() -> None:
    """Raise ``BadParameter`` if the environment sets a limit to what is no number."""
    from_environment(os.environ)


# Of this process, as it was started.
LIMITS = from_environment(os.environ, strict=False)
